"""Weights that are held at zero: single ones, two of every four, or whole layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.dpt import StandardisedConv2d
from mde.models.network import DepthNetwork

Masks = dict[str, Tensor]  # parameter name -> bool, of its shape: True stays


def fine_grained_masks(
    model: DepthNetwork, scores: Mapping[str, Tensor], sparsity: float, dense_parameters: int, scope: str
) -> Masks:
    """The least important single weights, so that (1 - sparsity) x dense_parameters of all parameters are not zero.

    scores  of the layers' weights, by name; norms, biases and embeddings stay
    scope   "global": one ranking over all layers; "layer": every layer loses the same share

    Raises MdeError when everything outside `scores` is already more than may stay.
    """
    if scope not in ("global", "layer"):
        raise MdeError(f"prune.scope={scope}: unknown; choose global or layer")
    others = sum(parameter.numel() for name, parameter in model.named_parameters() if name not in scores)
    stay = round((1 - sparsity) * dense_parameters) - others
    if stay < 0:
        least = others / dense_parameters
        raise MdeError(
            f"sparsity={sparsity:g}: norms, biases, embeddings and standardised kernels, which stay, are {least:.4f} "
            "of the parameters"
        )
    # What is zero already ranks below every other weight: it counts as pruned, whoever made it zero.
    ranks = {name: torch.where(model.get_parameter(name) == 0, -1, score).flatten() for name, score in scores.items()}
    if scope == "layer":
        share = stay / sum(rank.numel() for rank in ranks.values())
        kept = {name: _largest(rank, round(share * rank.numel())) for name, rank in ranks.items()}
    else:
        everything = _largest(torch.cat(list(ranks.values())), stay)
        kept = dict(zip(ranks, everything.split([rank.numel() for rank in ranks.values()]), strict=True))
    return {name: mask.view_as(scores[name]) for name, mask in kept.items()}


def two_four_masks(model: DepthNetwork, scores: Mapping[str, Tensor]) -> Masks:
    """The two most important of every four input channels at each place of each kernel: Ampere GPUs skip the others.

    Only where four channels can be formed and tensor cores are used: not the stem, not depthwise, not transposed, not
    the head.
    """
    masks = {}
    for name, score in scores.items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
        transposed = isinstance(layer, nn.ConvTranspose2d)
        if depthwise or transposed or score.shape[1] % 4 or score.shape[0] == 1 or ".head." in name:
            continue
        fours = score.unflatten(1, (-1, 4))
        best = fours.topk(2, dim=2).indices
        masks[name] = torch.zeros_like(fours, dtype=torch.bool).scatter_(2, best, True).flatten(1, 2)
    return masks


def layer_masks(model: DepthNetwork, sparsity: float, dense_parameters: int, rule: str) -> Masks:
    """Whole layers at zero, in order of their weights' mean magnitude: what the paper called channel pruning.

    rule  "share": the layers whose zeroed share of dense_parameters comes nearest to the sparsity, taken in that order;
          "count": the paper's, that share of the number of layers
    """
    weights = {name: model.get_parameter(name).detach() for name in layer_weights(model)}
    order = sorted(weights, key=lambda name: float(weights[name].abs().mean()))
    if rule == "count":
        chosen = order[: round(sparsity * len(order))]
    elif rule == "share":
        zeroed = [0]
        for name in order:
            zeroed.append(zeroed[-1] + weights[name].numel())
        chosen = order[: min(range(len(zeroed)), key=lambda n: abs(zeroed[n] / dense_parameters - sparsity))]
    else:
        raise MdeError(f"prune.rule={rule}: unknown; choose share or count")
    return {name: torch.zeros_like(weights[name], dtype=torch.bool) for name in chosen}


def layer_weights(model: nn.Module) -> list[str]:
    """Names of the weights of all convolutions and linear layers; not of those that are standardised before they are
    used: a zero there is none in what is computed.
    """
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    return [f"{name}.weight" for name, layer in layers.items() if not isinstance(layer, StandardisedConv2d)]


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Sets what the masks exclude to zero."""
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        parameter.masked_fill_(~mask.to(parameter.device), 0)


def _largest(values: Tensor, count: int) -> Tensor:
    """True at exactly `count` of the largest."""
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[values.topk(min(count, values.numel())).indices] = True
    return mask
