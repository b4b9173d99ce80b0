"""The official weights: fetched once, checked, kept in a cache folder."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.models.checkpoints import load_official
from mde.models.midas_small import MidasSmall

URL = "https://github.com/isl-org/MiDaS/releases/download/v2_1/midas_v21_small_256.pt"
# The file has about 82 MB. Its publisher gives no checksum, so this only tells it from another file.
SIZE_RANGE = (60_000_000, 120_000_000)
CHOICES = "choose weights=imagenet, weights=PATH (a copy of midas_v21_small_256.pt) or weights=none"
TIMEOUT_S = 30.0


def official_midas(*, reference: bool = False) -> MidasSmall:
    """MiDaS v2.1 small with its official weights, downloaded on the first call.

    The file is kept in `MDE_CACHE` (default ~/.cache/mde); `MDE_WEIGHTS_URL` names a mirror. A file that does not load
    is removed from the cache. MdeError without network or with a wrong file.
    """
    path = cached_file(os.environ.get("MDE_WEIGHTS_URL") or URL)
    try:
        return load_official(path, reference=reference)
    except MdeError as error:
        path.unlink(missing_ok=True)
        raise MdeError(f"{error} (removed from the cache; {CHOICES})") from error


def cached_file(url: str) -> Path:
    """Path of the file at `url` in the cache folder, downloading it if it is not there."""
    folder = Path(os.environ.get("MDE_CACHE") or Path.home() / ".cache" / "mde")
    path = folder / url.rsplit("/", 1)[-1]
    if not path.is_file():
        download(url, path)
    return path


def download(url: str, path: Path) -> None:
    """Writes what `url` serves to `path`, whole and of a plausible size, or raises MdeError and leaves no file."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, atomic_file(path) as file:
            _copy(response, file, path.name)
    except urllib.error.HTTPError as error:
        raise MdeError(f"{url}: the server answers {error.code} ({error.reason}); {CHOICES}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MdeError(f"{url}: not reached ({error}); {CHOICES}") from error


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise MdeError(f"{response.url}: broke off ({error}); try again, or {CHOICES}") from error


def _copy(response: http.client.HTTPResponse, file: BinaryIO, name: str) -> None:
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced else None
    received = 0
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(name, total=total)
        while block := _read(response):
            file.write(block)
            received += len(block)
            progress.update(task, completed=received)
    if total is not None and received != total:
        raise MdeError(f"{response.url}: broke off after {received} of {total} bytes; try again, or {CHOICES}")
    low, high = SIZE_RANGE
    if not low <= received <= high:
        raise MdeError(f"{response.url}: {received} bytes are not the weights, which have about 82 MB; {CHOICES}")
