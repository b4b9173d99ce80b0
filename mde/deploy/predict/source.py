"""What a network is tried on: a picture, a folder of pictures, a video or a camera, as one stream of frames."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mde.data.images import read_image
from mde.data.listing import PICTURE_SUFFIXES, depth_maps, picture_files
from mde.errors import MdeError

VIDEOS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp")
# Format and address of a camera, as FFmpeg takes them.
CAMERA = ("v4l2", "/dev/video{}")
LONGEST_NAME = 200  # bytes; file systems take 255, of which what is written adds a suffix and, on the way, a code


@dataclass(frozen=True)
class Frame:
    """name  for its pictures and titles
    rgb   uint8 (H, W, 3), upright
    time  seconds since the first frame; None in a folder of pictures
    """

    name: str
    rgb: np.ndarray
    time: Fraction | None = None


@dataclass
class Source:
    """Frames, to be gone through once.

    kind    picture, folder, video or camera
    count   of frames, None where unknown
    rate    frames a second of a video or camera
    failed  name -> why, filled on the way: pictures that cannot be read, a video that breaks off
    """

    name: str
    kind: str
    frames: Iterator[Frame]
    count: int | None = None
    rate: Fraction | None = None
    failed: dict[str, str] = field(default_factory=dict)


def open_source(source: str) -> Source:
    """A picture, a video or a folder by its path, a camera by its number.

    MdeError for what is missing, of another kind, empty, or needs a package that is not installed. A picture that
    cannot be read is no error here: it is noted in `failed`, and the others follow.
    """
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES:
        return _pictures(path.name, "picture", [path])
    if path.is_file() and path.suffix.lower() in VIDEOS:
        return _stream(path.name, "video", source)
    if source.isdecimal() and not path.exists():
        return _camera(source)
    if path.exists():
        raise MdeError(
            f"source={source}: neither a picture ({', '.join(PICTURE_SUFFIXES)}) nor a video ({', '.join(VIDEOS)})"
        )
    raise MdeError(f"source={source}: no such file; give a picture, a folder, a video, or the number of a camera")


def _folder(folder: Path) -> Source:
    found = picture_files(folder, PICTURE_SUFFIXES)
    if not found:
        raise MdeError(f"source={folder}: no picture directly in it ({', '.join(PICTURE_SUFFIXES)})")
    maps = dict.fromkeys(depth_maps(found, infrared=True))
    source = _pictures(folder.resolve().name, "folder", [path for path in found if path not in maps])
    source.failed |= {path.name: f"{path}: a depth map by its name, no picture" for path in maps}
    return source


def _pictures(name: str, kind: str, paths: list[Path]) -> Source:
    failed: dict[str, str] = {}

    def frames() -> Iterator[Frame]:
        for path, title in zip(paths, output_names(paths), strict=True):
            try:
                rgb = read_image(path).permute(1, 2, 0).contiguous().numpy()
            except MdeError as error:
                failed[path.name] = str(error)
                continue
            yield Frame(title, rgb)

    return Source(name, kind, frames(), len(paths), failed=failed)


def output_names(paths: list[Path]) -> list[str]:
    """What the results of some pictures are called, without a suffix: each something else, also where a file system
    takes a and A, or the two ways of writing é, for one.

    That is a picture's name without its suffix where no other has the same, else the whole name; cut to LONGEST_NAME,
    and numbered where that makes two equal.
    """
    stems = Counter(_folded(path.stem) for path in paths)
    names: dict[str, str] = {}
    for path in paths:
        stem, whole = _shortened(path.stem), _shortened(path.name)
        candidates = [stem] * (stems[_folded(path.stem)] == 1) + [whole]
        numbered = (f"{whole} ({number})" for number in range(2, len(paths) + 2))
        name = next(name for name in (*candidates, *numbered) if _folded(name) not in names)
        names[_folded(name)] = name
    return list(names.values())


def _shortened(name: str) -> str:
    """At most LONGEST_NAME bytes, and a mark for what is not UTF-8, which no page could show."""
    return os.fsencode(name).decode(errors="replace").encode()[:LONGEST_NAME].decode(errors="ignore")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _camera(number: str) -> Source:
    format_name, address = CAMERA[0], CAMERA[1].format(number)
    if format_name == "v4l2" and not sys.platform.startswith("linux"):
        raise MdeError(f"source={number}: cameras are read on Linux only; record a video and give its path")
    if format_name == "v4l2" and not Path(address).exists():
        raise MdeError(f"source={number}: no camera at {address}; connect it, or give the number of another")
    return _stream(f"camera {number}", "camera", address, format_name)


def _stream(name: str, kind: str, address: str, format_name: str | None = None) -> Source:
    av = require_av()
    try:
        # "file:", or FFmpeg takes what stands before a colon in the name for a protocol.
        container = av.open(address if format_name else f"file:{address}", format=format_name)
    except av.FFmpegError as error:
        raise MdeError(f"{address}: cannot be opened as a {kind} ({error.strerror}); is it whole, and free?") from error
    stream = container.streams.best("video")  # of several the film, not the picture of its cover
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise MdeError(f"{address}: no picture in it; give a video")
    stream.thread_type = "AUTO"
    rate = stream.average_rate or Fraction(30)
    count = None if kind == "camera" else stream.frames or None
    failed: dict[str, str] = {}

    def frames() -> Iterator[Frame]:
        first, seen = None, 0
        with container:
            try:
                for frame in container.decode(stream):
                    # Some streams carry no times, a camera those of its own clock.
                    time = Fraction(seen) / rate if frame.pts is None else frame.pts * frame.time_base
                    first = time if first is None else first
                    seen += 1
                    yield Frame(f"{float(time - first):.2f} s", _upright(frame), time - first)
            except av.FFmpegError as error:
                failed[name] = f"{address}: breaks off after {seen} frames ({error.strerror})"

    return Source(name, kind, frames(), count, rate, failed)


def _upright(frame: Any) -> np.ndarray:
    """uint8 (H, W, 3), turned as the video says: a telephone films lying down."""
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


def require_av() -> Any:
    """PyAV, which reads and writes videos. MdeError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise MdeError("videos and cameras need PyAV; pip install -e '.[video]'") from error
    return av
