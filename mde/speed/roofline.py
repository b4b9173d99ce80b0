"""How long a network takes at least on a device whose data sheet is known: a roofline (Williams, Waterman and
Patterson, Communications of the ACM 52, 2009).

A layer takes no less than its arithmetic at the device's peak rate, and no less than its maps and weights once through
memory; layers run one after the other. Boards take longer: no kernel reaches the peak, launches cost time, clocks fall.
Two things can be faster than this bound: a cache that holds whole maps, and a convolution by fewer multiplications than
its definition has (Winograd). So it is an estimate, and what a device does is known from a measurement on it alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mde.errors import MdeError

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}  # of one number, weights as well as maps


@dataclass(frozen=True)
class Roofline:
    """operations  per second at most, of which a multiply-add is two
    bandwidth   of the memory, bytes per second at most
    element     bytes of one number
    """

    operations: float
    bandwidth: float
    element: int

    @classmethod
    def of(cls, peak: Mapping[str, float], bandwidth: float | None, precision: str) -> "Roofline":
        """From 10^9 operations/s by precision and 10^9 bytes/s. MdeError where they say nothing of the precision."""
        if not peak.get(precision) or not bandwidth:
            raise MdeError(
                f"device.peak, device.bandwidth: unknown for {precision}; give both, or choose another device="
            )
        return cls(1e9 * peak[precision], 1e9 * bandwidth, BYTES[precision])

    def ms(self, macs: float, elements: float) -> float:
        """Of one layer: multiply-adds, and numbers read or written."""
        return 1000 * max(2 * macs / self.operations, self.element * elements / self.bandwidth)


@dataclass(frozen=True)
class Work:
    """What one layer has to do for one image: multiply-adds, and numbers it reads or writes, weights included."""

    macs: int
    elements: int


def work_of(network: nn.Module, size: tuple[int, int]) -> list[Work]:
    """Of each layer of `network`, float32 (1, 3, H, W) -> anything, for an image of `size`.

    Convolutions and matrix products: their operands and result. Upsampling: the same. An addition of two maps is fused
    into the layer that made one of them and reads the other. Activations, padding and BatchNorm are fused and free.
    """
    parameter = next(network.parameters())
    with torch.no_grad(), _Counter() as counter:
        network(torch.zeros(1, 3, *size, device=parameter.device, dtype=parameter.dtype))
    return counter.found


def estimate(network: nn.Module, size: tuple[int, int], roofline: Roofline, precision: str) -> dict[str, Any]:
    """The `latency` entry of metrics.json, status "estimate": `p50_ms` is a lower bound. Everything counts as computed
    in `precision`, what quantization leaves in float too.
    """
    layers = work_of(network, size)
    ms = sum(roofline.ms(layer.macs, layer.elements) for layer in layers)
    return {
        "status": "estimate",
        "precision": precision,
        "p50_ms": ms,
        "fps": 1000 / ms,
        "speedup_vs_reference": None,
        "macs": sum(layer.macs for layer in layers),
        "bytes": roofline.element * sum(layer.elements for layer in layers),
    }


class _Counter(TorchDispatchMode):
    """Writes down the work of every operator that runs within it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Work] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operator = func.overloadpacket
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if operator in flop_registry:
            flops = flop_registry[operator](*args, **(kwargs or {}), out_val=out)
            self.found.append(Work(flops // 2, sum(map(_read, tensors)) + out.numel()))
        elif operator == torch.ops.aten.upsample_bilinear2d:
            self.found.append(Work(0, tensors[0].numel() + out.numel()))
        elif operator == torch.ops.aten.add and len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
            self.found.append(Work(0, tensors[1].numel()))
        elif operator == torch.ops.aten.constant_pad_nd:
            out.unpadded = tensors[0]
        return out


def _read(operand: Tensor) -> int:
    """Its numbers; a border of zeros is not read."""
    unpadded: Tensor = getattr(operand, "unpadded", operand)
    return unpadded.numel()
