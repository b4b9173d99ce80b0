import json
import socket
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from mde.errors import MdeError
from mde.models.checkpoints import load_official
from mde.models.midas_small import ENCODERS, MidasSmall, SamePadConv2d
from mde.models.official import NEVER_EXECUTED, official_name
from tests.models.conftest import published_state


@pytest.fixture(scope="module")
def golden_checkpoint(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("golden") / "midas_small.pt"
    torch.save(published_state(shared, "midas_small"), path)
    return path


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("file", ["midas_small_golden.npz", "midas_small_golden_192x256.npz"])
def test_output_is_the_published_networks(file: str, reference: bool, shared: Path, golden_checkpoint: Path) -> None:
    golden = np.load(shared / "reference" / file)
    model = load_official(golden_checkpoint, reference=reference)
    with torch.no_grad():
        output = model(torch.from_numpy(golden["image"]))
    expected = golden["inverse_depth"]
    assert output.shape == (1, *expected.shape)
    assert np.abs(output[0].numpy() - expected).max() <= 1e-4 * expected.max()


def test_official_names_and_shapes_are_the_published_ones(shared: Path) -> None:
    published = json.loads((shared / "reference" / "midas_small_state.json").read_text())
    ours = {
        official_name("midas_small", name): list(tensor.shape) for name, tensor in MidasSmall().state_dict().items()
    }
    assert {name: shape for name, shape in published.items() if name not in NEVER_EXECUTED["midas_small"]} == ours


def test_parameter_count_is_that_of_the_executed_network() -> None:
    for reference in (False, True):
        assert sum(p.numel() for p in MidasSmall(reference=reference).parameters()) == 16_600_929


def test_every_parameter_is_executed() -> None:
    model = MidasSmall("lite0")
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_convolving_before_upsampling_changes_nothing() -> None:
    torch.manual_seed(0)
    deployed, reference = MidasSmall("lite0").eval(), MidasSmall("lite0", reference=True).eval()
    reference.load_state_dict(deployed.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        # Widen the tiny spread of a fresh network's output, or the comparison would be between constants.
        for model in (deployed, reference):
            model.decoder.head.conv3.weight.mul_(100)
        first, second = deployed(image), reference(image)
    assert first.std() > 0.1
    assert (first - second).abs().max() <= 1e-5 * second.max()


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_constant_padding_is_tensorflows_same_for_even_sizes(kernel: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    same = timm.layers.Conv2dSame(6, 6, kernel, stride=2, groups=6, bias=False)
    image = torch.randn(1, 6, *size)
    assert torch.equal(SamePadConv2d.of(same)(image), same(image))


def test_no_padding_depends_on_the_inputs_size() -> None:
    kinds = {type(module) for module in MidasSmall("lite0").modules() if isinstance(module, nn.Conv2d)}
    assert kinds == {nn.Conv2d, SamePadConv2d}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_gives_inverse_depth_at_the_images_size(encoder: str) -> None:
    with torch.no_grad():
        output = MidasSmall(encoder).eval()(torch.randn(1, 3, 32, 64))
    assert output.shape == (1, 1, 32, 64)
    assert output.min() >= 0


def test_a_fresh_network_starts_on_the_live_side_of_the_closing_relu() -> None:
    torch.manual_seed(0)
    output = MidasSmall("lite0")(torch.randn(2, 3, 64, 64))
    assert output.min() > 0.5
    assert abs(output.mean().item() - 1) < 0.2
    assert output.std() > 0


def test_batch_norm_has_tensorflows_epsilon() -> None:
    assert {module.eps for module in MidasSmall().modules() if isinstance(module, nn.BatchNorm2d)} == {1e-3}


def test_constructing_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a constructor went to the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    MidasSmall("lite0")


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 100), (1, 1, 64, 64), (3, 64, 64), (1, 3, 0, 64)])
def test_other_shapes_are_refused_with_the_rule(shape: tuple[int, ...]) -> None:
    with pytest.raises(MdeError, match="multiples of 32"):
        MidasSmall("lite0")(torch.zeros(shape))


def test_an_unknown_encoder_is_refused_with_the_choices() -> None:
    with pytest.raises(MdeError, match=r"lite9.*lite0"):
        MidasSmall("lite9")


def test_tracing_gives_the_same_output_and_warns_of_no_fixed_branch(recwarn: pytest.WarningsRecorder) -> None:
    model = MidasSmall("lite0").eval()
    image = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        traced = torch.jit.trace(model, image, check_trace=False)
        assert torch.equal(traced(image), model(image))
    assert [warning for warning in recwarn if issubclass(warning.category, torch.jit.TracerWarning)] == []
