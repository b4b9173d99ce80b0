"""train.py quantize=qat, from its callback to the file that deploy.py makes of it."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mde.config import OptimizerConfig
from mde.deploy.quantization.fake import FakeQuantized, convolutions, read_scales
from mde.errors import MdeError
from mde.models import build_model, load_model, save_model
from mde.training.module import BatchNorm, DepthModule
from mde.training.objective import Objective
from mde.training.quantization import QuantizationAware, build_quantization
from tests.conftest import TINY
from tests.export import random_network
from tests.test_config import composed

torch.set_num_threads(1)


class Images:
    """What the callback asks of the training data."""

    def calibration(self, count: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [{"image": torch.randn(3, 32, 32, generator=generator)} for _ in range(count)]


def begun(tmp_path: Path, callback: QuantizationAware | None = None) -> tuple[DepthModule, QuantizationAware]:
    module = DepthModule(random_network(reference=False), Objective("trimmed", 0.5, 0), OptimizerConfig(), 3)
    with torch.no_grad():
        module.model.decoder.reduce1.weight[::2] = 0  # as pruning could leave it
    callback = callback or QuantizationAware(2, tmp_path)
    callback.follow(0, module, Images())  # type: ignore[arg-type]
    return module, callback


def test_every_convolution_trains_rounded_with_batchnorm_folded_and_at_rest(tmp_path: Path) -> None:
    module, callback = begun(tmp_path)
    layers = convolutions(module.model)
    assert all(isinstance(layer, FakeQuantized) for layer in layers.values())
    assert callback.scales.keys() == layers.keys()
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]
    assert module.training
    assert all(not norm.training and not norm.running_mean.any() for norm in norms)
    before = load_model(callback.dense_file)
    assert torch.equal(before.encoder.conv_stem.weight, random_network().encoder.conv_stem.weight)
    image = Images().calibration(1)[0]["image"][None]
    module.model(image).sum().backward()
    assert all(layer.weight.grad is not None and layer.weight.grad.any() for layer in layers.values())


def test_zeros_stay_zero(tmp_path: Path) -> None:
    module, _ = begun(tmp_path)
    optimizer = module.configure_optimizers()["optimizer"]
    weight = module.model.decoder.reduce1.weight
    before = weight.detach().clone()
    for sample in Images().calibration(3):
        optimizer.zero_grad()
        module.model(sample["image"][None]).square().sum().backward()
        optimizer.step()
    assert not weight[::2].any()
    assert (weight[1::2] != before[1::2]).any()


def test_a_checkpoint_s_scales_are_kept_and_its_weights_not_folded_again(tmp_path: Path) -> None:
    module, callback = begun(tmp_path)
    other = QuantizationAware(2, tmp_path / "other")
    scales = {name: 2 * scale for name, scale in callback.scales.items()}
    other.load_state_dict(json.loads(json.dumps({"scales": scales})))
    resumed, _ = begun(tmp_path, other)
    assert other.scales == scales
    assert resumed.model.encoder.conv_stem.input_scale == scales["encoder.conv_stem"]  # type: ignore[union-attr]
    assert torch.equal(resumed.model.encoder.conv_stem.weight, random_network().encoder.conv_stem.weight)
    assert not torch.equal(module.model.encoder.conv_stem.weight, resumed.model.encoder.conv_stem.weight)
    assert not other.dense_file.exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["quantize=int8"], "quantize=int8: needs no training; give it to deploy.py"),
        (["quantize=qat", "prune=channel", "sparsity=0.5", "weights=a.safetensors"], "prune first"),
        (["quantize=qat", "weights=imagenet"], "quantize=qat with weights=imagenet: fine-tunes a trained network"),
        (["quantize=qat", "weights=none"], "quantize=qat with weights=none: fine-tunes a trained network"),
        (["quantize=qat", "weights=midas", "quantize.frames=0"], "quantize.frames=0: must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_one_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(MdeError, match=line):
        build_quantization(composed(*overrides), tmp_path)


def test_its_schedule_is_its_own_unless_asked_otherwise() -> None:
    config = composed("quantize=qat", "optimizer.decoder_lr=1")
    assert config.optimizer.encoder_lr < composed().optimizer.encoder_lr / 10
    assert config.trainer.max_steps < composed().trainer.max_steps
    assert config.optimizer.decoder_lr == 1


def test_a_run_that_was_stopped_ends_like_one_that_was_not_and_is_deployed_as_trained(
    run_train, frames_folder: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "trained.safetensors"
    save_model(build_model("midas_small", encoder="lite0"), weights, input=[64, 64])
    data = ["data=folder", f"data.root={frames_folder}"]
    options = [*data, *TINY[:3], *TINY[4:], f"weights={weights}", "quantize=qat", "trainer.max_steps=2"]
    options += ["quantize.frames=4", "optimizer.warmup_steps=0", "optimizer.encoder_lr=1e-3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_train(*options, f"hydra.run.dir={whole}").returncode == 0
    run_train(*options, "trainer.max_minutes=0.00001", f"hydra.run.dir={stopped}")
    assert json.loads((stopped / "metrics.json").read_text())["status"] == "incomplete"
    done = run_train(f"resume={stopped}", "trainer.max_minutes=null")
    assert done.returncode == 0, done.stderr[-2000:]
    expected, found = (load_model(run / "model.safetensors").state_dict() for run in (whole, stopped))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert read_scales(whole / "model.safetensors") == read_scales(stopped / "model.safetensors")
    record = json.loads((stopped / "metrics.json").read_text())
    assert record["quality"].keys() == record["before"]["quality"].keys() == {"tiny"}

    command = [f"checkpoint={stopped / 'model.safetensors'}", "quantize=qat", *data]
    deployed = run_train(*command, f"hydra.run.dir={tmp_path / 'deployed'}", script="deploy.py", steps=1)
    assert deployed.returncode == 0, deployed.stderr[-2000:]
    entry = json.loads((tmp_path / "deployed/metrics.json").read_text())["deployment"]
    assert entry["trained_scales"] == len(read_scales(stopped / "model.safetensors"))
    assert entry["parity"]["largest"] > 1e-7
