"""Error bars of differences between files, against the textbook's."""

import math
from statistics import fmean, stdev

import pytest

from benchmarks.paired import Difference, PerFrame, difference, over_sets

FIRST, SECOND = [0.9, 0.7, 0.8, 0.95, 0.6, 0.85], [0.8, 0.75, 0.7, 0.9, 0.65, 0.6]
APART = [a - b for a, b in zip(FIRST, SECOND, strict=True)]


def test_where_each_frame_is_a_scene_the_error_is_that_of_a_mean():
    found = difference(FIRST, SECOND, list("abcdef"))
    assert found.mean == pytest.approx(fmean(APART))
    assert found.error == pytest.approx(stdev(APART) / math.sqrt(6))


def test_frames_of_one_scene_count_as_one_where_all_scenes_are_as_large():
    found = difference(FIRST, SECOND, list("aabbcc"))
    means = [fmean(APART[start : start + 2]) for start in (0, 2, 4)]
    assert found.mean == pytest.approx(fmean(means))
    assert found.error == pytest.approx(stdev(means) / math.sqrt(3))
    again = difference(FIRST * 5, SECOND * 5, list("aabbcc") * 5)  # more of the same says nothing new
    assert again.error == pytest.approx(found.error)


def test_a_single_scene_has_no_error_and_no_verdict():
    found = difference(FIRST, SECOND, ["a"] * 6)
    assert found.error is None
    assert (str(found), found.verdict) == ("+6.7", "open")


def test_sets_count_once_each():
    found = over_sets([Difference(0.01, 0.2), Difference(0.03, None), Difference(0.08, 0.1)])
    assert found.mean == pytest.approx(0.04)
    assert found.error == pytest.approx(stdev([0.01, 0.03, 0.08]) / math.sqrt(3))


@pytest.mark.parametrize(("mean", "verdict"), [(0.021, "yes"), (0.019, "open"), (-0.019, "open"), (-0.021, "no")])
def test_a_difference_is_clear_beyond_two_standard_errors(mean, verdict):
    assert Difference(mean, 0.01).verdict == verdict
    assert str(Difference(-0.021, 0.0104)) == "-2.1 ± 1.0"


def test_frames_without_a_known_pixel_are_left_out(tmp_path):
    lines = ["set,frame,scene,vertical_ramp,a,b", "x,0,p,0.5,0.9,0.8", "x,1,q,0.5,0.7,0.8", "x,2,q,nan,nan,nan"]
    (tmp_path / "frames.csv").write_text("\n".join(lines))
    frames = PerFrame(tmp_path)
    assert frames.difference("a", "b", "x").mean == pytest.approx(0)
    assert frames.difference("a", "b", "x").error == pytest.approx(0.1)
    assert frames.scenes("x") == 2
