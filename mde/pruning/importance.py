"""How much a network would miss a channel or a weight."""

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.network import DepthNetwork
from mde.pruning.structure import IN, ChannelGroup, Member, tensor_axis

Gradients = Iterable[Mapping[str, Tensor]]  # for each image alone: parameter name -> gradient of the loss


def channel_importance(
    model: DepthNetwork, groups: list[ChannelGroup], kind: str, gradients: Gradients | None = None
) -> dict[str, Tensor]:
    """Group name -> float (width,), at least 0: what removing each channel costs. Comparable between groups.

    l1, l2     mean of |w| or w^2 over the weights that write or read the channel, as a share of the same over the
               layer (so that no layer counts more for being larger), summed over the group's layers
    batchnorm  |scale| of its BatchNorms likewise (Liu et al., ICCV 2017); l1 in groups without, as in the decoder
    taylor     the squared first-order change of the loss when the channel is silenced, summed over images (Molchanov
               et al., CVPR 2019): (sum of gradient x weight over all weights that read the channel)^2; needs gradients
    """
    if kind in ("l1", "l2", "batchnorm"):
        return {group.name: _magnitude(model, group, kind) for group in groups}
    if kind == "taylor":
        assert gradients is not None
        return _sum({group.name: _taylor(model, group, image) for group in groups} for image in gradients)
    raise MdeError(f"importance.kind={kind}: not for channels; choose one of l1, l2, batchnorm, taylor")


def weight_importance(
    model: DepthNetwork, names: Iterable[str], kind: str, gradients: Gradients | None = None
) -> dict[str, Tensor]:
    """Parameter name -> float, of the parameter's shape, at least 0. Comparable between layers.

    l1, l2   |w|, w^2 (the same order)
    lamp     w^2 over the sum of squares of the weights in the layer that are not smaller (Lee et al., ICLR 2021): no
             layer loses its last weight before every other is down to one
    taylor   (gradient x weight)^2, summed over images; needs gradients
    """
    weights = {name: model.get_parameter(name).detach() for name in names}
    if kind == "taylor":
        assert gradients is not None
        return _sum({name: (image[name] * weight).square() for name, weight in weights.items()} for image in gradients)
    scores: dict[str, Callable[[Tensor], Tensor]] = {"l1": torch.abs, "l2": torch.square, "lamp": _lamp}
    if kind not in scores:
        raise MdeError(f"importance.kind={kind}: not for single weights; choose one of taylor, {', '.join(scores)}")
    return {name: scores[kind](weight) for name, weight in weights.items()}


def image_gradients(
    model: DepthNetwork, images: Iterable[Mapping[str, Tensor]], loss: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
) -> Iterator[dict[str, Tensor]]:
    """The loss's gradient with respect to every parameter, for each of `images` (batches of one) alone.

    One by one because averaging first would let images cancel. Leaves the model's own gradients alone.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    for image in images:
        with torch.enable_grad():
            gradients = torch.autograd.grad(loss(model(image["image"]), image), list(parameters.values()))
        yield dict(zip(parameters, gradients, strict=True))


def _sum(scores: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    for image in scores:
        total = {name: total.get(name, 0) + score for name, score in image.items()}
    return total


def _magnitude(model: DepthNetwork, group: ChannelGroup, kind: str) -> Tensor:
    norms = [member for member in group.members if isinstance(model.get_submodule(member[0]), nn.BatchNorm2d)]
    chosen = norms if kind == "batchnorm" and norms else [member for member in group.members if member not in norms]
    shares = []
    for name, axis in chosen:
        weight = model.get_parameter(f"{name}.weight").detach()
        weight = weight.square() if kind == "l2" else weight.abs()
        own = _by_channel(model, group, (name, axis), weight)
        # Of the whole layer's, which may read or write other groups as well.
        shares.append(own.sum(1) / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny))
    return torch.stack(shares).sum(0)


def _taylor(model: DepthNetwork, group: ChannelGroup, gradients: Mapping[str, Tensor]) -> Tensor:
    changes = [
        _by_channel(model, group, (name, axis), gradients[f"{name}.weight"] * model.get_parameter(f"{name}.weight"))
        for name, axis in group.members
        if axis == IN
    ]
    return torch.stack([change.detach().sum(1) for change in changes]).sum(0).square()


def _by_channel(model: DepthNetwork, group: ChannelGroup, member: Member, values: Tensor) -> Tensor:
    """Of `values` in the shape of a member's weight, those of each of the group's channels: (group.width, others)."""
    dim = tensor_axis(model.get_submodule(member[0]), values, member[1])
    assert dim is not None
    positions = group.positions(member, values.shape[dim]).to(values.device)
    return values.movedim(dim, 0)[positions].flatten(1)


def _lamp(weight: Tensor) -> Tensor:
    squares, order = weight.flatten().double().square().sort(descending=True)
    scores = torch.empty_like(squares)
    scores[order] = squares / squares.cumsum(0).clamp(min=torch.finfo(torch.float64).tiny)
    return scores.view_as(weight).float()
