"""What counts as a picture, by the names of files: every reader of a folder asks here."""

import re
from collections.abc import Sequence
from pathlib import Path

from mde.data.images import grey_bits
from mde.errors import MdeError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
PICTURE_SUFFIXES = (*IMAGE_SUFFIXES, ".webp", ".bmp", ".tif", ".tiff")
DEPTH_SUFFIXES = (".png", ".npy")
_DEPTH = r"(?<![a-z])(depth|disparity)"
_NAMED, _FOLDER = re.compile(_DEPTH + "(?![a-z])", re.IGNORECASE), re.compile(_DEPTH + "$", re.IGNORECASE)


def picture_files(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES, *, deep: bool = False) -> list[Path]:
    """The files of `folder`, with `deep` of all folders in it, that end in one of `suffixes` in any case, sorted.

    What begins with a dot is none: macOS leaves a ._photo.jpg beside each photo on a foreign disk. Links are followed,
    and a folder that several lead to counts once, under its own name if it has one here. A missing folder has no files.
    Raises MdeError for a folder that may not be read and, with `deep`, for a link that leads nowhere.
    """
    found: list[Path] = []
    waiting, seen = [folder] if folder.is_dir() else [], set()
    while waiting:
        inner = waiting.pop(0)
        if (real := inner.resolve()) in seen:
            continue
        seen.add(real)
        paths = _visible(inner)
        found += [path for path in paths if path.suffix.lower() in suffixes and not path.is_dir()]
        if deep:
            owned, linked = _folders(paths)
            waiting = owned + waiting + linked  # linked ones last: no link takes the place of what it leads to
    return sorted(found)


def with_image_suffix(path: Path) -> Path | None:
    """The first file that is called as `path` says, but for the suffix of an image, which is added."""
    candidates = (path.with_name(path.name + suffix) for suffix in reversed(IMAGE_SUFFIXES))
    return next(filter(Path.is_file, candidates), None)


def depth_maps(paths: Sequence[Path], *, infrared: bool = False) -> list[Path]:
    """Those of some pictures that hold depth: grey ones whose name or folder says so, and all of more than 8 bits,
    unless such may be `infrared` pictures. Damaged files are left to who reads them.
    """

    def holds_depth(path: Path) -> bool:
        named = bool(_NAMED.search(path.stem) or _FOLDER.search(path.parent.name))
        if not named and (infrared or path.suffix.lower() in (".jpg", ".jpeg")):
            return False  # not opened: JPEG has 8 bits
        return grey_bits(path) > (0 if named else 8)

    return [path for path in paths if holds_depth(path)]


def _visible(folder: Path) -> list[Path]:
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise MdeError(f"{folder}: cannot be read ({error.strerror}); make it readable, or move it away") from error
    return paths


def _folders(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders among paths: those that lie here, and links to others."""
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise MdeError(f"{path}: a link that leads nowhere; connect the disk that it leads to, or remove it")
    folders = [path for path in paths if path.is_dir()]
    return [path for path in folders if not path.is_symlink()], [path for path in folders if path.is_symlink()]
