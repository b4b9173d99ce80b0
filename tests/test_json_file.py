"""JSON of other people: errors name file and entry, and what is null is not there."""

import json

import pytest

from mde.errors import MdeError
from mde.json_file import read_json

CONTENT = {"text": "a", "number": 0.5, "whole": 3, "list": [1, 2.5], "object": {"inner": {"deep": "x", "none": None}}}


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(CONTENT | {"nothing": None}), encoding="utf-8-sig")
    return read_json(path, "mend it")


def test_entries_come_as_what_they_are(entries):
    assert (entries.entry("text", str), entries.entry("number", float), entries.entry("whole", int)) == ("a", 0.5, 3)
    assert type(entries.entry("whole", float)) is float
    assert entries.numbers("list", 2) == [1.0, 2.5]
    assert entries.choice("text", ("a", "b")) == "a"
    assert entries.entry("object", dict).entry("inner", dict).entry("deep", str) == "x"


def test_null_is_as_if_it_were_not_there(entries):
    assert "nothing" not in entries
    assert entries.entry("nothing", str, "default") == "default"
    assert list(entries.entry("object", dict).entry("inner", dict)) == ["deep"]
    with pytest.raises(MdeError, match=r"some\.json: nothing is missing, a number; mend it$"):
        entries.entry("nothing", float)


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda entries: entries.entry("number", str), "number must be text, not 0.5"),
        (lambda entries: entries.entry("number", int), "number must be a whole number, not 0.5"),
        (lambda entries: entries.entry("text", float), 'text must be a number, not "a"'),
        (lambda entries: entries.entry("list", dict), r"list must be an object, not \[1, 2.5\]"),
        (lambda entries: entries.entry("object", list), "object must be a list, not {.*"),
        (lambda entries: entries.numbers("list", 3), "list must be a list of 3 numbers"),
        (lambda entries: entries.choice("text", ("b", "c")), 'text must be b or c, not "a"'),
        (lambda entries: entries.entry("object", dict).entry("inner", str), "object.inner must be text, not .*"),
    ],
)
def test_an_entry_of_another_type_is_named_in_one_line(entries, ask, line):
    with pytest.raises(MdeError, match=rf"some\.json: {line}; mend it$") as caught:
        ask(entries)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["true", "NaN", "1" + 400 * "0", '"1"', "[1]", "{}"])
def test_what_looks_like_a_number_to_python_alone_is_none(tmp_path, value):
    (tmp_path / "a.json").write_text(f'{{"unit": {value}}}')
    with pytest.raises(MdeError, match=r"a\.json: unit must be a number, not "):
        read_json(tmp_path / "a.json", "mend it").entry("unit", float)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe{", b"[" * 100_000, b"1" * 5000])
def test_what_is_no_object_is_one_line(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(MdeError, match=r"a\.json: (not JSON|no JSON object).*; mend it$") as caught:
        read_json(tmp_path / "a.json", "mend it")
    assert "\n" not in str(caught.value)
