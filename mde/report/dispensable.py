"""What a run can do without: pictures, its page, W&B."""

from collections.abc import Iterator
from contextlib import contextmanager

from mde.errors import MdeError
from mde.report.terminal import say


@contextmanager
def dispensable(what: str, notes: list[str] | None = None) -> Iterator[None]:
    """An error in the block is said in a line, added to `notes`, and goes no further.

    Of every type: hours of training must not end with a font that is missing. What a run is for (network, record,
    checkpoints, logs; the pictures of `source=`) stays outside.
    """
    try:
        yield
    except Exception as error:
        line = f"left out: {what}: {reason(error)}"
        say(line)
        if notes is not None:
            notes.append(line)


def reason(error: Exception) -> str:
    """The first line of an error, with its type unless it is meant for people."""
    first = next(iter(str(error).strip().splitlines()), "")
    return first if isinstance(error, MdeError) else f"{type(error).__name__}: {first}".removesuffix(": ")
