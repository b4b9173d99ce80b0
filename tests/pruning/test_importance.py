import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from mde.errors import MdeError
from mde.models.midas_small import MidasSmall
from mde.pruning.importance import channel_importance, image_gradients, weight_importance
from mde.pruning.masks import layer_weights
from mde.pruning.structure import IN, ChannelGroup, channel_groups
from tests.pruning.test_structure import EXPANSION, FUSED, HEAD, STEM, STREAM, images, lively, writing

CHOSEN = (STEM, EXPANSION, STREAM, FUSED, HEAD)


def chosen_groups(model: MidasSmall) -> list[ChannelGroup]:
    groups = channel_groups(model)
    return [writing(groups, name) for name in CHOSEN]


def values(model: MidasSmall, name: str) -> np.ndarray:
    return model.get_parameter(f"{name}.weight").detach().numpy().astype(np.float64)


def loss(prediction: Tensor, image: Mapping[str, Tensor]) -> Tensor:
    """Smooth, and different for each pixel."""
    return (prediction * image["wanted"]).mean() + (prediction**2).mean()


def batches(count: int, dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    random = torch.Generator().manual_seed(7)
    return [
        {
            "image": images(seed=seed, size=32).to(dtype),
            "wanted": torch.randn(1, 1, 32, 32, generator=random, dtype=dtype),
        }
        for seed in range(count)
    ]


@pytest.mark.parametrize("kind", ["l1", "l2", "batchnorm"])
def test_magnitudes_of_channels_equal_a_slow_reference(kind):
    model = lively()
    found = channel_importance(model, chosen_groups(model), kind)
    for group in chosen_groups(model):
        norms = [name for name, _ in group.members if values(model, name).ndim == 1]
        shares = []
        for name, axis in group.members:
            weight = values(model, name)
            if kind == "batchnorm" and norms:
                if name not in norms:
                    continue
                layer = [abs(weight[channel]) for channel in range(group.width)]
            elif name in norms:
                continue
            else:
                power = 2 if kind == "l2" else 1
                layer = [np.mean(np.abs(np.take(weight, channel, axis)) ** power) for channel in range(group.width)]
            shares.append(np.array(layer) / sum(layer))
        np.testing.assert_allclose(found[group.name].numpy(), np.sum(shares, axis=0), rtol=1e-4)


@pytest.mark.parametrize("kind", ["l1", "l2", "batchnorm"])
def test_no_group_counts_more_for_larger_weights(kind):
    model = lively()
    groups = chosen_groups(model)
    before = channel_importance(model, groups, kind)
    with torch.no_grad():
        for name, _ in writing(groups, FUSED).members + writing(groups, STREAM).members:
            model.get_parameter(f"{name}.weight").mul_(50)
    after = channel_importance(model, groups, kind)
    assert all(torch.allclose(after[name], score, rtol=1e-4) for name, score in before.items())


def test_taylor_is_the_loss_s_squared_slope_when_a_channel_fades():
    model = lively().double()
    groups = chosen_groups(lively())
    samples = batches(2, torch.float64)
    found = channel_importance(model, groups, "taylor", image_gradients(model, samples, loss))

    def loss_when(group: ChannelGroup, channel: int, factor: float, sample: dict[str, Tensor]) -> float:
        readers = [model.get_parameter(f"{name}.weight") for name, axis in group.members if axis == IN]
        with torch.no_grad():
            before = [weight[:, channel].clone() for weight in readers]
            for weight in readers:
                weight[:, channel] *= factor
            value = loss(model(sample["image"]), sample).item()
            for weight, old in zip(readers, before, strict=True):
                weight[:, channel] = old
        return value

    step = 1e-6
    for group in groups:
        for channel in (0, group.width - 1):
            slopes = [
                (loss_when(group, channel, 1 + step, sample) - loss_when(group, channel, 1 - step, sample)) / (2 * step)
                for sample in samples
            ]
            assert found[group.name][channel].item() == pytest.approx(sum(s**2 for s in slopes), rel=1e-3, abs=1e-15)


def test_images_do_not_cancel_one_another():
    model = lively()
    groups = chosen_groups(model)
    gradients = next(iter(image_gradients(model, batches(1), loss)))
    opposite = {name: -gradient for name, gradient in gradients.items()}
    once = channel_importance(model, groups, "taylor", [gradients])
    both = channel_importance(model, groups, "taylor", [gradients, opposite])
    names = layer_weights(model)
    once |= weight_importance(model, names, "taylor", [gradients])
    both |= weight_importance(model, names, "taylor", [gradients, opposite])
    assert all(torch.allclose(both[name], 2 * score) for name, score in once.items())


def test_gradients_are_those_of_each_image_alone_and_the_models_own_stay():
    model = lively()
    samples = batches(2)
    for sample, gradients in zip(samples, image_gradients(model, samples, loss), strict=True):
        alone = copy.deepcopy(model)
        loss(alone(sample["image"]), sample).backward()
        assert set(gradients) == {name for name, _ in model.named_parameters()}
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["l1", "l2", "taylor"])
def test_scores_of_weights_equal_a_slow_reference(kind):
    model = lively()
    names = ["encoder.conv_stem.weight", "encoder.blocks.2.1.conv_dw.weight", "decoder.head.conv3.weight"]
    gradients = list(image_gradients(model, batches(2), loss))
    found = weight_importance(model, names, kind, gradients)
    for name in names:
        weight = values(model, name.removesuffix(".weight"))
        wanted = {
            "l1": np.abs(weight),
            "l2": weight**2,
            "taylor": sum((image[name].numpy().astype(np.float64) * weight) ** 2 for image in gradients),
        }[kind]
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-4, atol=1e-30)


def test_lamp_equals_a_slow_double_loop():
    model = lively()
    names = ["encoder.blocks.0.0.conv_dw.weight", "decoder.head.conv3.weight"]
    found = weight_importance(model, names, "lamp")
    for name in names:
        squares = [float(w) ** 2 for w in model.get_parameter(name).detach().flatten()]
        wanted = [square / sum(other for other in squares if other >= square) for square in squares]
        np.testing.assert_allclose(found[name].flatten().numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["l1", "l2", "batchnorm", "taylor", "lamp"])
def test_scores_are_finite_and_never_negative_also_where_a_layer_is_zero(kind):
    model = lively()
    groups = channel_groups(model)
    with torch.no_grad():
        for name in ("encoder.blocks.2.1.conv_pw", "encoder.blocks.2.1.bn1", FUSED, HEAD, "decoder.head.conv2"):
            model.get_parameter(f"{name}.weight").zero_()
    gradients = list(image_gradients(model, batches(1), loss)) if kind == "taylor" else None
    scores: list[Tensor] = []
    if kind != "lamp":
        found = channel_importance(model, groups, kind, gradients)
        assert {name: score.shape for name, score in found.items()} == {g.name: (g.width,) for g in groups}
        scores += found.values()
    if kind != "batchnorm":
        of_weights = weight_importance(model, layer_weights(model), kind, gradients)
        assert all(score.shape == model.get_parameter(name).shape for name, score in of_weights.items())
        scores += of_weights.values()
    assert all(score.isfinite().all() and (score >= 0).all() for score in scores)


def test_criteria_are_refused_where_they_say_nothing():
    model = MidasSmall("lite0")
    with pytest.raises(MdeError, match="l1, l2, batchnorm, taylor"):
        channel_importance(model, [], "lamp")
    with pytest.raises(MdeError, match="lamp"):
        weight_importance(model, [], "batchnorm")
