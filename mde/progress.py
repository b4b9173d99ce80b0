"""A progress bar in the terminal."""

from collections.abc import Iterable
from typing import TypeVar

import rich.progress
from rich.markup import escape

from mde.names import plain

Item = TypeVar("Item")


def track(items: Iterable[Item], title: str, total: int | None = None, *, transient: bool = False) -> Iterable[Item]:
    """`items`, with a bar under `title`, which is text whatever it holds: rich would take [red] for a colour.

    total: how many there are, where `items` does not say. transient: the bar goes when they are through.
    """
    return rich.progress.track(items, escape(plain(title)), total, transient=transient)
