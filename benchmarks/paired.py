"""How far two files are apart on the same frames, with a standard error: from the frames.csv of a comparison.

Frames of one scene are alike, and scenes are what was drawn: the error is that of a mean over scenes of unequal size,
whose sums of deviations vary independently. Where each frame is a scene of its own this is the usual one, and of a
single scene nothing can be said. Over several sets, each counts once, and the error is that of a mean over sets.
"""

import csv
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

CLEAR = 2  # standard errors


@dataclass(frozen=True)
class Difference:
    """mean   of what the first file has more than the second
    error  standard error of the mean; None where it cannot be known
    """

    mean: float
    error: float | None

    def __str__(self) -> str:
        """In points: hundredths of delta1."""
        error = "" if self.error is None else f" ± {100 * self.error:.1f}"
        return f"{round(100 * self.mean, 1) + 0.0:+.1f}{error}"  # + 0.0: no minus before a zero

    @property
    def verdict(self) -> str:
        """Whether the first has more: yes, no, or open, when the error is too large to say."""
        if self.error is None or abs(self.mean) < CLEAR * self.error:
            return "open"
        return "yes" if self.mean > 0 else "no"


def difference(first: Sequence[float], second: Sequence[float], scenes: Sequence[str]) -> Difference:
    """Of figures of the same frames, of which `scenes` says where each was taken."""
    apart = [a - b for a, b in zip(first, second, strict=True)]
    mean, sums = fmean(apart), defaultdict(float)
    for each, scene in zip(apart, scenes, strict=True):
        sums[scene] += each - mean
    count = len(sums)
    if count < 2:
        return Difference(mean, None)
    variance = count / (count - 1) * sum(deviation**2 for deviation in sums.values())
    return Difference(mean, math.sqrt(variance) / len(apart))


def over_sets(differences: Sequence[Difference]) -> Difference:
    means = [each.mean for each in differences]
    return Difference(fmean(means), stdev(means) / math.sqrt(len(means)) if len(means) > 1 else None)


class PerFrame:
    """delta1 of every candidate on every frame."""

    def __init__(self, run_dir: Path):
        self.rows: dict[str, list[dict[str, str]]] = defaultdict(list)
        with open(run_dir / "frames.csv", newline="") as file:
            for row in csv.DictReader(file):
                if row["vertical_ramp"] != "nan":  # no pixel of it is known
                    self.rows[row["set"]].append(row)

    def difference(self, first: str, second: str, dataset: str) -> Difference:
        """`first` and `second`: names of columns."""
        rows = self.rows[dataset]
        figures = ([float(row[name]) for row in rows] for name in (first, second))
        return difference(*figures, [row["scene"] for row in rows])

    def scenes(self, dataset: str) -> int:
        return len({row["scene"] for row in self.rows[dataset]})
