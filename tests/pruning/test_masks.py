import itertools
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from mde.errors import MdeError
from mde.models.midas_small import MidasSmall
from mde.pruning.importance import weight_importance
from mde.pruning.masks import apply_masks, fine_grained_masks, layer_masks, layer_weights, two_four_masks
from mde.pruning.structure import channel_groups, keep_channels
from tests.pruning.test_structure import lively, output_of

LITE3 = 16_600_929


def without_zeros(encoder: str = "lite0") -> MidasSmall:
    """Biases of zero would count as pruned. Narrow, so that sorting it is quick, but for lite3."""
    model = lively(encoder)
    if encoder != "lite3":
        groups = channel_groups(model)
        keep_channels(model, groups, {group.name: torch.arange(min(group.width, 32)) for group in groups})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[parameter == 0] = 0.01
    return model


def scores_of(model: MidasSmall, kind: str = "l1") -> dict[str, Tensor]:
    return weight_importance(model, layer_weights(model), kind)


def parameters(model: MidasSmall) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def nonzero(model: MidasSmall) -> int:
    return sum(int((parameter != 0).sum()) for parameter in model.parameters())


def prune(model: MidasSmall, sparsity: float, scope: str = "global", kind: str = "l1") -> dict[str, Tensor]:
    masks = fine_grained_masks(model, scores_of(model, kind), sparsity, parameters(model), scope)
    apply_masks(model, masks)
    return masks


def test_midas_small_keeps_exactly_what_was_asked_for():
    model = without_zeros("lite3")
    assert nonzero(model) == LITE3
    for sparsity in (0.5, 0.99):
        prune(model, sparsity)
        assert nonzero(model) == round((1 - sparsity) * LITE3)


@pytest.mark.parametrize("kind", ["l2", "lamp"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9])
def test_one_ranking_keeps_exactly_what_was_asked_for(sparsity, kind):
    model = without_zeros()
    prune(model, sparsity, kind=kind)
    assert nonzero(model) == round((1 - sparsity) * parameters(model))


@pytest.mark.parametrize("sparsity", [0.3, 0.95])
def test_one_ranking_keeps_the_largest_of_the_whole_network(sparsity):
    model = without_zeros()
    names = layer_weights(model)
    weights = np.concatenate([model.get_parameter(name).detach().numpy().ravel() for name in names])
    others = parameters(model) - weights.size
    masks = prune(model, sparsity)
    kept = np.concatenate([masks[name].numpy().ravel() for name in names])
    stay = round((1 - sparsity) * parameters(model)) - others
    threshold = np.sort(np.abs(weights))[-stay]
    assert kept.sum() == stay
    assert kept[np.abs(weights) > threshold].all()
    assert not kept[np.abs(weights) < threshold].any()


def test_layer_scope_keeps_the_same_share_of_every_layer_and_there_the_largest():
    model = without_zeros()
    weights = {name: model.get_parameter(name).detach().abs() for name in layer_weights(model)}
    weights = {name: weight.clone() for name, weight in weights.items()}
    masks = prune(model, 0.7, "layer")
    total = sum(weight.numel() for weight in weights.values())
    share = (0.3 * parameters(model) - (parameters(model) - total)) / total
    assert set(masks) == set(weights)
    for name, mask in masks.items():
        assert int(mask.sum()) == pytest.approx(share * mask.numel(), abs=1)
        if not mask.all():
            assert weights[name][mask].min() >= weights[name][~mask].max()
    assert nonzero(model) == pytest.approx(0.3 * parameters(model), abs=len(masks))


def test_lamp_leaves_every_layer_a_weight():
    model = without_zeros()
    others = parameters(model) - sum(model.get_parameter(name).numel() for name in layer_weights(model))
    names = layer_weights(model)
    scores = scores_of(model, "lamp")
    masks = fine_grained_masks(
        model, scores, 1 - (others + 2 * len(names)) / parameters(model), parameters(model), "global"
    )
    assert sum(int(mask.sum()) for mask in masks.values()) == 2 * len(names)
    assert all(mask.any() for mask in masks.values())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_what_is_zero_already_counts_as_pruned(scope):
    model = without_zeros()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in layer_weights(model):
            weight = model.get_parameter(name)
            weight[torch.rand(weight.shape, generator=random) < 0.4] = 0
    zeros = {name: model.get_parameter(name).detach() == 0 for name in layer_weights(model)}
    # A criterion that takes zeros for important, as any does for which gradients count alone.
    scores = {name: torch.rand(zero.shape, generator=random) + zero for name, zero in zeros.items()}
    masks = fine_grained_masks(model, scores, 0.6, parameters(model), scope)
    assert not any((masks[name] & zero).any() for name, zero in zeros.items())
    apply_masks(model, masks)
    assert nonzero(model) == pytest.approx(0.4 * parameters(model), abs=1 if scope == "global" else len(masks))


def test_pruning_on_only_ever_adds_zeros():
    model = without_zeros()
    before: Mapping[str, Tensor] = {}
    for sparsity in (0.2, 0.5, 0.8):
        masks = prune(model, sparsity)
        assert not any((masks[name] & ~mask).any() for name, mask in before.items())
        before = masks


def test_more_than_all_weights_cannot_go():
    model = without_zeros()
    with pytest.raises(MdeError, match="norms, biases, embeddings and") as caught:
        prune(model, 0.9999)
    assert "\n" not in str(caught.value)
    with pytest.raises(MdeError, match="scope=local"):
        prune(model, 0.5, "local")


def test_two_of_every_four_input_channels_stay_the_largest():
    model = without_zeros()
    masks = two_four_masks(model, scores_of(model))
    for name, mask in masks.items():
        weight, kept = model.get_parameter(name).detach().abs().numpy(), mask.numpy()
        out, channels, height, width = kept.shape
        places = [(0, 0, 0), (out - 1, height - 1, width - 1), (out // 2, 0, width // 2)]
        for (o, y, x), start in itertools.product(places, range(0, channels, 4)):
            four = weight[o, start : start + 4, y, x]
            assert set(np.flatnonzero(kept[o, start : start + 4, y, x])) == set(np.argsort(four)[2:])
        assert (kept.reshape(out, channels // 4, 4, height, width).sum(axis=2) == 2).all()


def test_two_of_four_leaves_out_the_stem_depthwise_layers_and_the_head():
    model = without_zeros()
    masks = two_four_masks(model, scores_of(model))
    for name in layer_weights(model):
        convolution = model.get_submodule(name.removesuffix(".weight"))
        left_out = name == "encoder.conv_stem.weight" or convolution.groups != 1 or name.startswith("decoder.head.")
        assert (name in masks) != left_out
    assert sum(mask.numel() for mask in masks.values()) > 0.8 * parameters(model)


def slow_layers(model: MidasSmall, sparsity: float, rule: str) -> set[str]:
    """Adds one layer after another, the weakest first, and remembers the best set so far."""
    order = sorted(layer_weights(model), key=lambda name: np.abs(model.get_parameter(name).detach()).mean().item())
    best, nearest = [], sparsity
    for count in range(len(order) + 1):
        gone = sum(model.get_parameter(name).numel() for name in order[:count])
        share = gone / parameters(model) if rule == "share" else count / len(order)
        if abs(share - sparsity) < nearest - 1e-12:
            best, nearest = order[:count], abs(share - sparsity)
    return set(best)


@pytest.mark.parametrize("rule", ["share", "count"])
@pytest.mark.parametrize("sparsity", [0.0, 0.02, 0.1, 0.5, 0.9])
def test_the_weakest_layers_go_as_a_whole(sparsity, rule):
    model = without_zeros()
    masks = layer_masks(model, sparsity, parameters(model), rule)
    assert set(masks) == slow_layers(model, sparsity, rule)
    apply_masks(model, masks)
    assert all(not model.get_parameter(name).any() for name in masks)
    assert all(model.get_parameter(name).all() for name in set(layer_weights(model)) - set(masks))


def test_an_unknown_rule_is_an_error():
    with pytest.raises(MdeError, match="rule=paper"):
        layer_masks(MidasSmall("lite0"), 0.1, 1, "paper")


def test_masks_leave_other_weights_and_the_networks_running():
    model = without_zeros()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    masks = two_four_masks(model, scores_of(model))
    apply_masks(model, masks)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name] * masks[name] if name in masks else before[name])
    output_of(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_survives_under_a_mask(value):
    model = without_zeros()
    masks = two_four_masks(model, scores_of(model))
    with torch.no_grad():
        for name in masks:
            model.get_parameter(name).fill_(value)
    apply_masks(model, masks)
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any()
        assert not model.get_parameter(name)[mask].isfinite().any()
