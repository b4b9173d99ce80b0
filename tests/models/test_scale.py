"""A network's numbers are brought to what half precision holds, and its prediction changes by a power of two alone."""

import math

import pytest
import safetensors.torch
import torch

from mde.export import deployable
from mde.models import build_model, load_model, save_model
from mde.models.checkpoints import SCALES
from mde.models.residual import take_out
from mde.models.scale import LEFT_ALONE, magnitudes, powers_of_two, probe_images, rescale
from mde.quantization.fake import activation_scales, fake_quantize, load_fake_quantized
from tests.export import random_network

IMAGE = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def run_away(model, factor):
    """Each group of maps of `model` `factor` times as large as the one it is made from, in place."""
    groups = list(dict.fromkeys(layer.writes for layer in model.scaled()))
    powers = {"": 1.0} | {group: float(factor) ** (number + 1) for number, group in enumerate(groups)}
    with torch.no_grad():
        for layer in model.scaled():
            module = model.get_submodule(layer.name)
            module.weight.mul_(powers[layer.writes] / powers[layer.reads])
            if module.bias is not None:
                module.bias.mul_(powers[layer.writes])
    return model


def peaks(model):
    return [magnitude for _, magnitude in magnitudes(model, probe_images(model))]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("midas_small", {"encoder": "lite0", "border": "replicate"}),
        ("midas_small", {"encoder": "lite0", "reference": True}),
        ("dpt_hybrid", {"blocks": 1}),
        ("fastdepth", {}),
        ("guidedepth", {"variant": "small"}),
    ],
)
def test_a_network_that_ran_away_comes_back_and_computes_the_same_to_the_last_bit(name, options):
    torch.manual_seed(0)
    model = run_away(build_model(name, **options), 32 if name in ("midas_small", "dpt_hybrid") else 2**14)
    with torch.no_grad():
        before = model(IMAGE)
        assert before.std() > 0
        factor = powers_of_two(model)["output"]
        rescale(model)
        assert torch.equal(model(IMAGE), before * factor)
    assert math.log2(factor) == int(math.log2(factor)) < 0
    assert max(peaks(model)) <= LEFT_ALONE[1]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rescale(model)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())


def test_blocks_taken_out_and_numbers_too_small_are_no_obstacle():
    torch.manual_seed(0)
    model = run_away(build_model("midas_small", encoder="lite0"), 1 / 64)
    take_out(model, ["decoder.fusion3.refine_skip", "decoder.fusion2.refine_sum"])
    with torch.no_grad():
        before = model(IMAGE)
        factor = powers_of_two(model)["output"]
        rescale(model)
        assert factor > 1
        assert torch.equal(model(IMAGE), before * factor)
    assert peaks(model)[-1] >= LEFT_ALONE[0]


def test_a_network_that_computes_no_numbers_is_left_alone():
    model = build_model("midas_small", encoder="lite0")
    with torch.no_grad():
        model.decoder.head.conv3.bias.fill_(torch.nan)
    assert set(powers_of_two(model).values()) == {1.0}


def test_looking_at_a_network_leaves_no_trace_in_it():
    model = build_model("midas_small", encoder="lite0").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    powers_of_two(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_saved_network_is_in_range_and_what_int8_needs_moves_along(tmp_path):
    model = run_away(random_network(reference=False), 64)
    scales = activation_scales(model, [IMAGE])
    path = tmp_path / "model.safetensors"
    save_model(model, path, **{SCALES: scales})
    factor = powers_of_two(model)["output"]
    saved = load_model(path)
    assert max(peaks(saved)) <= LEFT_ALONE[1]
    with torch.no_grad():
        assert factor < 1
        assert torch.equal(saved(IMAGE), model(IMAGE) * factor)
        fake_quantize(model, scales)
        assert torch.equal(load_fake_quantized(path)(IMAGE), model(IMAGE) * factor)


def test_a_network_in_half_precision_stays_so_but_for_what_would_lose_digits(tmp_path):
    model = run_away(random_network(reference=False), 3).half()
    save_model(model, tmp_path / "half.safetensors")
    tensors = safetensors.torch.load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} >= {torch.float16, torch.float32}
    saved, factor = load_model(tmp_path / "half.safetensors"), powers_of_two(model)["output"]
    assert factor < 1
    assert max(peaks(saved)) <= LEFT_ALONE[1]
    with torch.no_grad():
        assert torch.equal(saved(IMAGE), model.float()(IMAGE) * factor)


def test_what_is_deployed_is_in_range_whatever_the_file_says():
    model = run_away(random_network(reference=False, border="replicate"), 32)
    factor = powers_of_two(model)["output"]
    with torch.no_grad():
        expected = model(IMAGE) * factor
        half = deployable(model).half()(IMAGE.half()).float()
        rounded = deployable(model, same_kernels=True)(IMAGE)  # scales of activations go with it: as it is
    assert (half - expected).abs().max() < 0.01 * (expected.max() - expected.min())
    assert torch.allclose(rounded, expected / factor, rtol=1e-3)
