"""Which channels of a network belong together, and taking some of them away."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models.checkpoints import narrow_to
from mde.models.network import DepthNetwork

OUT, IN = 0, 1  # the axis of a convolution's weight


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only go together: channel i of every member is one and the same.

    name     of the first convolution that writes these channels
    width    how many there are
    members  (module, axis) of each tensor to be sliced: OUT for what writes or normalises them, IN for what reads them
    """

    name: str
    width: int
    members: tuple[tuple[str, int], ...]


def channel_groups(model: DepthNetwork) -> list[ChannelGroup]:
    """The groups of `model` that may lose channels, in the order of its modules; the predicted channel never may.

    Torch-Pruning traces the dependencies (Fang et al., DepGraph, CVPR 2023). Raises MdeError for a network that cannot
    be traced, or whose channels are concatenated or reshaped on their way, which no network here does.
    """
    names = {module: name for name, module in model.named_modules()}
    learned = [parameter.requires_grad for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    try:
        model.requires_grad_()  # the tracer follows gradients
        image = next(model.parameters()).new_zeros(1, 3, 64, 64)
        graph = tp.DependencyGraph().build_dependency(model, example_inputs=image)
        found = list(graph.get_all_groups(root_module_types=[nn.Conv2d]))
    except Exception as error:  # the tracer has no errors of its own
        reason = " ".join(str(error).split())
        raise MdeError(f"{model.name}: its channels cannot be traced ({reason}); use prune=fine_grained") from error
    finally:
        for module, training in zip(model.modules(), modes, strict=True):
            module.training = training  # the tracer leaves everything in evaluation mode
        for parameter, requires_grad in zip(model.parameters(), learned, strict=True):
            parameter.requires_grad_(requires_grad)
    groups = [group for traced in found if (group := _group(traced, names)) is not None]
    order = {name: position for position, name in enumerate(names.values())}
    return sorted(groups, key=lambda group: order[group.name])


def _group(traced: tp.Group, names: Mapping[nn.Module, str]) -> ChannelGroup | None:
    """The group that Torch-Pruning traced; None for one that ends in the network's output."""
    width, members = len(traced[0].idxs), []
    for dependency, indices in traced:
        module = dependency.target.module
        if dependency.target.name.startswith("_OutputOp"):
            return None
        if module not in names:  # an operation without parameters
            continue
        if list(indices) != list(range(width)):
            raise MdeError(f"{names[module]}: its channels are mixed with others; use prune=fine_grained")
        depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
        reads = dependency.handler.__name__ == "prune_in_channels" and not depthwise
        members.append((names[module], IN if reads else OUT))
    unique = tuple(dict.fromkeys(members))
    first = next(name for name in names.values() if (name, OUT) in unique)
    return ChannelGroup(first, width, unique)


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
    slices: dict[str, dict[int, Tensor]] = {}
    for group in groups:
        if group.name not in keep:
            continue
        indices = keep[group.name]
        if not len(indices):
            raise MdeError(f"{group.name}: would lose its last channel; lower the sparsity or prune.max_share")
        for member, axis in group.members:
            for kind, tensor in model.get_submodule(member).state_dict().items():
                if tensor.ndim > axis:  # one-dimensional tensors belong to the channels written; a counter has none
                    slices.setdefault(f"{member}.{kind}", {})[axis] = indices.to(tensor.device)
    return slices


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
