"""Names of people's things are text in every place that they come to, whatever is in them."""

from itertools import permutations
from pathlib import Path

import pytest
import rich.progress

from mde.names import LONGEST, file_name, plain, utf8
from mde.progress import track

HOSTILE = [
    "<script>alert(1)</script>",
    "[bold]x[/bold]",
    "[/nothing]",
    "\\[red]\\",
    "$x^{$",
    "$5_and_$6",
    "../../../x",
    "/etc/x",
    "nyu/test",
    "a\\b",
    "two\nlines",
    "\x1b[2J\x07",
    "\u202ereversed",
    "\udcff.png",
    "'\"&`;%",
    "_hidden",
    "..",
    " ",
    "日" * 300,
    "x" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_one_part_of_a_path_and_short_enough_for_one(name, tmp_path):
    part = file_name(name)
    path = tmp_path / f"{part}.png"
    path.write_bytes(b"")
    assert list(tmp_path.iterdir()) == [path]
    assert len(part) <= LONGEST
    assert Path(part).name == part
    assert file_name(part) == part


def test_two_names_stay_two_and_ordinary_ones_are_left_as_they_are():
    names = [*HOSTILE, "nyu_test", "a_b", "x" * 4999, "nyu:test"]
    assert all(file_name(one) != file_name(other) for one, other in permutations(names, 2))
    for name in ("nyu", "living room (2)", "Küche", "居間", "2011_09_26-drive.0001"):
        assert file_name(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_of_a_terminal_is_one_line_that_can_be_encoded(name):
    line = plain(name)
    assert len(line.splitlines()) == 1
    assert "\x1b" not in line
    assert line.encode()
    assert utf8(name).encode()
    if name.isprintable():
        assert plain(name) == utf8(name) == name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_progress_bar_shows_its_title_as_it_is(name, monkeypatch, capsys):
    monkeypatch.setattr(rich.get_console(), "_width", 6000)  # the process's own, which may be there already
    assert list(track([1, 2], name)) == [1, 2]
    assert plain(name).strip() in capsys.readouterr().out


def test_rich_would_have_taken_it_for_markup():
    with pytest.raises(rich.errors.MarkupError):
        list(rich.progress.track([1], "[/nothing]"))
