"""Writing a file so that its name never holds half of it."""

import contextlib
import fcntl
import functools
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mde.errors import MdeError
from mde.refused import OUTCOMES, remedy


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Yields an open binary file that becomes `path` when the block ends; missing folders are made.

    The bytes go to a temporary file in the same folder, to the disk, and only then to the name. If the block raises,
    an old file under that name is untouched and the temporary one is gone; of a process that was killed while it wrote,
    it is gone when another writes to that folder. MdeError when the system refuses to write (disk full, no permission);
    what the block meets elsewhere, where it reads from, stays what it is.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear(path.parent)
            file = temporary.open("xb")
        try:
            with file:
                with contextlib.suppress(OSError):  # a file system without locks: nothing is cleared there either
                    fcntl.flock(file, fcntl.LOCK_EX)  # the system's for as long as this process lives
                yield file
                with writing(path):
                    file.flush()
                    os.fsync(file.fileno())
                    os.replace(temporary, path)  # before the lock goes
        except OSError as error:
            if error.filename is not None or error.errno not in OUTCOMES:  # of writing to an open file
                raise
            raise _not_written(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """MdeError that names `path` where the system refuses what the block writes: for files that grow while they are
    written, and whose first part is worth having."""
    try:
        yield
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> MdeError:
    return MdeError(f"{path}: not written ({error.strerror or error}); {remedy(error)}")


@functools.cache  # once in a process: a folder may hold one file for each frame of a video
def _clear(folder: Path) -> None:
    """Removes what processes left there that were killed while they wrote; who still writes holds a lock."""
    left = re.compile(r"\..+\.[0-9a-f]{32}\.part")
    for entry in os.scandir(folder):
        if left.fullmatch(entry.name):
            # Empty: its writer may be about to lock it.
            with contextlib.suppress(OSError), open(entry.path, "rb") as file:
                if os.fstat(file.fileno()).st_size:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
