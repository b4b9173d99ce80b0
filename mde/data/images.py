"""Reading colour and depth images, and refusing what is not one."""

import io
import math
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from mde.errors import MdeError

# What it warns of is an error here, or changes no pixel: entries of an EXIF block, many pixels.
warnings.filterwarnings("ignore", module="PIL")

_TURNS = {  # EXIF orientation -> what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_image(path: str | Path) -> Tensor:
    """A photo as uint8 (3, H, W), RGB, turned upright by its EXIF orientation.

    Grey is repeated in three channels, a palette is looked up, alpha is dropped. Of 16-bit grey those 8 bits are kept
    that begin with the highest one in use: infrared cameras put 10 to 14 bits into 16. Raises MdeError for a missing,
    damaged or too large file, for 32-bit or floating-point images, and for 16-bit colour that is almost black.
    """
    image = _open(path, "image")
    turn = _TURNS.get(_orientation(image))
    return _pixels(image if turn is None else image.transpose(turn), path)


def read_pair(image: Path, depth: Path, unit: float) -> tuple[Tensor, Tensor]:
    """Colour, uint8 (3, H, W), and depth, float32 (1, h, w) in metres, of one frame.

    Both as they are stored: depth and intrinsics were measured for these pixels, and an EXIF orientation, which the
    depth image lacks, turns neither. Raises MdeError as `read_image` and `read_depth` do, and where h x w is not H x W
    at some size, to 1 % of the aspect.
    """
    pixels, metres = _pixels(_open(image, "image"), image), read_depth(depth, unit)
    (height, width), (h, w) = pixels.shape[-2:], metres.shape[-2:]
    if abs(width * h / (height * w) - 1) > 0.01:
        raise MdeError(
            f"{depth}: depth {w} x {h} has another aspect than the image, {width} x {height} as stored (no EXIF "
            "orientation turns it); align depth to colour"
        )
    return pixels, metres


def read_depth(path: str | Path, unit: float) -> Tensor:
    """A depth image as float32 (1, H, W) in metres, 0 where unknown.

    A 16-bit grey PNG holds counts of `unit` metres; a .npy file holds metres already, +inf for sky, and NaN or negative
    values count as unknown. Raises MdeError for a missing, damaged or too large file, 8-bit or colour images, other
    arrays.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        metres = _load_array(path)
    else:
        image = _open(path, "depth image")
        if image.mode in ("1", "L", "P"):
            raise MdeError(f"{path}: 8-bit grey looks like a preview, not depth; give the 16-bit PNG")
        if not image.mode.startswith("I;16"):
            raise MdeError(f"{path}: mode {image.mode} is not depth; give a 16-bit grey PNG")
        metres = np.asarray(image, dtype=np.uint16).astype(np.float32) * np.float32(unit)
    return torch.from_numpy(metres)[None]


def grey_bits(path: Path) -> int:
    """Bits of a pixel of a grey image, by the file's header; 0 for colour and for what cannot be read."""
    try:
        with Image.open(path) as image:
            mode = image.mode
    except Exception:
        return 0
    return 16 if mode.startswith("I;16") else {"1": 1, "L": 8, "I": 32, "F": 32}.get(mode, 0)


def _pixels(image: Image.Image, path: str | Path) -> Tensor:
    """uint8 (3, H, W)."""
    if image.mode.startswith("I;16"):
        counts = np.asarray(image, dtype=np.uint16)
        pixels = (counts >> max(0, int(counts.max()).bit_length() - 8)).astype(np.uint8)
        return torch.from_numpy(pixels).expand(3, -1, -1).contiguous()
    if image.mode in ("I", "F"):
        raise MdeError(f"{path}: pixels of mode {image.mode} are not a colour image; convert it to 8-bit RGB")
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # an EXIF block that cannot be read says nothing, and the pixels can be read without
        return 1


def _open(path: str | Path, what: str) -> Image.Image:
    """The image, decoded. From 16-bit colour Pillow keeps the upper bytes."""
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x89PNG"):
            _check_chunks(data)
        image = Image.open(io.BytesIO(data))
        upper_bytes = ";16" in str(image.tile)
        image.load()
    except Exception as error:
        raise _unreadable(path, what, error) from error
    if upper_bytes and image.mode in ("RGB", "RGBA"):
        largest = int(np.asarray(image)[..., :3].max())
        if largest < 64:
            raise MdeError(
                f"{path}: 16-bit colour, only the lowest {(largest + 1) / 256:.1%} of its range is used; "
                "export it with 8 bits"
            )
    return image


def _check_chunks(png: bytes) -> None:
    """ValueError where a chunk is not what its checksum says: Pillow does not look at those of the pixels."""
    view, at, kind = memoryview(png), 8, b""
    while kind != b"IEND":
        if at + 12 > len(png):
            raise ValueError("cut short")
        length, kind = struct.unpack_from(">I4s", png, at)
        end = at + 8 + length
        if view[end : end + 4] != zlib.crc32(view[at + 4 : end]).to_bytes(4, "big"):
            raise ValueError(f"wrong checksum, or cut short, after byte {at}")
        at = end + 4


def _load_array(path: Path) -> np.ndarray:
    """float32 (H, W). The header is checked first: it may declare any size, and NumPy takes memory for that."""
    try:
        with open(path, "rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            size, declared = path.stat().st_size - file.tell(), math.prod(shape) * dtype.itemsize
            if len(shape) == 2 and dtype.kind == "f" and min(shape) > 0:
                if declared > size:
                    raise ValueError(f"{declared} bytes of pixels by its header, {size} in the file")
                file.seek(0)
                array = np.load(file, allow_pickle=False)
                return np.where(array > 0, array, 0).astype(np.float32)  # NaN > 0 is false
    except Exception as error:
        raise _unreadable(path, "depth file", error) from error
    raise MdeError(f"{path}: {dtype} of shape {shape} is not depth; save floating-point metres (H, W)")


def _unreadable(path: str | Path, what: str, error: Exception) -> MdeError:
    """What is wrong with a file. Which exception bytes that are no picture end in depends on where the damage is."""
    if isinstance(error, FileNotFoundError):
        return MdeError(f"{path}: no such {what}")
    if isinstance(error, OSError) and error.strerror:
        return MdeError(f"{path}: {what} that cannot be opened ({error.strerror}); make it readable")
    if isinstance(error, Image.DecompressionBombError):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return MdeError(f"{path}: {what} of more than {most:.0f} million pixels; scale it down")
    if isinstance(error, MemoryError):
        return MdeError(f"{path}: {what} too large for this machine's memory; scale it down")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return MdeError(f"{path}: damaged {what} ({reason}); copy or export it again")
