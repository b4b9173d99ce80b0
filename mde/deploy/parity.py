"""Whether a deployed file computes what the PyTorch network does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import track

from mde.data.sample import Frames
from mde.deploy.runtime import Runtime, runtime_predictor
from mde.errors import MdeError
from mde.evaluation import spread
from mde.report.pictures import picture_sheet

LIMITS = {"fp32": 1e-3, "fp16": 1e-2}  # largest difference, as a share of the output's range; int8 is gated by delta1


@dataclass(frozen=True)
class Parity:
    """The largest and the mean difference from PyTorch as shares of each frame's output range, over `frames` frames."""

    largest: float
    mean: float
    frames: int
    worst: int  # index of the frame with the largest difference
    engine: str


def measure_parity(runtime: Runtime, network: Runtime, frames: Frames, count: int) -> Parity:
    """`runtime` against `network`, FP32 in PyTorch, on `count` of `frames`, spread evenly, at the network's size."""
    chosen = spread(len(frames), count)
    largest, means = [], []
    for index in track(chosen, f"parity in {runtime.description.engine}", transient=True):
        rgb = frames[index].image.permute(1, 2, 0).numpy()
        expected = network.infer(network.preprocess(rgb))
        most, mean = difference(runtime.infer(runtime.preprocess(rgb)), expected)
        largest.append(most)
        means.append(mean)
    worst = int(np.argmax(largest))
    return Parity(largest[worst], float(np.mean(means)), len(chosen), chosen[worst], runtime.description.engine)


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """The largest and the mean difference, as shares of the range of `expected`."""
    apart = np.abs(found - expected)
    reach = max(float(np.ptp(expected)), float(np.finfo(np.float32).tiny))
    # NaN must not pass for small.
    return float(np.nan_to_num(apart, nan=np.inf).max()) / reach, float(apart.mean()) / reach


def check_parity(parity: Parity, runtime: Runtime, network: Runtime, frames: Frames, pictures: Path) -> None:
    """MdeError where the precision's limit is exceeded; the worst frame is drawn, by both, to `pictures`."""
    limit = LIMITS.get(runtime.description.precision)
    if limit is None or parity.largest <= limit:
        return
    pictures.mkdir(parents=True, exist_ok=True)
    files: Sequence[Path] = [pictures / "parity_expected.png", pictures / "parity_found.png"]
    for path, each in zip(files, (network, runtime), strict=True):
        picture_sheet([frames[parity.worst]], runtime_predictor(each), frames.cap).save(path)
    raise MdeError(
        f"{runtime.name}: differs from PyTorch by {parity.largest:.2g} of the output's range on frame {parity.worst} "
        f"of {frames.name}, {limit:g} is allowed; see {files[1]} beside {files[0].name}"
    )
