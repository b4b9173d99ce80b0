"""NYU Depth v2, the labelled subset as published: nyu_depth_v2_labeled.mat (HDF5) and splits.mat (MATLAB 5).

Arrays lie in MATLAB's order, so that each is read transposed: images uint8 (1449, 3, 640, 480), depths float32 (1449,
640, 480) in metres, filled where the sensor saw nothing. A folder of exported frames is what mde.data.folder reads.
"""

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mde.data.holdout import hold_out
from mde.data.sample import Sample, Splits
from mde.errors import MdeError
from mde.geometry import eigen_nyu_crop

LABELLED = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
# Of the colour camera, from the toolbox's camera_params.m.
INTRINSICS = ((518.8579, 0.0, 325.5824), (0.0, 519.4696, 253.7362), (0.0, 0.0, 1.0))


class NyuFrames:
    """Chosen frames of the labelled file, by 0-based index; with `eigen_crop` truth counts in [45:471, 41:601] only."""

    name = "nyu"
    cap = 10.0

    def __init__(self, path: str | Path, indices: list[int], eigen_crop: bool = False):
        self.path, self.indices, self.eigen_crop = Path(path), indices, eigen_crop
        self._file: Any = None
        self._process = -1

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        number = self.indices[index]
        file = self._open()
        image = torch.from_numpy(file["images"][number]).transpose(1, 2).contiguous()
        depth = torch.from_numpy(file["depths"][number]).T[None].contiguous()
        mask = depth > 0
        if self.eigen_crop:
            inside = torch.zeros_like(mask)
            inside[:, *eigen_nyu_crop(*depth.shape[-2:])] = True
            mask &= inside
        return Sample(image, depth, mask, self.name, f"{number:04d}", torch.tensor(INTRINSICS))

    def _open(self) -> Any:
        """The file, opened once per process: an HDF5 handle must not be shared by forked workers."""
        if self._process != os.getpid():
            self._file, self._process = _open_labelled(self.path), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_process": -1}


def nyu_splits(root: str | Path) -> Splits:
    """NYU's official split; a tenth of the training scenes validates. Validation and test truth has the Eigen crop.

    root: the folder with nyu_depth_v2_labeled.mat and splits.mat. Raises MdeError when one is missing or damaged, and
    when h5py is not installed.
    """
    labelled, splits = Path(root) / LABELLED, Path(root) / SPLITS
    for path in (labelled, splits):
        if not path.is_file():
            raise MdeError(
                f"{path}: no such file; download it from the NYU Depth v2 page, or use data=folder for frames"
            )
    parts = read_mat5(splits)
    training, test = ([int(number) - 1 for number in parts.get(key, [])] for key in ("trainNdxs", "testNdxs"))
    with _open_labelled(labelled) as file:
        scenes = ["".join(map(chr, file[reference][()].ravel())) for reference in file["scenes"][()].ravel()]
    if sorted(training + test) != list(range(len(scenes))):
        raise MdeError(
            f"{splits}: it does not split the {len(scenes)} frames of {labelled.name}; take both from one source"
        )
    first, second, note = hold_out([scenes[number] for number in training], NyuFrames.name)
    return Splits(
        name=NyuFrames.name,
        train=NyuFrames(labelled, [training[i] for i in first]),
        validation=NyuFrames(labelled, [training[i] for i in second], eigen_crop=True),
        test=NyuFrames(labelled, test, eigen_crop=True),
        note=note,
    )


def read_mat5(path: Path) -> dict[str, np.ndarray]:
    """The real numeric arrays of a MATLAB 5 file, flattened, by name; h5py reads only MATLAB 7.3.

    Source: MathWorks, "MAT-File Format", level 5. Raises MdeError for anything else.
    """
    arrays = {}
    try:
        data = path.read_bytes()
        if data[126:128] != b"IM":
            raise ValueError("not a little-endian MATLAB 5 file")
        for kind, body in _elements(data[128:]):
            if kind == 15:  # compressed: one element inside
                ((kind, body),) = _elements(zlib.decompress(body))
            if kind == 14:  # an array: flags, dimensions, name, values
                _, _, (_, name), (number_type, values), *_ = _elements(body)
                arrays[name.decode("ascii")] = np.frombuffer(values, _NUMBERS[number_type])
    except (ValueError, KeyError, OSError, struct.error, zlib.error) as error:
        raise MdeError(f"{path}: damaged or not MATLAB 5 ({error}); download it again") from error
    return arrays


_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """Tagged elements (type, bytes); a tag is two uint32, or two uint16 and up to four bytes of data."""
    found, at = [], 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start, step = at + 8, 8 + size + (-size % 8 if kind != 15 else 0)
        if kind >> 16:
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
        if start + size > len(data):
            raise ValueError("cut short")
        found.append((kind, data[start : start + size]))
        at += step
    return found


def _open_labelled(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise MdeError(f"{path}: h5py reads this file and is not installed; pip install 'mde[nyu]'") from None
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise MdeError(f"{path}: damaged or not HDF5 ({str(error).splitlines()[0]}); download it again") from error
    if not {"images", "depths", "scenes"} <= set(file):
        raise MdeError(f"{path}: images, depths or scenes are not in it; download the labelled file again")
    return file
