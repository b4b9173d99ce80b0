import itertools
import math

import pytest

from mde.errors import MdeError
from mde.pruning.schedule import Schedule

KINDS = ("one_shot", "linear", "cubic")
# start, end, interval; the third interval does not divide its length, the fourth is longer than it
SPANS = [(0, 80, 10), (100, 900, 100), (5, 36, 7), (3, 10, 50), (4, 4, 1), (0, 0, 3)]


def done(start: int, end: int, interval: int, step: int) -> float:
    """Prunings done at `step` over all there are: one at `start`, one each interval, one at `end`."""
    prunings = sorted({*range(start, end, interval), end})
    return sum(pruning <= step for pruning in prunings) / len(prunings)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("kind", KINDS)
def test_shares_equal_the_formula(kind, span):
    start, end, interval = span
    schedule = Schedule(kind, start, end, interval)
    for step in range(end + 20):
        t = done(start, end, interval, step)
        wanted = {"one_shot": float(step >= start), "linear": t, "cubic": 1 - (1 - t) ** 3}[kind]
        assert schedule.share(step) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("kind", KINDS)
def test_shares_rise_from_nothing_before_the_start_to_exactly_all_at_the_end(kind, span):
    start, end, _ = span
    schedule = Schedule(kind, *span)
    shares = [schedule.share(step) for step in range(-1, end + 20)]
    assert shares == sorted(shares)
    assert set(shares[: start + 1]) == {0.0}
    assert schedule.share(start) > 0
    assert set(shares[end + 1 :]) == {1.0}


def test_half_way_of_two_prunings():
    assert Schedule("linear", 10, 20, 10).share(10) == 0.5
    assert Schedule("cubic", 10, 20, 10).share(10) == 0.875
    assert Schedule("one_shot", 10, 20, 10).share(10) == 1.0


def test_cubic_takes_less_each_time_and_linear_the_same():
    steps = {}
    for kind in ("linear", "cubic"):
        schedule = Schedule(kind, 0, 80, 10)
        shares = [0.0, *(schedule.share(step) for step in range(0, 81, 10))]
        steps[kind] = [after - before for before, after in itertools.pairwise(shares)]
    assert all(math.isclose(step, 1 / 9) for step in steps["linear"])
    assert all(after < before for before, after in itertools.pairwise(steps["cubic"]))


@pytest.mark.parametrize(
    "values", [("quadratic", 0, 10, 1), ("linear", -1, 10, 1), ("linear", 10, 9, 1), ("linear", 0, 10, 0)]
)
def test_nonsense_is_refused(values):
    with pytest.raises(MdeError, match="schedule") as caught:
        Schedule(*values)
    assert "\n" not in str(caught.value)
