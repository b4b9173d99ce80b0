import errno
import os
import re
import signal

import pytest

from mde.atomic_file import atomic_file
from mde.errors import MdeError


def killed_while_writing(path):
    """Leaves what a process leaves that is killed in the middle of a write."""
    writer = os.fork()
    if writer == 0:
        with atomic_file(path) as file:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)


def test_what_killed_writers_left_goes_when_another_process_writes_there(tmp_path):
    killed_while_writing(tmp_path / "model")
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["model"]
    killed_while_writing(tmp_path / "other")
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["other"]
    with atomic_file(tmp_path / "model") as file:
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_bytes() == b"whole"


def test_who_still_writes_is_left_alone(tmp_path):
    with atomic_file(tmp_path / "model") as slow:
        slow.write(b"slow")
        slow.flush()
        with atomic_file(tmp_path / "model") as fast:
            fast.write(b"fast")
        assert (tmp_path / "model").read_bytes() == b"fast"
    assert (tmp_path / "model").read_bytes() == b"slow"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "model").write_bytes(b"old")
    with pytest.raises(TypeError), atomic_file(tmp_path / "model") as file:
        file.writelines([b"new", None])  # type: ignore[list-item]
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_folder_is_looked_through_once(tmp_path, monkeypatch):
    """A video's frames are a file each: every one would look at all before it."""
    looked = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looked.append(folder) or scan(folder))
    for name in "abc":
        with atomic_file(tmp_path / name) as file:
            file.write(b"whole")
    assert looked == [tmp_path]


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/frames/1.png"),
        PermissionError(errno.EACCES, "Permission denied", "/frames/1.png"),
        OSError("no number"),
    ],
)
def test_what_the_block_meets_elsewhere_is_not_laid_on_the_file(tmp_path, error):
    with pytest.raises(type(error), match=re.escape(str(error))) as caught, atomic_file(tmp_path / "model"):
        raise error
    assert caught.value is error
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_in_the_block_is_named(tmp_path):
    with pytest.raises(MdeError, match=r"model: not written \(No space left"), atomic_file(tmp_path / "model"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
