"""What a depth sensor yields: frames of colour with depth aligned to it, as a stream."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import numpy as np
import torch

from mde.data.sample import Sample


@dataclass(frozen=True)
class SensorFrame:
    """number      the sensor's own count of colour images: a gap is a frame that was lost
    time        seconds by the camera's clock
    rgb         uint8 (H, W, 3)
    depth       float32 (h, w), metres along colour's optical axis, 0 where unknown; a folder's may be coarser than rgb
    intrinsics  float64 (3, 3), of `rgb`; None where a recording does not say
    unit        metres in one count of the sensor's depth
    confidence  uint8 (h, w) on the depth sensor's own grid, before alignment; None where there is none
    capture_ms  waiting for the frame and reading it
    align_ms    masking and aligning its depth
    """

    number: int
    time: float
    rgb: np.ndarray
    depth: np.ndarray
    intrinsics: np.ndarray | None
    unit: float
    confidence: np.ndarray | None = None
    capture_ms: float = 0.0
    align_ms: float = 0.0

    def sample(self, dataset: str) -> Sample:
        """The frame as datasets yield theirs."""
        image = torch.from_numpy(self.rgb).permute(2, 0, 1).contiguous()
        depth = torch.from_numpy(self.depth)[None]
        intrinsics = None if self.intrinsics is None else torch.from_numpy(self.intrinsics).float()
        return Sample(image, depth, depth > 0, dataset, f"{self.number:06d}", intrinsics, self.unit)


@dataclass
class Account:
    """What a stream says of itself; `problem` is filled when it ends early.

    source       as the user named it           device, serial, firmware, library  as they call themselves
    unit         metres in one count of depth   size  height, width of colour
    live         a camera, which does not wait
    warmup       frames left out at the start
    lost         frames that the camera counted and that did not arrive
    notes        one line each, such as what was salvaged of a truncated recording
    problem      why it ended before its end: unplugged, damaged
    """

    source: str
    device: str = ""
    serial: str = ""
    firmware: str = ""
    library: str = ""
    unit: float = 0.001
    size: tuple[int, int] = (0, 0)
    live: bool = False
    warmup: int = 0
    lost: int = 0
    notes: list[str] = field(default_factory=list)
    problem: str | None = None
    _last: int | None = None

    def arrived(self, number: int) -> None:
        """Counts what is missing between the frame before and this one, by the camera's own numbers."""
        if self._last is not None and number > self._last:
            self.lost += number - self._last - 1
        self._last = number


class SensorStream(Protocol):
    """Frames of one camera or recording, to be gone through once, inside its context.

    name   of the dataset that the frames make up
    cap    metres; deeper truth is left out of evaluation
    count  of frames, None where unknown
    """

    name: str
    cap: float
    count: int | None
    account: Account

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...
    def __iter__(self) -> Iterator[SensorFrame]: ...
