"""Which residual blocks to take out: a narrow network spends its time on how many layers it has, not on their width."""

import copy

import torch
from torch import Tensor

from mde.errors import MdeError
from mde.models.network import DepthNetwork
from mde.models.residual import residual_blocks, take_out
from mde.pruning.recovery import absolute_statistics, difference, relative_statistics
from mde.report.terminal import say


def check_blocks(model: DepthNetwork, count: int) -> None:
    """MdeError when `model` has not so many residual blocks to take out."""
    if count > (blocks := len(residual_blocks(model))):
        raise MdeError(f"prune.blocks={count}: {model.name} has {blocks} residual blocks to take out; ask for less")


@torch.no_grad()
def take_out_blocks(
    model: DepthNetwork, images: Tensor, count: int, optimizer: torch.optim.Optimizer | None = None
) -> None:
    """Takes `count` residual blocks out of `model` (in evaluation mode), in place: one after the other the block
    without which the predictions for `images` (N, 3, H, W) differ least from what they were at first. BatchNorm's
    statistics follow; `optimizer` forgets what is gone.
    """
    wanted = model(images)
    for number in range(count):
        relative_statistics(model, images)
        changes = {}
        for name in residual_blocks(model):
            without = copy.deepcopy(model)
            take_out(without, [name])
            changes[name] = float(difference(absolute_statistics(without, images), wanted))
        name = min(changes, key=lambda name: changes[name])
        gone = {id(parameter) for parameter in model.get_submodule(name).parameters()}
        take_out(model, [name])
        absolute_statistics(model, images)
        if optimizer is not None:
            _forget(optimizer, gone)
        say(f"block {number + 1} of {count} taken out: {name}, predictions {changes[name]:.3f} of their spread away")


def _forget(optimizer: torch.optim.Optimizer, gone: set[int]) -> None:
    for options in optimizer.param_groups:
        for parameter in options["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        options["params"] = [parameter for parameter in options["params"] if id(parameter) not in gone]
