"""Training on several datasets at once."""

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mde.data.sample import Frames, Sample, Splits
from mde.errors import MdeError


class ConcatFrames:
    """Several datasets one after another; every sample keeps the name of its own.

    parts    the datasets; evaluation goes through them one by one, since each has its own cap and its own row
    lengths  frames of each, as StreamSampler takes them
    cap      the largest cap of the parts, metres
    """

    def __init__(self, parts: Sequence[Frames]):
        self.parts = list(parts)
        self.lengths = [len(part) for part in self.parts]
        self._ends = list(accumulate(self.lengths))
        self.name = "+".join(part.name for part in self.parts)
        self.cap = max(part.cap for part in self.parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - self._ends[part] + self.lengths[part]]


@dataclass
class MixedSplits(Splits):
    """Splits of several datasets: each part is a ConcatFrames; weights: shares of training draws, summing to 1."""

    train: ConcatFrames
    validation: ConcatFrames
    test: ConcatFrames | None = None
    note: str = ""
    weights: list[float] = field(default_factory=list)


def mix_splits(parts: Sequence[Splits], weights: Sequence[float] | None = None) -> MixedSplits:
    """Join the training, the validation and, where there are any, the test frames of several datasets.

    weights: the relative share of training draws of each dataset; None draws every frame equally often. A single
    dataset is a mixture of one. Raises MdeError when weights and datasets do not match or a weight is not positive.
    """
    if not parts:
        raise MdeError("data.parts is empty; name at least one dataset")
    train = ConcatFrames([part.train for part in parts])
    shares = [float(length) for length in train.lengths] if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(parts) or not all(0 < share < math.inf for share in shares):
        raise MdeError(f"data.weights {shares} do not suit {len(parts)} dataset(s); give one positive number for each")
    tests = [part.test for part in parts if part.test is not None]
    return MixedSplits(
        name="+".join(part.name for part in parts),
        train=train,
        validation=ConcatFrames([part.validation for part in parts]),
        test=ConcatFrames(tests) if tests else None,
        note="; ".join(f"{part.name}: {part.note}" for part in parts if part.note),
        weights=[share / sum(shares) for share in shares],
    )
