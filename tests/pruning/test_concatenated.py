"""Groups of channels that are concatenated on their way, as GuideDepth's are."""

import copy

import pytest
import torch
import torch_pruning as tp
from torch import nn

from mde.models.guidedepth import GuideDepth
from mde.pruning.cost import cost, dense_widths, layers_of
from mde.pruning.importance import channel_importance
from mde.pruning.structure import IN, OUT, channel_groups, keep_channels
from mde.records import multiply_adds
from tests.pruning.test_structure import images, output_of, some

GUIDE, FEATURES = "decoder.guided2.guide.3", "decoder.guided2.features.3"  # concatenated in this order: features, guide
BRANCH = "encoder.pyramid.scales.3.2"  # added to another's channels, which are the fourth of five concatenated parts


def lively() -> GuideDepth:
    torch.manual_seed(0)
    model = GuideDepth("small").eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return model


def test_the_groups_that_share_an_axis_divide_it_between_them():
    model = lively()
    spans: dict[tuple[str, int], list[tuple[int, int]]] = {}
    for group in channel_groups(model):
        for member in group.members:
            start = group.starts.get(member, 0)
            spans.setdefault(member, []).append((start, start + group.width))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            if module.in_channels > 3:
                assert _covers(spans[name, IN], module.in_channels), name
            if name != "decoder.predict":
                assert _covers(spans[name, OUT], module.out_channels), name
        elif isinstance(module, nn.BatchNorm2d):
            assert _covers(spans[name, OUT], module.num_features), name
    assert spans["decoder.guided2.combine.0", IN] == [(0, 4), (4, 8)]


def _covers(spans: list[tuple[int, int]], width: int) -> bool:
    return sorted(channel for start, stop in spans for channel in range(start, stop)) == list(range(width))


@pytest.mark.parametrize("chosen", [[GUIDE], [FEATURES], [BRANCH], None], ids=lambda names: (names or ["all"])[0])
def test_pruning_equals_torch_prunings_own(chosen):
    model = lively()
    groups = channel_groups(model)
    keep = some([group for group in groups if chosen is None or group.name in chosen], least=2)
    assert len(keep) == len(chosen or groups)
    theirs = copy.deepcopy(model).requires_grad_()
    for group in groups:
        if group.name in keep:
            graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=images())
            gone = sorted(set(range(group.width)) - set(keep[group.name].tolist()))
            writer = theirs.get_submodule(group.name)
            graph.get_pruning_group(writer, tp.prune_conv_out_channels, gone).prune()
    keep_channels(model, groups, keep)
    expected = theirs.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    torch.testing.assert_close(output_of(model), output_of(theirs), rtol=0, atol=0)


@pytest.mark.parametrize("name", [GUIDE, FEATURES, BRANCH])
def test_the_pruned_network_is_the_dense_one_with_those_channels_silenced(name):
    model = lively()
    groups = channel_groups(model)
    (group,) = (group for group in groups if group.name == name)
    keep = some([group])
    gone = sorted(set(range(group.width)) - set(keep[name].tolist()))
    assert gone
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for member, axis in group.members:
            if axis == IN:
                start = group.starts.get((member, axis), 0)
                silenced.get_parameter(f"{member}.weight")[:, [start + channel for channel in gone]] = 0
    dense = output_of(model)
    keep_channels(model, groups, keep)
    torch.testing.assert_close(output_of(model), output_of(silenced), rtol=1e-4, atol=1e-5)
    assert (output_of(model) - dense).abs().max() > 1e-4


def test_what_a_narrowed_network_costs_is_known_before_it_is_built():
    model = lively()
    groups = channel_groups(model)
    layers = layers_of(model, groups, (64, 96))
    assert dense_widths(model, groups) == {group.name: group.width for group in groups}
    keep = some(groups, least=2)
    predicted = cost(layers, {name: len(indices) for name, indices in keep.items()})
    keep_channels(model, groups, keep)
    assert predicted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert predicted.macs == multiply_adds(model, (64, 96))


@pytest.mark.parametrize("kind", ["l1", "l2", "taylor"])
@pytest.mark.parametrize("name", [GUIDE, BRANCH])
def test_a_channel_without_weights_is_the_one_that_is_not_missed(name, kind):
    model = lively()
    groups = channel_groups(model)
    (group,) = (group for group in groups if group.name == name)
    with torch.no_grad():
        for member, axis in group.members:
            module = model.get_submodule(member)
            if isinstance(module, nn.Conv2d):
                start = group.starts.get((member, axis), 0)
                module.weight.movedim(axis, 0)[start + 2] = 0
    random = torch.Generator().manual_seed(0)
    gradients = [{key: torch.randn(p.shape, generator=random) for key, p in model.named_parameters()}]
    score = channel_importance(model, [group], kind, gradients)[name]
    assert score.shape == (group.width,)
    assert (score == 0).nonzero().flatten().tolist() == [2]
