"""As many layers in INT8 as accuracy allows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mde.errors import MdeError

T = TypeVar("T")


@dataclass(frozen=True)
class Gated(Generic[T]):
    """A quantized network that is accurate enough.

    network   what `quantize` returned for `excluded`
    delta1    its delta1, a share
    drop      what it lost against the float network; negative when it gained
    excluded  the layers that went back to float, most sensitive first
    """

    network: T
    delta1: float
    drop: float
    excluded: tuple[str, ...]


def quantize_within(
    quantize: Callable[[Sequence[str]], T],
    evaluate: Callable[[T], float],
    sensitivity: Callable[[], Mapping[str, float]],
    float_delta1: float,
    max_drop: float,
) -> Gated[T]:
    """Quantizes everything; if delta1 falls by more than `max_drop`, the most sensitive layers stay float: 1, 2, 4 ...
    until it holds, then the smallest number that does, by bisection (as if one layer more never harmed).

    quantize      the layers that stay float -> the network; called last with what is returned, so that it may write
                  the same file each time
    evaluate      the network -> delta1, a share
    sensitivity   layer -> any measure that orders them, empty where none can stay float; called where not everything
                  can be quantized
    float_delta1  delta1 of the float network

    MdeError when it does not hold with every layer in float.
    """
    layers: list[str] = []
    latest: list[Gated[T]] = []  # and no earlier one: open networks take memory

    def holds(count: int) -> bool:
        excluded = tuple(layers[:count])
        latest.clear()
        network = quantize(excluded)
        delta1 = evaluate(network)
        latest.append(Gated(network, delta1, float_delta1 - delta1, excluded))
        return float_delta1 - delta1 <= max_drop

    if holds(0):
        return latest[0]
    costs = sensitivity()
    layers += sorted(costs, key=lambda layer: (-costs[layer], layer))
    if not layers:
        raise MdeError(
            f"quantize.max_drop={max_drop:g}: delta1 falls by {latest[0].drop:.3g}; choose another precision"
        )
    below, count = 0, 1
    while not holds(count):
        if count == len(layers):
            raise MdeError(
                f"quantize.max_drop={max_drop:g}: delta1 falls by {latest[0].drop:.3g} with every layer in float; "
                "this is no matter of INT8: check the export, or evaluate more frames"
            )
        below, count = count, min(2 * count, len(layers))
    while count - below > 1:
        middle = (below + count) // 2
        below, count = (below, middle) if holds(middle) else (middle, count)
    if count != len(latest[0].excluded):
        holds(count)
    return latest[0]
