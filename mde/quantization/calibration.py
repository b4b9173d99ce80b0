"""Images that show a quantizer which values the network sees."""

from collections.abc import Sequence

import numpy as np

from mde.errors import MdeError


def check_calibration(frames: Sequence[np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> None:
    """MdeError when `frames` (each a graph's input of `shape` and `dtype`) are none, all alike, or not such inputs."""
    if not frames:
        raise MdeError("no calibration frames: INT8 needs images like those the network will see; set quantize.frames")
    for number, frame in enumerate(frames):
        if frame.shape != shape or frame.dtype != dtype:
            raise MdeError(
                f"calibration frame {number} is {frame.dtype} {frame.shape}, the graph takes {np.dtype(dtype)} "
                f"{shape}: resize the frames to the graph's input"
            )
    if all(np.array_equal(frame, frames[0]) for frame in frames[1:]) or all(np.ptp(frame) == 0 for frame in frames):
        raise MdeError(
            f"the {len(frames)} calibration frames are all alike: one image does not show the range of values; "
            "take frames of several scenes"
        )
