"""A folder of frames: rgb/<id>.jpg|png, depth/<id>.png|npy and meta.json.

meta.json                    meaning
depth_unit_m                 metres in one count of a depth image (required)
name                         name in tables; the folder's own by default
environment                  "outdoor" evaluates to 80 m, anything else to 10 m
max_depth_m                  the sensor's range: deeper values are unknown (+inf, sky, stays)
scenes                       {id: scene}; one scene by default
split                        {id: "train" | "test"}
intrinsics                   {"fx", "fy", "cx", "cy"} in pixels of the colour image, or {id: {"fx", ...}}
Other keys (sensor, licence, source, ...) are for the reader. What is null counts as not there.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mde.data.holdout import hold_out
from mde.data.images import read_pair
from mde.data.listing import DEPTH_SUFFIXES, IMAGE_SUFFIXES, picture_files
from mde.data.sample import Sample, Splits, Subset
from mde.errors import MdeError
from mde.json_file import Entries, read_json

REMEDY = "correct it, or leave it out"  # of an entry of meta.json
INDOORS, OUTDOORS = 10.0, 80.0  # metres, up to which depth is evaluated


class FolderFrames:
    """Every frame of a folder, or of one part of its `split`, in natural order of the ids ("frame2" before "frame10").

    root    folder laid out as the module says
    split   "train" or "test" of meta.json; None takes all frames
    cap     metres, for evaluation; by default 80 outdoors and 10 elsewhere, whatever the sensor's range, so that the
            figures of different sets compare

    Raises MdeError for a folder, meta.json or pairing of images that is not as the module says; reading a frame raises
    it when the depth has another aspect than the image or a median that no unit can explain.
    """

    def __init__(self, root: str | Path, split: str | None = None, cap: float | None = None):
        self.root = Path(root)
        meta = _read_meta(self.root)
        self._images = _files(self.root / "rgb", IMAGE_SUFFIXES)
        self._depths = _files(self.root / "depth", DEPTH_SUFFIXES)
        _check_pairs(self.root, set(self._images), set(self._depths))
        self.name: str = meta.entry("name", str, "") or self.root.resolve().name
        self.cap: float = cap or (OUTDOORS if meta.entry("environment", str, "") == "outdoor" else INDOORS)
        self.depth_unit: float = meta.entry("depth_unit_m", float)
        self.max_depth: float = meta.entry("max_depth_m", float, math.inf)
        self.ids = sorted(self._images, key=_natural)
        self._intrinsics = _intrinsics(meta, self.ids)
        self.has_split = "split" in meta
        if split is not None:
            parts = _per_frame(meta, "split", self.ids)
            self.ids = [frame for frame, part in zip(self.ids, parts, strict=True) if part == split]
            if not self.ids:
                raise MdeError(
                    f"{self.root / 'meta.json'}: no frame has split {split!r}; use another split or a whole set"
                )
        self.scenes = _per_frame(meta, "scenes", self.ids) if "scenes" in meta else [self.name] * len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Sample:
        frame = self.ids[index]
        image, depth = read_pair(self._images[frame], self._depths[frame], self.depth_unit)
        self._check_unit(depth, self._depths[frame])
        depth.masked_fill_((depth > self.max_depth) & (depth < math.inf), 0)
        known, scene = self._intrinsics.get(frame), self.scenes[index]
        return Sample(image, depth, depth > 0, self.name, frame, known, self.depth_unit, scene=scene)

    def _check_unit(self, depth: Tensor, path: Path) -> None:
        some = depth.flatten()[:: max(1, depth.numel() // 5000)]  # enough for an order of magnitude
        known = some[(some > 0) & (some < math.inf)]
        if not known.numel() or 0.05 <= (median := known.median().item()) <= 1000:
            return
        if path.suffix.lower() == ".npy":
            raise MdeError(
                f"{path}: median depth {median:.3g}; a .npy holds metres, divide by 1000 what is in millimetres "
                "(depth_unit_m has no influence on it)"
            )
        raise MdeError(
            f"{path}: median depth {median:.3g} m at depth_unit_m {self.depth_unit:g}; "
            f"correct depth_unit_m in {self.root / 'meta.json'}"
        )


def folder_splits(root: str | Path, val_root: str | Path | None = None, cap: float | None = None) -> Splits:
    """Training, validation and test frames of a folder, by scene (see `hold_out`), never by a random draw of frames.

    With `split` in meta.json its "test" frames, if any, are the test part and only its "train" frames are cut further.
    With `val_root` another folder validates, and every training frame trains. Raises MdeError as FolderFrames does, and
    when there are too few frames to cut.
    """
    everything = FolderFrames(root, cap=cap)
    frames, test = everything, None
    if everything.has_split:
        frames = FolderFrames(root, split="train", cap=cap)
        test = FolderFrames(root, split="test", cap=cap) if len(frames) < len(everything) else None
    if val_root is not None:
        return Splits(frames.name, frames, FolderFrames(val_root, cap=cap), test)
    training, validation, note = hold_out(frames.scenes, frames.name)
    return Splits(frames.name, Subset(frames, training), Subset(frames, validation), test, note)


def _read_meta(root: Path) -> Entries:
    path = root / "meta.json"
    if not root.is_dir():
        raise MdeError(f"{root}: no such folder; give one that holds rgb/, depth/ and meta.json")
    if not path.is_file():
        raise MdeError(f'{root}: no meta.json; write one, at least {{"depth_unit_m": 0.001}} for depth in millimetres')
    meta = read_json(path, REMEDY)
    unit: Any = meta.get("depth_unit_m")
    if type(unit) not in (int, float) or not 0 < unit < math.inf:
        raise MdeError(
            f"{path}: depth_unit_m is missing or not a positive number; give the metres in one count of depth"
        )
    if meta.get("invalid", 0) != 0:
        raise MdeError(f"{path}: invalid must be 0; write 0 where depth is unknown")
    return meta


def _intrinsics(meta: Entries, ids: list[str]) -> dict[str, Tensor]:
    """Those of each frame that has some, float32 (3, 3)."""
    if "intrinsics" not in meta:
        return {}
    try:
        given = meta.entry("intrinsics", dict)
        if "fx" in given:
            return dict.fromkeys(ids, _camera(given))
        return {frame: _camera(given.entry(frame, dict)) for frame in ids if frame in given}
    except MdeError:
        raise meta.error("intrinsics", "need the numbers fx, fy, cx and cy, for all frames or by frame") from None


def _camera(given: Entries) -> Tensor:
    fx, fy, cx, cy = (given.entry(key, float) for key in ("fx", "fy", "cx", "cy"))
    return torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files of a folder by id, which is the name without its suffix."""
    found: dict[str, Path] = {}
    for path in picture_files(folder, suffixes):
        if path.stem in found:
            raise MdeError(f"{path}: {found[path.stem].name} has the same id; keep one of them")
        found[path.stem] = path
    if not found:
        raise MdeError(
            f"{folder}: no such folder, or no file in it ends in {', '.join(suffixes)}; put the frames there"
        )
    return found


def _check_pairs(root: Path, images: set[str], depths: set[str]) -> None:
    for lonely, missing in ((images - depths, "depth"), (depths - images, "rgb")):
        if lonely:
            listed = ", ".join(sorted(lonely)[:5]) + (", ..." if len(lonely) > 5 else "")
            raise MdeError(f"{root / missing}: nothing for {len(lonely)} frame(s): {listed}; add or remove them")


def _per_frame(meta: Entries, key: str, ids: list[str]) -> list[str]:
    values = meta.entry(key, dict)
    lacking = [frame for frame in ids if frame not in values]
    if lacking:
        listed = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
        raise MdeError(f"{meta.file}: {key} lacks {len(lacking)} frame(s): {listed}; add them")
    for frame in ids:
        if not isinstance(values[frame], str | int | float):
            raise values.error(frame, "must be text or a number")
    return [str(values[frame]) for frame in ids]


def _natural(text: str) -> list[tuple[int, int | str]]:
    return [(0, int(piece)) if piece.isdecimal() else (1, piece) for piece in re.split(r"(\d+)", text) if piece]
