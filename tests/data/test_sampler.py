from collections import Counter
from itertools import islice

import numpy as np
import pytest

from mde.data.sampler import StreamSampler

LENGTHS, WEIGHTS = (7, 40, 13), (0.2, 0.5, 0.3)


def stream(total=10_000, **options):
    return list(StreamSampler(LENGTHS, WEIGHTS, **({"seed": 3, "total": total} | options)))


def part_of(index):
    return int(np.searchsorted(np.cumsum(LENGTHS), index, side="right"))


def test_draws_are_numbered_and_lie_in_the_concatenation():
    keys = stream()
    assert [k for k, _ in keys] == list(range(10_000))
    assert {index for _, index in keys} == set(range(sum(LENGTHS)))


def test_every_frame_of_a_part_is_seen_once_per_pass():
    for part, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:part])
        drawn = [index for _, index in stream() if part_of(index) == part]
        passes = [drawn[i : i + length] for i in range(0, len(drawn) - length + 1, length)]
        assert len(passes) > 10
        assert all(sorted(one) == list(range(first, first + length)) for one in passes)
        assert passes[0] != passes[1]


def test_parts_are_drawn_by_weight():
    counts = Counter(part_of(index) for _, index in stream())
    for part, weight in enumerate(WEIGHTS):
        deviation = (10_000 * weight * (1 - weight)) ** 0.5
        assert abs(counts[part] - 10_000 * weight) < 5 * deviation


def test_draw_k_depends_on_the_seed_and_on_k_alone():
    assert stream() == stream()
    assert stream(total=100) == stream()[:100]
    assert stream(seed=4) != stream()
    assert list(StreamSampler(LENGTHS, [10 * w for w in WEIGHTS], 3, 100)) == stream(total=100)


@pytest.mark.parametrize("start", [1, 37, 4095, 4096, 9999, 10_000])
def test_a_resumed_stream_goes_on_exactly(start):
    assert stream(start=start) == stream()[start:]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_ranks_share_out_the_same_global_batches(world):
    start, batch = 24, 12
    ranks = [iter(stream(total=600, start=start, rank=rank, world=world)) for rank in range(world)]
    expected = stream(total=600)
    for step in range((600 - start) // batch):
        drawn = sorted(key for rank in ranks for key in islice(rank, batch // world))
        assert drawn == expected[start + step * batch : start + (step + 1) * batch]


@pytest.mark.parametrize("total", [0, 1, 10, 11])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 2), (1, 2), (2, 3)])
def test_the_length_is_the_ranks_share_of_the_whole_run_wherever_it_starts(total, rank, world):
    whole = StreamSampler(LENGTHS, WEIGHTS, 0, total, 0, rank, world)
    assert len(whole) == len(list(whole))
    assert len(StreamSampler(LENGTHS, WEIGHTS, 0, total, 3, rank, world)) == len(whole)


def test_a_part_of_weight_zero_is_never_drawn():
    assert all(index < 5 for _, index in StreamSampler([5, 9], [1, 0], 0, 5000))


@pytest.mark.parametrize(
    ("lengths", "weights", "rank"),
    [
        ([5], [1, 1], 0),
        ([5, 5], [1, -1], 0),
        ([5], [0], 0),
        ([0, 5], [1, 1], 0),
        ([5], [1], 1),
        ([5], [float("nan")], 0),
    ],
)
def test_impossible_streams_are_refused(lengths, weights, rank):
    with pytest.raises(ValueError, match=r".+"):
        StreamSampler(lengths, weights, 0, 10, rank=rank)
