import copy

import pytest
import torch

from mde.models.counts import multiply_adds
from mde.models.midas_small import MidasSmall
from mde.pruning.cost import cost, dense_widths, layers_of
from mde.pruning.structure import channel_groups, keep_channels
from tests.pruning.test_structure import lively, some

SIZE = (64, 96)


def counted(model: MidasSmall, size: tuple[int, int] = SIZE) -> tuple[int, int]:
    return sum(parameter.numel() for parameter in model.parameters()), multiply_adds(model, size)


def test_midas_small_has_the_published_number_of_parameters():
    model = MidasSmall("lite3").eval()
    groups = channel_groups(model)
    found = cost(layers_of(model, groups, (256, 256)), dense_widths(model, groups))
    assert found.parameters == 16_600_929
    assert (found.parameters, found.macs) == counted(model, (256, 256))


@pytest.mark.parametrize("seed", range(4))
def test_the_cost_of_any_widths_is_what_the_network_built_with_them_has(seed):
    model = lively()
    groups = channel_groups(model)
    layers = layers_of(model, groups, SIZE)
    keep = some(groups, seed=seed)
    narrowed = copy.deepcopy(model)
    keep_channels(narrowed, groups, keep)
    found = cost(layers, {name: len(indices) for name, indices in keep.items()})
    assert (found.parameters, found.macs) == counted(narrowed)


def test_the_elements_moved_are_those_of_the_maps_that_convolutions_read_and_write():
    model = lively()
    groups = channel_groups(model)
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda _, args, output, name=name: sizes.__setitem__(name, args[0].numel() + output.numel())
            )
    layers, widths = layers_of(model, groups, SIZE), dense_widths(model, groups)
    assert {layer.name: layer.moved(widths) for layer in layers if layer.area} == sizes


@pytest.mark.parametrize("least", [1, 9])
def test_a_narrowed_network_counts_like_a_dense_one(least):
    model = lively()
    groups = channel_groups(model)
    dense = dense_widths(model, groups)
    assert dense == {group.name: group.width for group in groups}
    width = {1: 1, 9: 9}[least]
    keep_channels(model, groups, {name: indices[:width] for name, indices in some(groups, least=least).items()})
    narrowed = channel_groups(model)
    found = cost(layers_of(model, narrowed, SIZE), {group.name: group.width for group in narrowed})
    assert (found.parameters, found.macs) == counted(model)
    now = dense_widths(model, narrowed)
    assert all(now[name] == width for name, width in dense.items() if name in now)


def test_looking_at_a_network_in_training_changes_no_statistics():
    model = lively()
    groups = channel_groups(model)
    model.train()
    before = copy.deepcopy(model.state_dict())
    layers_of(model, groups, SIZE)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
