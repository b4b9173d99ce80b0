"""Which channels to remove for a wanted sparsity or budget: group by group, a width step at a time."""

import fnmatch
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mde.errors import MdeError
from mde.pruning.cost import Layer, cost
from mde.pruning.structure import ChannelGroup

WORK_POWER = 0.6  # with a sparsity s, s^0.6 of the work is meant to go: 66 % with half of the parameters
# Multiply-adds in whose time one element of a map is moved: what a processor computes over what its memory brings. That
# of a Jetson Nano is 18 (236 G multiply-adds and 25.6 GB a second, two bytes each); on a CPU with AVX-512 40 gave
# faster networks than 0, 10 and 20 did.
MOVE = 40
NEAR = 0.0005  # of the dense network's cost: where a search ends, and how far a step may go beyond
FLOOR = 0.01  # of the mean importance


@dataclass(frozen=True)
class Limits:
    """multiple   widths, in channels of a tensor, are rounded down to it, where a group is wider
    max_share  no group loses a larger share of the channels it had in the dense network
    layers     pattern of group names -> their own max_share, the first that matches
    """

    multiple: int
    max_share: float
    layers: Mapping[str, float]

    def step(self, block: int) -> int:
        """What a group's widths are multiples of, if each of its channels is `block` of a tensor's."""
        return -(-self.multiple // block)

    def least(self, name: str, dense_width: int, block: int = 1) -> int:
        """The smallest width that a group may have."""
        share = next((share for glob, share in self.layers.items() if fnmatch.fnmatch(name, glob)), self.max_share)
        least = max(1, round(dense_width * (1 - share)))
        step = self.step(block)
        return min(dense_width, -(-least // step) * step)


LayerCost = Callable[[Layer, Mapping[str, int]], float]


@dataclass(frozen=True, eq=False)
class Aim:
    """cost    what has to fall, a sum over layers
    target  how far
    """

    cost: LayerCost
    target: float


def sparsity_aims(layers: list[Layer], dense: Mapping[str, int], sparsity: float) -> list[Aim]:
    """Parameters down to (1 - sparsity) x the dense network's, and work along with them: multiply-adds and, MOVE times,
    elements of maps read and written.

    Parameters sit where the network is deep, work where its maps are large: without the second aim a network would lose
    the ones and stay as slow as it was.
    """
    work = sum(_work(layer, dense) for layer in layers)
    return [
        Aim(lambda layer, widths: layer.parameters(widths), (1 - sparsity) * cost(layers, dense).parameters),
        Aim(_work, (1 - sparsity**WORK_POWER) * work),
    ]


def _work(layer: Layer, widths: Mapping[str, int]) -> int:
    return layer.macs(widths) + MOVE * layer.moved(widths)


def macs_aims(macs: float) -> list[Aim]:
    """Multiply-adds of one image down to `macs`."""
    return [Aim(lambda layer, widths: layer.macs(widths), macs)]


class Search:
    """Widths on their way down, each step in the group where least importance is lost for what is gained."""

    def __init__(
        self,
        layers: list[Layer],
        groups: list[ChannelGroup],
        dense: Mapping[str, int],
        scores: Mapping[str, Tensor],
        limits: Limits,
        scope: str,
        aims: list[Aim],
    ):
        """aims   the first decides where the search ends; a step is worth what it brings the aim that lags most
        scope  "layer": steps are taken so that all groups lose like shares, whatever their importance
        """
        if scope not in ("global", "layer"):
            raise MdeError(f"prune.scope={scope}: unknown; choose global or layer")
        self.layers, self.dense, self.limits, self.scope, self.aims = layers, dense, limits, scope, aims
        self.start = {group.name: group.width for group in groups}
        self.block = {group.name: group.block for group in groups}
        self.widths = dict(self.start)
        everything = torch.cat(list(scores.values()))
        if not everything.isfinite().all():
            raise MdeError("importance: not finite; did the network's training diverge? choose importance=l1")
        if unknown := [glob for glob in limits.layers if not fnmatch.filter(self.start, glob)]:
            raise MdeError(f"prune.limits: {unknown[0]} names no group of channels; prune.scan=true lists them")
        if len(aims) > 1:
            # Some channels are not missed at all. Ranked by importance alone they would all go first, wherever they
            # are, and the aim that lags would never be heard.
            floor = FLOOR * float(everything.mean())
            scores = {name: score + floor for name, score in scores.items()}
        self.order = {name: score.argsort(stable=True) for name, score in scores.items()}  # least important first
        self.lost = {name: [0.0, *score.double().sort().values.cumsum(0).tolist()] for name, score in scores.items()}
        self.touching = {
            name: [layer for layer in layers if name in layer.reads or name in layer.writes] for name in self.widths
        }

    def run(self) -> dict[str, Tensor]:
        """Takes steps until the first aim is NEAR, or as near as a step allows.

        A step that goes beyond it is taken only where nothing else is left: the last step must not be the dearest.

        Returns group -> sorted indices that stay, of the groups that lost any. Raises MdeError when the limits do not
        let it come that far.
        """
        values = {aim: sum(aim.cost(layer, self.widths) for layer in self.layers) for aim in self.aims}
        ways = {aim: value - aim.target for aim, value in values.items() if value > aim.target}
        first = self.aims[0]
        near = NEAR * sum(first.cost(layer, self.dense) for layer in self.layers)
        while (missing := values[first] - first.target) > near:
            steps = self.steps()
            if not any(self.saving(first, name, width) > 0 for name, width in steps.items()):
                raise MdeError(
                    f"cannot be pruned that far: {values[first]:.4g} is the least that prune.max_share, prune.limits "
                    f"and prune.multiple leave, {first.target:.4g} is wanted; raise prune.max_share or ask for less"
                )
            lagging = sorted(ways, key=lambda aim: (values[aim] - aim.target) / ways[aim], reverse=True)
            fitting = {
                name: width for name, width in steps.items() if self.saving(first, name, width) <= missing + near
            }
            name = self.cheapest(lagging, fitting) or self.nearest(steps, missing)
            if not name:
                break
            values = {aim: value - self.saving(aim, name, steps[name]) for aim, value in values.items()}
            self.widths[name] = steps[name]
        return {
            name: self.order[name][self.start[name] - width :].sort().values
            for name, width in self.widths.items()
            if width < self.start[name]
        }

    def cheapest(self, aims: list[Aim], steps: Mapping[str, int]) -> str:
        """The step of the lowest price for the first of `aims` that any of them brings nearer; "" if none does."""
        for aim in aims:
            prices = {name: self.price(aim, name, width) for name, width in steps.items()}
            name = min(prices, key=lambda name: prices[name], default="")
            if name and prices[name] < math.inf:
                return name
        return ""

    def nearest(self, steps: Mapping[str, int], missing: float) -> str:
        """Where every step goes beyond the first aim: the one that ends nearest to it; "" if none is nearer."""
        ends = {name: abs(self.saving(self.aims[0], name, width) - missing) for name, width in steps.items()}
        name = min(ends, key=lambda name: ends[name])
        return name if ends[name] < missing else ""

    def steps(self) -> dict[str, int]:
        """Group -> its next smaller width, where it may go on."""
        following = {}
        for name, width in self.widths.items():
            step = self.limits.step(self.block[name])
            smaller = (width - 1) // step * step
            if smaller >= self.limits.least(name, self.dense[name], self.block[name]):
                following[name] = smaller
        return following

    def price(self, aim: Aim, name: str, width: int) -> float:
        """What decides which group is next, smallest first: importance lost for what the aim gains."""
        gain = self.saving(aim, name, width)
        if gain <= 0:
            return math.inf
        if self.scope == "layer":
            return 1 - width / self.dense[name]
        lost, start = self.lost[name], self.start[name]
        before, after = lost[start - self.widths[name]], lost[start - width]
        left = max(1 - after / lost[-1], 1e-9) if lost[-1] else 1.0
        # Over what is left of the group: scores are taken one channel at a time, yet the fewer are left the more each
        # is missed. Without this one group after the other would be emptied down to its limit.
        return (after - before) / left / gain

    def saving(self, aim: Aim, name: str, width: int) -> float:
        """How much the aim's cost falls when one group goes down to `width`."""
        after = self.widths | {name: width}
        return sum(aim.cost(layer, self.widths) - aim.cost(layer, after) for layer in self.touching[name])


def kept_after(earlier: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Indices in the dense network, when `now` is counted in the network that `earlier` left."""
    composed = dict(earlier)
    for name, indices in now.items():
        composed[name] = earlier[name][indices] if name in earlier else indices
    return composed
