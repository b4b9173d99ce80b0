import os
import signal

import pytest

from mde.atomic_file import atomic_file


def killed_while_writing(path):
    """Leaves what a process leaves that is killed in the middle of a write."""
    writer = os.fork()
    if writer == 0:
        with atomic_file(path) as file:
            file.write(b"half of it")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)


def test_what_a_killed_writer_left_goes_when_the_name_is_written_again(tmp_path):
    killed_while_writing(tmp_path / "model")
    killed_while_writing(tmp_path / "model.json")
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_file(tmp_path / "model") as file:
        file.write(b"whole")
    left = [path.name for path in tmp_path.iterdir() if path.name != "model"]
    assert len(left) == 1
    assert left[0].startswith(".model.json.")
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
