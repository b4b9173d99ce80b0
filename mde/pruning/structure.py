"""Which channels of a network belong together, and taking some of them away."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning as tp
from timm.layers import Attention
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.checkpoints import narrow_to
from mde.models.network import DepthNetwork

OUT, IN = 0, 1  # what a layer writes and what it reads; the axis of a convolution's weight
Member = tuple[str, int]
WRITERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
TOGETHER = (nn.LayerNorm, nn.GroupNorm)  # normalise several channels by one mean and variance


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together: channel i of every member is one and the same.

    name     of the first layer that writes these channels
    width    how many there are
    members  (module, axis) of each tensor to be sliced: OUT for what writes or normalises them, IN for what reads them
    starts   of the members where they do not begin at 0: where several groups are concatenated
    block    how many successive channels of a tensor are one of these: 64 for an attention's head. A tensor may then
             hold them several times over: an attention's first layer writes queries, keys and values of all heads
    """

    name: str
    width: int
    members: tuple[Member, ...]
    starts: Mapping[Member, int] = field(default_factory=dict)
    block: int = 1

    def positions(self, member: Member, length: int) -> Tensor:
        """(width, k): where each of the group's channels is among the `length` channels of a member."""
        if self.block > 1:
            return torch.arange(length).view(-1, self.width, self.block).movedim(1, 0).flatten(1)
        start = self.starts.get(member, 0)
        return torch.arange(start, start + self.width)[:, None]


def channel_groups(model: DepthNetwork) -> list[ChannelGroup]:
    """The groups of `model` that may lose channels, in the order of its modules; the predicted channel never may, nor
    what is normalised over channels, which would all change (a transformer's embedding width). An attention's heads are
    a group.

    Torch-Pruning traces the dependencies (Fang et al., DepGraph, CVPR 2023). Raises MdeError for a network that cannot
    be traced, or whose channels are reordered or repeated on their way, which no network here does.
    """
    names = {module: name for name, module in model.named_modules()}
    learned = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    try:
        model.requires_grad_()  # the tracer follows gradients
        image = next(model.parameters()).new_zeros(1, 3, 64, 64)
        # Not verbose: it would warn of parameters outside layers, an embedding's, which it prunes rightly.
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=image, verbose=False)
        found = list(graph.get_all_groups(root_module_types=list(WRITERS)))
    except Exception as error:  # the tracer has no errors of its own
        reason = " ".join(str(error).split())
        raise MdeError(f"{model.name}: its channels cannot be traced ({reason}); use prune=fine_grained") from error
    finally:
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training  # the tracer leaves everything in evaluation mode
        for parameter, requires_grad in zip(model.parameters(), learned, strict=True):
            parameter.requires_grad_(requires_grad)
    attentions = {name: module for module, name in names.items() if isinstance(module, Attention)}
    heads = [_heads(name, module) for name, module in attentions.items()]
    mixed = {member for group in heads for member in group.members}  # inside heads, which go as wholes
    groups = heads + [group for traced in found for group in _pieces(traced, names, mixed)]
    order = {name: position for position, name in enumerate(names.values())}
    return sorted(groups, key=lambda group: order[group.name])


def _heads(name: str, attention: Attention) -> ChannelGroup:
    members = ((f"{name}.qkv", OUT), (f"{name}.proj", IN))
    return ChannelGroup(f"{name}.qkv", attention.num_heads, members, block=attention.head_dim)


def _pieces(traced: tp.Group, names: Mapping[nn.Module, str], mixed: set[Member]) -> list[ChannelGroup]:
    """The groups in what Torch-Pruning traced, which are several where one layer writes what others concatenated: cut
    wherever a member begins or ends. Those that end in the network's output, are normalised over channels or have
    members in `mixed` are left out.
    """
    known = [item for item in traced if item.dep.target.module in names]
    if any(isinstance(item.dep.target.module, TOGETHER) or _member(item, names) in mixed for item in known):
        return []
    cuts = sorted({cut for item in traced for cut in (min(item.root_idxs), max(item.root_idxs) + 1)})
    pieces = [_group(traced, names, start, end) for start, end in itertools.pairwise(cuts)]
    return [piece for piece in pieces if piece is not None]


def _member(item: Any, names: Mapping[nn.Module, str]) -> Member:
    module = item.dep.target.module
    reads = item.dep.handler.__name__ == "prune_in_channels" and not depthwise(module)
    return names[module], IN if reads else OUT


def _group(traced: tp.Group, names: Mapping[nn.Module, str], start: int, end: int) -> ChannelGroup | None:
    """The group of the channels start ... end - 1 of the layer that was traced; None for the network's output."""
    starts: dict[Member, int] = {}
    for item in traced:
        module = item.dep.target.module
        indices = [index for index, root in zip(item.idxs, item.root_idxs, strict=True) if start <= root < end]
        if not indices:
            continue
        if item.dep.target.name.startswith("_OutputOp"):
            return None
        if module not in names:  # an operation without parameters
            continue
        in_order = indices == list(range(indices[0], indices[0] + end - start))
        if not in_order or starts.setdefault(_member(item, names), indices[0]) != indices[0]:
            raise MdeError(f"{names[module]}: its channels are mixed with others; use prune=fine_grained")
    for module, name in names.items():
        if (name, OUT) in starts and isinstance(module, WRITERS) and channels(module, OUT) == end - start:
            elsewhere = {member: first for member, first in starts.items() if first}
            return ChannelGroup(name, end - start, tuple(starts), elsewhere)
    raise MdeError(f"{names[traced[0].dep.target.module]}: its channels go apart; use prune=fine_grained")


def depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def tensor_axis(module: nn.Module, tensor: Tensor, axis: int) -> int | None:
    """Which axis of `tensor`, one of the module's, holds the channels that it writes (OUT) or reads (IN); None where
    none does.
    """
    if tensor.ndim <= axis:  # one-dimensional tensors belong to the channels written; a counter has none
        return None
    return 1 - axis if isinstance(module, nn.ConvTranspose2d) and tensor.ndim > 1 else axis


def channels(layer: nn.Module, axis: int) -> int:
    """How many it writes or reads."""
    weight = layer.get_parameter("weight")
    dim = tensor_axis(layer, weight, axis)
    assert dim is not None
    return weight.shape[dim]


def keep_channels(
    model: DepthNetwork,
    groups: list[ChannelGroup],
    keep: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Narrows `model` in place to the channels in `keep` (group name -> sorted indices); other groups stay whole.

    The parameters are new objects. `optimizer`, where given, takes them over: its groups keep their order and options,
    and whatever it remembers of a parameter elementwise (AdamW's moments) is narrowed alike.
    """
    slices = _slices(model, groups, keep)
    old = dict(model.state_dict(keep_vars=True))
    values = {name: _take(tensor.detach(), slices.get(name, {})) for name, tensor in old.items()}
    narrow_to(model, {name: tuple(tensor.shape) for name, tensor in values.items()})
    with torch.no_grad():
        for name, tensor in model.state_dict(keep_vars=True).items():
            tensor.copy_(values[name])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(old[name].requires_grad)
    if any(tensor.ndim == 4 and not tensor.is_contiguous() for tensor in old.values()):
        model.to(memory_format=torch.channels_last)  # new tensors are not
    if optimizer is not None:
        _hand_over(optimizer, old, dict(model.named_parameters()), slices)


def _slices(
    model: DepthNetwork, groups: list[ChannelGroup], keep: Mapping[str, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """Tensor name -> axis -> indices that stay."""
    masks: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        stays = torch.zeros(group.width, dtype=torch.bool)
        stays[keep[group.name].cpu()] = True
        if not stays.any():
            raise MdeError(f"{group.name}: would lose its last channel; lower the sparsity or prune.max_share")
        for member, axis in group.members:
            module = model.get_submodule(member)
            for kind, tensor in module.state_dict().items():
                dim = tensor_axis(module, tensor, axis)
                if dim is not None:
                    whole = torch.ones(tensor.shape[dim], dtype=torch.bool)
                    mask = masks.setdefault(f"{member}.{kind}", {}).setdefault(dim, whole)
                    mask[group.positions((member, axis), len(mask))[~stays]] = False
    device = next(model.parameters()).device
    return {
        name: {dim: mask.nonzero().flatten().to(device) for dim, mask in dims.items()} for name, dims in masks.items()
    }


def _take(tensor: Tensor, axes: Mapping[int, Tensor]) -> Tensor:
    for axis, indices in axes.items():
        tensor = tensor.index_select(axis, indices)
    return tensor.clone()


def _hand_over(
    optimizer: torch.optim.Optimizer,
    old: Mapping[str, Tensor],
    new: Mapping[str, nn.Parameter],
    slices: Mapping[str, Mapping[int, Tensor]],
) -> None:
    names = {id(tensor): name for name, tensor in old.items()}
    for options in optimizer.param_groups:
        before = options["params"]
        options["params"] = [new[names[id(parameter)]] for parameter in before]
        for parameter in before:
            if parameter not in optimizer.state:
                continue
            name = names[id(parameter)]
            optimizer.state[new[name]] = {
                key: _take(value, slices.get(name, {}))
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for key, value in optimizer.state.pop(parameter).items()
            }
