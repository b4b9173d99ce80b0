"""The official weights: fetched once, checked, kept in a cache folder."""

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from mde.atomic_file import atomic_file
from mde.cache import cache_folder
from mde.errors import MdeError
from mde.models.checkpoints import load_official
from mde.models.network import DepthNetwork

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class OfficialFile:
    """url    of the file; where its name ends in eight hexadecimal digits, they are the start of its SHA-256
    megabytes  least and most that it may have: all that tells MiDaS small, without a checksum, from another file
    """

    url: str
    megabytes: tuple[int, int]

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def choices(self) -> str:
        """The end of an error message."""
        return f"choose weights=imagenet, weights=PATH (a copy of {self.name}) or weights=none"

    @property
    def sha256(self) -> str:
        """What its SHA-256 starts with."""
        found = re.search(r"-([0-9a-f]{8})\.pt$", self.url)
        return found[1] if found else ""


PUBLISHED = {
    "midas_small": OfficialFile(
        "https://github.com/isl-org/MiDaS/releases/download/v2_1/midas_v21_small_256.pt", (60, 120)
    ),
    "dpt_hybrid": OfficialFile(
        "https://github.com/isl-org/DPT/releases/download/1_0/dpt_hybrid-midas-501f0c75.pt", (480, 510)
    ),
    "dpt_large": OfficialFile(
        "https://github.com/isl-org/DPT/releases/download/1_0/dpt_large-midas-2f21e586.pt", (1360, 1400)
    ),
}


def official_midas(network: str = "midas_small", *, reference: bool = False, border: str | None = None) -> DepthNetwork:
    """The network of that name (a key of PUBLISHED) with its official weights, downloaded on the first call.

    The file is kept in `MDE_CACHE` (default ~/.cache/mde); `MDE_WEIGHTS_URL` names a folder that mirrors the files. A
    file that does not load or holds another network is removed from the cache. MdeError without network or with a wrong
    file.
    """
    if network not in PUBLISHED:
        raise MdeError(f"weights=midas: {network} has none; choose weights=PATH or weights=none")
    published = PUBLISHED[network]
    mirror = os.environ.get("MDE_WEIGHTS_URL")
    path = cached_file(published, f"{mirror.rstrip('/')}/{published.name}" if mirror else published.url)
    try:
        model = load_official(path, reference=reference, border=border)
        if model.name != network:
            raise MdeError(f"{path}: holds {model.name}, not {network}")
    except MdeError as error:
        path.unlink(missing_ok=True)
        raise MdeError(f"{error} (removed from the cache; {published.choices})") from error
    return model


def cached_file(published: OfficialFile, url: str) -> Path:
    """Path of the file at `url` in the cache folder, downloading it if it is not there."""
    path = cache_folder() / published.name
    if not path.is_file():
        download(published, url, path)
    return path


def download(published: OfficialFile, url: str, path: Path) -> None:
    """Writes what `url` serves to `path`, whole, of a plausible size and with the SHA-256 that the published name
    gives, or raises MdeError and leaves no file.
    """
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response, atomic_file(path) as file:
            _copy(published, response, file)
    except urllib.error.HTTPError as error:
        raise MdeError(f"{url}: the server answers {error.code} ({error.reason}); {published.choices}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise MdeError(f"{url}: not reached ({error}); {published.choices}") from error


def _read(published: OfficialFile, response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise MdeError(f"{response.url}: broke off ({error}); try again, or {published.choices}") from error


def _copy(published: OfficialFile, response: http.client.HTTPResponse, file: BinaryIO) -> None:
    announced = response.headers.get("Content-Length")
    total = int(announced) if announced else None
    received, digest = 0, hashlib.sha256()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(published.name, total=total)
        while block := _read(published, response):
            file.write(block)
            digest.update(block)
            received += len(block)
            progress.update(task, completed=received)
    if total is not None and received != total:
        raise MdeError(
            f"{response.url}: broke off after {received} of {total} bytes; try again, or {published.choices}"
        )
    low, high = published.megabytes
    if not low <= received / 1e6 <= high:
        raise MdeError(
            f"{response.url}: {received} bytes are not the weights, which have {low} to {high} MB; {published.choices}"
        )
    if not digest.hexdigest().startswith(published.sha256):
        raise MdeError(
            f"{response.url}: its SHA-256 does not start with {published.sha256}: not the published file; "
            f"{published.choices}"
        )
