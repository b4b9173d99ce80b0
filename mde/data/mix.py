"""Training on several datasets at once."""

import bisect
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
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


class Renamed:
    """A dataset under another name."""

    def __init__(self, frames: Frames, name: str):
        self.frames, self.name, self.cap = frames, name, frames.cap

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        return replace(self.frames[index], dataset=self.name)


@dataclass
class MixedSplits(Splits):
    """Splits of several datasets: each part is a ConcatFrames; weights: shares of training draws, summing to 1."""

    train: ConcatFrames
    validation: ConcatFrames
    test: ConcatFrames | None = None
    note: str = ""
    labelled: bool = True
    weights: list[float] = field(default_factory=list)


def mix_splits(parts: Mapping[str, Splits], weights: Mapping[str, float] | None = None) -> MixedSplits:
    """Join the training, the validation and, where there are any, the test frames of several datasets; of those without
    depth, beside others, the training frames alone.

    weights: the relative share of training draws of each part, under its key in `parts`; None draws every frame equally
    often. Sets of one name get that of their part behind it. Raises MdeError when weights and parts do not match or a
    weight is not positive.
    """
    if not parts:
        raise MdeError("data.parts is empty; name at least one dataset")
    evaluated = [key for key, part in parts.items() if part.labelled] or list(parts)[:1]
    parts = told_apart(parts, evaluated)
    splits = list(parts.values())
    train = ConcatFrames([part.train for part in splits])
    given = dict(zip(parts, train.lengths, strict=True)) if weights is None else dict(weights)
    if set(given) != set(parts) or not all(0 < weight < math.inf for weight in given.values()):
        raise MdeError(f"data.weights {given} do not suit: give one positive number for each of {', '.join(parts)}")
    seen = [parts[key] for key in evaluated]
    tests = [part.test for part in seen if part.test is not None]
    return MixedSplits(
        name="+".join(part.name for part in splits),
        train=train,
        validation=ConcatFrames([part.validation for part in seen]),
        test=ConcatFrames(tests) if tests else None,
        note="; ".join(f"{part.name}: {part.note}" for part in seen if part.note),
        labelled=all(part.labelled for part in splits),
        weights=[given[key] / sum(given.values()) for key in parts],
    )


def told_apart(parts: Mapping[str, Splits], evaluated: Collection[str]) -> dict[str, Splits]:
    """The parts, where sets that several of them call the same are called <name>_<part>: tables have a row for each
    name. Frames that validate or test count in the parts named in `evaluated`.
    """

    def sets(key: str) -> list[Frames]:
        part = parts[key]
        every = [part.train, part.validation, part.test] if key in evaluated else [part.train]
        return [frames for frames in every if frames is not None]

    count = Counter(name for key in parts for name in {frames.name for frames in sets(key)})

    def renamed(frames: Frames, key: str) -> Frames:
        return Renamed(frames, f"{frames.name}_{key}") if count[frames.name] > 1 else frames

    return {  # not by replace(): what Hydra built comes as OmegaConf's view of a Splits
        key: Splits(
            name=f"{part.name}_{key}" if count[part.name] > 1 else part.name,
            train=renamed(part.train, key),
            validation=renamed(part.validation, key),
            test=None if part.test is None else renamed(part.test, key),
            note=part.note,
            labelled=part.labelled,
        )
        for key, part in parts.items()
    }
