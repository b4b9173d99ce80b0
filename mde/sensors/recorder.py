"""Recordings that this project writes itself: a folder that trains and evaluates, and the Jetson bundle's frames.npz.

.bag and .db3 are librealsense's own, see `mde.sensors.realsense`.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image

from mde.atomic_file import atomic_file, writing
from mde.data.images import read_depth, read_image
from mde.errors import MdeError
from mde.sensors.frame import Account, SensorFrame

TIMES = "times.csv"
LARGEST = 65535  # count of a 16-bit image
COARSEST = 0.001  # metres in a count: a folder's .npy depth has no counts of its own
COMPRESSION = 1  # of PNG files: a third of the time of Pillow's own choice


class Recorder(Protocol):
    """Keeps frames, one by one, inside its context."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: Any) -> None: ...
    def add(self, frame: SensorFrame) -> None: ...


class FolderRecorder:
    """rgb/, depth/, meta.json as `mde.data.folder` reads them, and times.csv: number and seconds of each frame.

    Every frame is on the disk when `add` returns: whatever ends the process, those before are there. MdeError where
    the folder holds something already, or when the disk is full.
    """

    def __init__(self, root: Path, account: Account, name: str, max_depth: float):
        self.root, self._frames = root, 0
        self._about = (account, name, max_depth)

    def __enter__(self) -> Self:
        if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
            raise MdeError(f"record={self.root}: exists already; give a new name")
        with writing(self.root):
            for part in ("rgb", "depth"):
                (self.root / part).mkdir(parents=True, exist_ok=True)
            self._times = (self.root / TIMES).open("w", buffering=1)
            self._times.write("frame,number,seconds\n")
        return self

    def __exit__(self, *error: Any) -> None:
        self._times.close()

    def add(self, frame: SensorFrame) -> None:
        if not self._frames:
            self._describe(frame)
        counts = np.rint(frame.depth / self.unit)
        if counts.max(initial=0) > LARGEST:
            raise MdeError(
                f"record={self.root}: {frame.depth.max():.1f} m is no 16-bit count of {self.unit:g} m; "
                "give a smaller data.max_depth"
            )
        self._frames += 1
        name = f"{self._frames:06d}"
        self._save(name, {"depth": counts.astype(np.uint16), "rgb": frame.rgb})
        with writing(self.root):
            self._times.write(f"{name},{frame.number},{frame.time:.6f}\n")

    def _save(self, name: str, pixels: dict[str, np.ndarray]) -> None:
        """Both images or none, also when Ctrl-C, the usual end of a recording, comes in between."""
        files = {part: self.root / part / f"{name}.png" for part in pixels}
        hidden = {part: file.with_name(f".{file.name}.part") for part, file in files.items()}
        try:
            with writing(self.root):
                for part, image in pixels.items():
                    Image.fromarray(image).save(hidden[part], "PNG", compress_level=COMPRESSION)
                for part in pixels:
                    hidden[part].replace(files[part])
        except BaseException:
            for file in [*files.values(), *hidden.values()]:
                file.unlink(missing_ok=True)
            raise

    def _describe(self, frame: SensorFrame) -> None:
        self.unit = min(frame.unit, COARSEST)
        account, name, max_depth = self._about
        meta: dict[str, Any] = {
            "name": name,
            "depth_unit_m": self.unit,
            "max_depth_m": max_depth,
            "environment": "indoor",
            "sensor": account.device,
            "serial": account.serial,
            "source": account.source,
        }
        if frame.intrinsics is not None:
            K = frame.intrinsics
            meta["intrinsics"] = {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]}
        with atomic_file(self.root / "meta.json") as file:
            file.write(json.dumps(meta, indent=1).encode())


class BundleRecorder:
    """frames.npz for the Jetson bundle's runner. Frames go to a folder beside it first, so that none is lost."""

    def __init__(self, path: Path, account: Account, name: str, max_depth: float):
        self.path, self._name, self._cap = path, name, max_depth
        self._folder = FolderRecorder(path.with_suffix(".frames"), account, name, max_depth)

    def __enter__(self) -> Self:
        if self.path.exists():
            raise MdeError(f"record={self.path}: exists already; give a new name")
        self._folder.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._folder.__exit__()
        names = sorted(path.name for path in (self._folder.root / "rgb").iterdir())
        if names:
            self._pack(names)
        shutil.rmtree(self._folder.root)

    def add(self, frame: SensorFrame) -> None:
        self._folder.add(frame)

    def _pack(self, names: list[str]) -> None:
        root, unit = self._folder.root, self._folder.unit
        depths = [lambda name=name: read_depth(root / "depth" / name, unit)[0].numpy() for name in names]
        arrays = {
            "rgb": (np.uint8, [lambda name=name: _image(root / "rgb" / name) for name in names]),
            "depth": (np.float32, depths),
            "mask": (np.bool_, [lambda read=read: read() > 0 for read in depths]),
        }
        with atomic_file(self.path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, True, 1) as archive:
            for key, (dtype, reads) in arrays.items():
                _stream(archive, key, np.dtype(dtype), reads)
            for key, value in (("dataset", self._name), ("cap", self._cap)):
                with archive.open(f"{key}.npy", "w") as entry:
                    np.save(entry, np.asarray(value))


def _image(path: Path) -> np.ndarray:
    return read_image(path).permute(1, 2, 0).contiguous().numpy()


def _stream(archive: zipfile.ZipFile, key: str, dtype: np.dtype, reads: list[Any]) -> None:
    """Writes one array (N, ...) frame by frame: a recording need not fit into memory."""
    first = reads[0]()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    with archive.open(f"{key}.npy", "w", force_zip64=True) as entry:
        np.lib.format.write_array_header_1_0(entry, header | {"shape": (len(reads), *first.shape)})
        for read in reads:
            entry.write(np.ascontiguousarray(read(), dtype).tobytes())
