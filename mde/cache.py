"""The folder for what is fetched or built once on a machine."""

import os
from pathlib import Path

from mde.errors import MdeError


def cache_folder() -> Path:
    """`MDE_CACHE`, else ~/.cache/mde. Asked for where a file goes there and not before: MdeError without a home."""
    if folder := os.environ.get("MDE_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "mde"
    except RuntimeError as error:  # a user without an entry in passwd: docker --user, systemd, cron
        raise MdeError("no home directory to keep files in; set HOME, or MDE_CACHE to a folder") from error
