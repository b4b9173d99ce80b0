"""JSON that people and other programs wrote: whatever stands in it, an error names the file and the entry."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mde.errors import MdeError

KINDS = {str: "text", float: "a number", int: "a whole number", dict: "an object", list: "a list"}
REQUIRED: Any = object()
LARGEST = 10**300  # of whole numbers: a larger one may be no float


class Entries(Mapping[str, Any]):
    """An object of a JSON file. An entry that is null is none, so that a program may write all that it knows of.

    file    as errors call it; place: of the object inside the file, ending in a dot; "" for the whole
    remedy  what to do when an entry is missing or of another type
    """

    def __init__(self, values: Mapping[str, Any], file: str, remedy: str, place: str = ""):
        self._values = {key: value for key, value in values.items() if value is not None}
        self.file, self.remedy, self.place = file, remedy, place

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def entry(self, key: str, kind: type, default: Any = REQUIRED) -> Any:
        """The entry, which is of the `kind`, one of KINDS; an object comes as Entries. Without it the default, and
        MdeError where there is none either, or for an entry of another kind.
        """
        if key not in self._values:
            if default is REQUIRED:
                raise self.error(key, f"is missing, {KINDS[kind]}")
            return default
        value = self._values[key]
        if not _is(value, kind):
            shown = json.dumps(value, ensure_ascii=False)
            raise self.error(key, f"must be {KINDS[kind]}, not {shown if len(shown) <= 40 else shown[:37] + '...'}")
        if kind is dict:
            return Entries(value, self.file, self.remedy, f"{self.place}{key}.")
        return float(value) if kind is float else value

    def choice(self, key: str, choices: Sequence[str], default: Any = REQUIRED) -> str:
        """A text, one of `choices`. MdeError for anything else."""
        value = self.entry(key, str, default)
        if value not in choices:
            raise self.error(key, f"must be {' or '.join(choices)}, not {json.dumps(value, ensure_ascii=False)}")
        return value

    def numbers(self, key: str, count: int | None = None) -> list[float]:
        """A list of numbers, `count` of them. MdeError for anything else."""
        values = self.entry(key, list)
        if not all(_is(value, float) for value in values) or count not in (None, len(values)):
            raise self.error(key, f"must be a list of {count or ''} numbers".replace("  ", " "))
        return [float(value) for value in values]

    def error(self, key: str, reason: str) -> MdeError:
        return MdeError(f"{self.file}: {self.place}{key} {reason}; {self.remedy}")


def read_json(path: Path, remedy: str, file: str = "") -> Entries:
    """The object in a file. `file`: what errors call it, its path by default. MdeError when it cannot be read, is no
    JSON, or no object.
    """
    file = file or str(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # editors on Windows begin a file with a mark
    except OSError as error:
        raise MdeError(f"{file}: cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise MdeError(f"{file}: not JSON ({error}); {remedy}") from None
    if not isinstance(content, dict):
        raise MdeError(f"{file}: no JSON object, which begins with {{; {remedy}")
    return Entries(content, file, remedy)


def _is(value: Any, kind: type) -> bool:
    if kind is float and type(value) is int:
        return abs(value) < LARGEST
    return type(value) is kind and value == value  # a bool is an int to Python, and to nobody else; NaN is not itself
