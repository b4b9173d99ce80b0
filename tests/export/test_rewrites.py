import copy

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from mde.export import deployable
from mde.export.rewrites import fold_batchnorm, normalised_convolutions
from mde.models.midas_small import BORDERS, Fusion
from tests.export import random_network

torch.set_num_threads(1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("narrowed", [False, True])
@pytest.mark.parametrize("border", BORDERS)
def test_the_rewritten_network_computes_the_same(
    border: str, narrowed: bool, dtype: torch.dtype, tolerance: float
) -> None:
    model = random_network(narrowed, border=border).to(dtype)
    rewritten = deployable(model)
    image = torch.randn(2, 3, 64, 96, dtype=dtype)
    with torch.no_grad():
        expected, output = model(image), rewritten(image)
    spread = expected.max() - expected.min()
    assert spread > 0.1 * expected.max()
    assert (output - expected).abs().max() <= tolerance * spread


@pytest.mark.parametrize("narrowed", [False, True])
def test_no_batchnorm_is_left_and_every_one_by_one_comes_first(narrowed: bool) -> None:
    rewritten = deployable(random_network(narrowed))
    assert not [module for module in rewritten.modules() if isinstance(module, _BatchNorm)]
    assert not any(module.reference for module in rewritten.modules() if isinstance(module, Fusion))


def test_the_head_doubles_inside_its_convolution_unless_kernels_must_stay() -> None:
    shapes = {name: parameter.shape for name, parameter in deployable(random_network()).named_parameters()}
    for border, same_kernels in (("zeros", False), ("replicate", True)):
        network = deployable(random_network(border=border), same_kernels=same_kernels)
        assert {name: parameter.shape for name, parameter in network.named_parameters()} == shapes
    folded = dict(deployable(random_network(border="replicate")).named_parameters())
    assert folded.keys() == shapes.keys()
    assert {name for name in shapes if folded[name].shape != shapes[name]} == {
        f"decoder.head.{layer}.{kind}" for layer in ("conv2", "conv3") for kind in ("weight", "bias")
    }
    assert folded["decoder.head.conv2.weight"].shape == (4 * 32, 32, 3, 3)


def test_the_original_is_untouched() -> None:
    model = random_network().train()
    before = copy.deepcopy(model.state_dict())
    rewritten = deployable(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert model.training
    assert model.reference
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not rewritten.training
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in rewritten.parameters()}


def test_a_batchnorm_is_paired_with_the_convolution_that_feeds_it_whatever_the_order_of_the_modules() -> None:
    class Crossed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_of_second, self.norm_of_sum = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
            self.first, self.second = torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm_of_sum(self.norm_of_second(self.second(x)) + self.first(x))

    model = Crossed().eval()
    assert normalised_convolutions(model) == {"norm_of_second": model.second}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("narrowed", [False, True])
def test_batchnorm_folded_in_place_changes_nothing_but_the_numbers(narrowed: bool) -> None:
    model = random_network(narrowed)
    folded = copy.deepcopy(model)
    fold_batchnorm(folded)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, output = model(image), folded(image)
    assert (output - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())
    shapes = [(name, tensor.shape) for name, tensor in model.state_dict().items()]
    assert shapes == [(name, tensor.shape) for name, tensor in folded.state_dict().items()]
    assert not torch.equal(folded.encoder.conv_stem.weight, model.encoder.conv_stem.weight)


def test_what_is_folded_is_folded_again_to_the_last_bit() -> None:
    model = random_network()
    fold_batchnorm(model)
    rewritten = deployable(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            assert torch.equal(rewritten.get_submodule(name).weight, module.weight), name
    for name, conv in normalised_convolutions(model).items():
        (place,) = (n for n, module in model.named_modules() if module is conv)
        assert torch.equal(rewritten.get_submodule(place).bias, model.get_submodule(name).bias), name
