"""The order in which training frames are drawn: one global stream that any run, rank or resumption reads alike."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

_BLOCK = 4096  # draws whose parts are chosen together; the stream depends on it


class StreamSampler(Sampler[tuple[int, int]]):
    """Keys (k, index): draw k of the run takes frame `index` of the concatenated parts, a pure function of (seed, k).

    The part is drawn with probability proportional to its weight; within a part, frames follow a fresh permutation per
    pass, so every frame is seen once before any is seen again. Nothing depends on `total`, `start`, `rank` or `world`:
    rank r yields k = start + r, start + r + world, ... below total, so a global batch holds the same frames for any
    number of ranks, and a run resumed with `start` = draws already used continues the stream.

    lengths  frames in each part; weights  one per part, not all zero; seed  >= 0; total  draws of the whole run, best a
    multiple of the global batch so that all ranks take as many steps. Raises ValueError for impossible values.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[float],
        seed: int,
        total: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if len(lengths) != len(weights) or min(weights) < 0 or not 0 < sum(weights) < math.inf:
            raise ValueError(
                f"weights {list(weights)} do not suit {len(lengths)} parts: one each, none negative, not all 0"
            )
        if any(length < 1 for length, weight in zip(lengths, weights, strict=True) if weight > 0):
            raise ValueError(f"a part without frames cannot be drawn from: lengths {list(lengths)}")
        if not 0 <= rank < world or start < 0:
            raise ValueError(f"rank {rank} of {world} from draw {start}")
        self.lengths, self.weights = list(lengths), list(weights)
        self.seed, self.total, self.start, self.rank, self.world = seed, total, start, rank, world

    def __len__(self) -> int:
        # Of the whole run, not of what is left: Lightning counts the steps before a resumption itself.
        return max(0, math.ceil((self.total - self.rank) / self.world))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for k, index in enumerate(self._stream()):
            if k >= self.total:
                return
            if k >= self.start and (k - self.start) % self.world == self.rank:
                yield k, index

    def _stream(self) -> Iterator[int]:
        """The endless stream of indices from draw 0: to know how far each part is, its earlier draws are counted."""
        offsets = np.cumsum([0, *self.lengths])
        passes = [self._pass(part) for part in range(len(self.lengths))]
        for part in self._parts():
            yield int(offsets[part]) + next(passes[part])

    def _parts(self) -> Iterator[int]:
        edges = np.cumsum(self.weights) / np.sum(self.weights)
        edges[np.flatnonzero(self.weights)[-1] :] = 1.0  # rounding must not leave a gap below 1
        block = 0
        while True:
            draws = np.random.default_rng((self.seed, 0, block)).random(_BLOCK)
            yield from np.searchsorted(edges, draws, side="right").tolist()
            block += 1

    def _pass(self, part: int) -> Iterator[int]:
        number = 0
        while True:
            generator = np.random.default_rng((self.seed, 1, part, number))
            yield from generator.permutation(self.lengths[part]).tolist()
            number += 1
