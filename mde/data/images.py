"""Reading colour and depth images, and refusing what is not one."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mde.errors import MdeError

# What Pillow raises on broken files, besides OSError, depends on where in the file the damage is.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def read_image(path: str | Path) -> Tensor:
    """A colour image as uint8 (3, H, W), RGB, turned upright by its EXIF orientation.

    Grey is repeated in three channels, a palette is looked up, alpha is dropped, 16-bit grey keeps its upper byte.
    Raises MdeError for a missing or damaged file and for 32-bit or floating-point images.
    """
    image = _open(path, "image")
    if image.mode.startswith("I;16"):
        pixels = (np.asarray(image, dtype=np.uint16) >> 8).astype(np.uint8)
        return torch.from_numpy(pixels).expand(3, -1, -1).contiguous()
    if image.mode in ("I", "F"):
        raise MdeError(f"{path}: pixels of mode {image.mode} are not a colour image; convert it to 8-bit RGB")
    pixels = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def read_depth(path: str | Path, unit: float) -> Tensor:
    """A depth image as float32 (1, H, W) in metres, 0 where unknown.

    A 16-bit grey PNG holds counts of `unit` metres; a .npy file holds metres already, +inf for sky, and NaN or negative
    values count as unknown. Raises MdeError for a missing or damaged file, 8-bit or colour images, other arrays.
    """
    path = Path(path)
    if path.suffix == ".npy":
        metres = _load_array(path)
    else:
        image = _open(path, "depth image")
        if image.mode in ("1", "L", "P"):
            raise MdeError(f"{path}: 8-bit grey looks like a preview, not depth; give the 16-bit PNG")
        if not image.mode.startswith("I;16"):
            raise MdeError(f"{path}: mode {image.mode} is not depth; give a 16-bit grey PNG")
        metres = np.asarray(image, dtype=np.uint16).astype(np.float32) * np.float32(unit)
    return torch.from_numpy(metres)[None]


def _load_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise MdeError(f"{path}: no such depth file") from None
    except (OSError, ValueError, EOFError) as error:
        raise MdeError(f"{path}: damaged depth file ({_first_line(error)}); copy it again") from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise MdeError(f"{path}: {array.dtype} of shape {array.shape} is not depth; save floating-point metres (H, W)")
    return np.where(array > 0, array, 0).astype(np.float32)  # NaN > 0 is false


def _open(path: str | Path, what: str) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError:
        raise MdeError(f"{path}: no such {what}") from None
    except _BROKEN as error:
        raise MdeError(f"{path}: damaged {what} ({_first_line(error)}); copy or export it again") from error
    return image


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
