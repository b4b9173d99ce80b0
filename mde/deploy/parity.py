"""Whether a deployed file computes what the PyTorch network does."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mde.data.sample import Frames, Sample
from mde.engines.runtime import Runtime, runtime_predictor
from mde.errors import MdeError
from mde.evaluation.quality import spread
from mde.jetson.depth import PARITY, differences
from mde.progress import track
from mde.report.pictures import picture_sheet, save_picture

ROUNDED = 0.9  # of the float network's distance, see check_rounding


@dataclass(frozen=True)
class Parity:
    """The largest and the mean difference from a network in PyTorch, as shares of each frame's output range, over
    `frames` frames."""

    largest: float
    mean: float
    frames: int
    worst: int  # index of the frame with the largest difference
    engine: str


def measure_parity(runtime: Runtime, network: Runtime, frames: Frames, count: int) -> Parity:
    """`runtime` against `network`, in PyTorch, on `count` of `frames`, spread evenly, at the network's size."""
    chosen = spread(len(frames), count)
    largest, means = [], []
    for index in track(chosen, f"parity in {runtime.description.engine}", transient=True):
        rgb = frames[index].image.permute(1, 2, 0).numpy()
        expected = network.infer(network.preprocess(rgb))
        most, mean = differences(runtime.infer(runtime.preprocess(rgb)), expected)
        largest.append(most)
        means.append(mean)
    worst = int(np.argmax(largest))
    return Parity(largest[worst], float(np.mean(means)), len(chosen), chosen[worst], runtime.description.engine)


def check_parity(parity: Parity, runtime: Runtime, network: Runtime, frames: Frames, pictures: Path) -> None:
    """MdeError where the precision's limit is exceeded; the worst frame is drawn, by both, to `pictures`. Integers must
    only be finite here: the gate on delta1 holds them, or `check_rounding`.
    """
    limit = PARITY.get(runtime.description.precision, sys.float_info.max)
    if parity.largest > limit:
        raise MdeError(
            f"{runtime.name}: differs from PyTorch by {parity.largest:.2g} of the output's range on frame "
            f"{parity.worst} of {frames.name}, {limit:g} is allowed; "
            + _drawn(frames[parity.worst], runtime, network, frames.cap, pictures)
        )


def check_rounding(
    parity: Parity, moved: Parity, runtime: Runtime, network: Runtime, frames: Frames, pictures: Path
) -> None:
    """MdeError unless `runtime` is nearer to `network`, which is fake-quantized, than the float network is (`moved`),
    on average; the worst frame is drawn, by both, to `pictures`.

    No fixed limit: rounding makes a whole step of a sum that differs in its last bit, and each step moves other values
    across their own edges, so that after dozens of layers two engines round partly at random. Their distance then is a
    share of what rounding does at all: a fifth to a half on trained networks, and a file that rounds nothing has 1.
    Below what even FP32 may differ by, nothing is told apart: an untrained network hardly moves when it is rounded.
    """
    if parity.mean > max(ROUNDED * moved.mean, PARITY["fp32"]):
        raise MdeError(
            f"{runtime.name}: differs from the fake-quantized network by {parity.mean:.2g} of the output's range on "
            f"average, the float network by {moved.mean:.2g}; "
            + _drawn(frames[parity.worst], runtime, network, frames.cap, pictures)
        )


def _drawn(sample: Sample, runtime: Runtime, network: Runtime, cap: float, pictures: Path) -> str:
    """Draws a frame as both see it, and says where."""
    expected, found = pictures / "parity_expected.png", pictures / "parity_found.png"
    for path, each in ((expected, network), (found, runtime)):
        save_picture(picture_sheet([sample], runtime_predictor(each), cap), path)
    return f"see {found} beside {expected.name}"
