"""What the system refuses is one line that says what to do; every other error stays what it is."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch._utils import ExceptionWrapper

import mde.app.entry
from mde.atomic_file import atomic_file, writing
from mde.cache import cache_folder
from mde.errors import MdeError
from mde.refused import NO_SHARED_MEMORY, refused
from tests.conftest import ROOT

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
BUS_ERROR = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
BUS_ERROR += "out of shared memory. Please try to raise your shared memory limit."


def system_error(number: int, *files: str) -> OSError:
    return OSError(number, os.strerror(number), *files)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised_from_none(error: Exception, handled: Exception) -> Exception:
    try:
        try:
            raise handled
        except type(handled):
            raise error from None
    except type(error) as caught:
        return caught


def from_worker(error: Exception) -> Exception:
    """As a loader hands it on: one text with the worker's traceback."""
    try:
        raise error
    except Exception:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(type(error)) as caught:
        wrapped.reraise()
    return caught.value


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FULL, "run: not written (No space left on device); free disk space"),
        (system_error(errno.EDQUOT, "/a/b.csv"), "/a/b.csv: not written (Disk quota exceeded); free disk space"),
        (system_error(errno.EROFS, "/a/b"), "/a/b: not written (Read-only file system); choose another folder"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "/a/b: no access (Permission denied); choose "),
        (system_error(errno.EMFILE, "/a/1.png"), "/a/1.png: not opened (Too many open files); raise the limit"),
        (from_worker(system_error(errno.EMFILE, "/a/1.png")), "/a/1.png: not opened (Too many open files); raise"),
        (from_worker(system_error(errno.EACCES, "/a/1.png")), "/a/1.png: no access (Permission denied); choose "),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "/a/x.log"), "/a/x.log: not opened (Is a directory); take "),
        (RuntimeError("received 0 items of ancdata"), "run: not opened (Too many open files); raise the limit"),
        (RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>: No space left"), NO_SHARED_MEMORY),
        (from_worker(RuntimeError("unable to write to file </torch_1_2>: No space left (28)")), NO_SHARED_MEMORY),
        (RuntimeError(BUS_ERROR), NO_SHARED_MEMORY),
        (caused(RuntimeError("worker (pid(s) 7) exited unexpectedly"), RuntimeError(BUS_ERROR)), NO_SHARED_MEMORY),
        (
            caused(ValueError("Error in call to target 'mde.data.x'"), FULL),
            "run: not written (No space left on device)",
        ),
    ],
)
def test_a_refusal_says_what_and_the_remedy(error: Exception, line: str) -> None:
    said = refused(error, "run")
    assert said is not None
    assert said.startswith(line)
    assert "\n" not in said


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
        ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("shared memory"),
        OSError("no number"),
        RuntimeError("Triton Error: out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
        RuntimeError("too many resources requested for launch; reduce shared memory"),
        raised_from_none(KeyError("bug"), PermissionError(errno.EACCES, "Permission denied", "/a/b")),
    ],
)
def test_an_error_of_another_kind_stays_one(error: Exception) -> None:
    assert refused(error, "run") is None


def test_a_full_disk_anywhere_in_a_job_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(_: object) -> None:
        with open("/dev/full", "w") as log:
            log.write("a row")

    monkeypatch.setattr(mde.app.entry, "_failed", [])
    config = OmegaConf.create({"sweep": {"resume": None}})
    with pytest.raises(SystemExit) as ended:
        mde.app.entry.run(lambda: mde.app.entry.job(task)(config))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(": not written (No space left on device); free disk space\n")
    assert said.count("\n") == 1


def test_an_error_of_ours_keeps_its_traceback() -> None:
    def task(_: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")

    with pytest.raises(FileNotFoundError):
        mde.app.entry.run(lambda: mde.app.entry.job(task)(OmegaConf.create({"sweep": {"resume": None}})))


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_text("before")

    def full(_: int) -> None:
        raise FULL

    monkeypatch.setattr(os, "fsync", full)
    message = r"a\.png: not written \(No space left on device\); free disk space$"
    with pytest.raises(MdeError, match=message), atomic_file(path) as file:
        file.write(b"after")
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {"a.png": "before"}


def test_a_file_that_grows_names_itself() -> None:
    path = Path("/dev/full")
    message = r"^/dev/full: not written \(No space left on device\); free disk space$"
    with pytest.raises(MdeError, match=message), writing(path), path.open("w") as file:
        file.write("a row")


def test_without_a_home_only_what_needs_a_cache_asks_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MDE_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(MdeError, match="set HOME, or MDE_CACHE to a folder"):
        cache_folder()
    monkeypatch.setenv("MDE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


LOADER = """
import subprocess, torch
from torch.utils.data import DataLoader
from mde.data.datamodule import in_shared_memory
from mde.refused import refused
images = [torch.zeros(1 << 18)] * 4
batches = dict(batch_size=4)
single = dict(batch_size=None, collate_fn=in_shared_memory)
for room, options in [(4096, batches), (65536, batches), (65536, single)]:  # bytes: 4096 do not hold the locks
    subprocess.run(["mount", "-o", f"remount,size={room}", "/dev/shm"], check=True)
    try:
        for _ in DataLoader(images, num_workers=1, **options):
            pass
        print("loaded")
    except Exception as error:
        print(refused(error, "run") or repr(error))
for image in DataLoader(images, num_workers=0, **single):  # the remedy
    assert not image.is_shared()
"""


def test_torch_says_what_we_read_when_shared_memory_is_full() -> None:
    mounted = ["unshare", "-m", "bash", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "-"]
    if os.geteuid() or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("mounts a small /dev/shm of its own, which needs root")
    done = subprocess.run(
        [*mounted, sys.executable, "-c", LOADER], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.stdout == f"{NO_SHARED_MEMORY}\n" * 3, done.stderr
    assert done.returncode == 0, done.stderr
