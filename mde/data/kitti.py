"""KITTI depth prediction, in the layouts of its official downloads.

annotated  root/train|val/<drive>/proj_depth/groundtruth/image_02|image_03/<frame>.png   (data_depth_annotated.zip)
           root/<date>/<drive>/image_02|image_03/data/<frame>.png|jpg                    (raw data, synced + rectified)
           root/<date>/calib_cam_to_cam.txt                                              (intrinsics, optional)
selection  root/depth_selection/val_selection_cropped/image|groundtruth_depth|intrinsics (data_depth_selection.zip)

Depth is uint16 / 256 metres, 0 unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mde.data.holdout import hold_out
from mde.data.images import read_pair
from mde.data.listing import picture_files, with_image_suffix
from mde.data.sample import Sample, Splits
from mde.errors import MdeError
from mde.geometry import CROPS

UNIT = 1 / 256
CAP = 80.0
_CAMERAS = ("image_02", "image_03")
_SELECTION = Path("depth_selection/val_selection_cropped")
_VALIDATION_USED = "trained on KITTI's official validation drives: no KITTI figure of this network is a test figure"


@dataclass(frozen=True)
class _Frame:
    id: str
    drive: str
    image: Path
    depth: Path
    calibration: Path  # need not exist
    camera: str


class KittiFrames:
    """Frames of KITTI, with truth masked to an evaluation crop, or whole for training with crop="none".

    Intrinsics come from the calibration file beside the frames, and are None where there is none.
    """

    name = "kitti"
    cap = CAP

    def __init__(self, frames: Sequence[_Frame], crop: str = "none"):
        self.frames, self.crop = list(frames), crop

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self.frames[index]
        image, depth = read_pair(frame.image, frame.depth, UNIT)
        inside = torch.zeros_like(depth, dtype=torch.bool)
        inside[:, *CROPS[self.crop](*depth.shape[-2:])] = True
        known = _intrinsics(frame.calibration, frame.camera)
        return Sample(image, depth, (depth > 0) & inside, self.name, frame.id, known, UNIT, scene=frame.drive)


def kitti_splits(root: str | Path, layout: str = "auto", crop: str = "auto") -> Splits:
    """KITTI with its official validation split as the test part; a tenth of the training drives validates.

    layout and crop as for `kitti_validation`; training truth is not cropped. Where only official validation frames
    are present (the selection, or no train/ folder), their drives are cut into training and validation, test is None,
    and the note warns. Raises MdeError when files are missing or options do not go together.
    """
    root = Path(root)
    if _layout(root, layout) == "selection" or not (root / "train").is_dir():
        whole = kitti_validation(root, layout, crop)
        return _cut_by_drive(whole.frames, whole.crop, _VALIDATION_USED)
    test = kitti_validation(root, layout, crop) if (root / "val").is_dir() else None
    splits = _cut_by_drive(_annotated(root, "train"), _annotated_crop(crop))
    splits.test = test
    return splits


def kitti_validation(root: str | Path, layout: str = "auto", crop: str = "auto") -> KittiFrames:
    """Every frame of the official validation split that is present, for zero-shot evaluation.

    layout  "annotated", "selection", or "auto": whichever is under `root`, annotated first
    crop    of evaluated truth, as in mde.geometry: "garg", "eigen_kitti", "benchmark" or "none"; "auto" is garg. The
            selection is cropped to the benchmark's 352 x 1216 already: there "auto" and "benchmark" change nothing, and
            the others, being shares of the full image, are refused

    Raises MdeError as `kitti_splits` does.
    """
    root = Path(root)
    if _layout(root, layout) == "annotated":
        return KittiFrames(_annotated(root, "val"), _annotated_crop(crop))
    if crop not in ("auto", "benchmark", "none"):
        raise MdeError(f"data.crop={crop}: val_selection_cropped is cropped already, do not crop twice; use crop=none")
    return KittiFrames(_selection(root), "none")


def _annotated_crop(crop: str) -> str:
    if crop not in ("auto", "garg", "eigen_kitti", "benchmark", "none"):
        raise MdeError(f"data.crop={crop}: KITTI's crops are auto, garg, eigen_kitti, benchmark and none")
    return "garg" if crop == "auto" else crop


def _cut_by_drive(frames: list[_Frame], crop: str, note: str = "") -> Splits:
    training, validation, same_scene = hold_out([frame.drive for frame in frames], KittiFrames.name)
    return Splits(
        name=KittiFrames.name,
        train=KittiFrames([frames[i] for i in training]),
        validation=KittiFrames([frames[i] for i in validation], crop),
        note="; ".join(filter(None, [note, same_scene])),
    )


def _layout(root: Path, layout: str) -> str:
    if layout not in ("auto", "annotated", "selection"):
        raise MdeError(f"data.layout={layout}: KITTI's layouts are auto, annotated and selection")
    if layout != "auto":
        return layout
    if (root / "train").is_dir() or (root / "val").is_dir():
        return "annotated"
    if (root / _SELECTION).is_dir():
        return "selection"
    raise MdeError(f"{root}: no train/, val/ or {_SELECTION}/; give the folder KITTI's archives were unpacked in")


def _annotated(root: Path, part: str) -> list[_Frame]:
    frames, lacking = [], []
    for folder in sorted((root / part).glob("*/proj_depth/groundtruth/image_0[23]")):
        camera, drive = folder.name, folder.parents[2].name
        date = drive[:10]  # 2011_09_26_drive_0001_sync
        for depth in picture_files(folder, [".png"]):
            image = root / date / drive / camera / "data" / depth.stem
            if (found := with_image_suffix(image)) is None:
                lacking.append(image)
                continue
            frame = f"{drive}/{camera}/{depth.stem}"
            frames.append(_Frame(frame, drive, found, depth, root / date / "calib_cam_to_cam.txt", camera))
    return _complete(frames, lacking, root / part)


def _selection(root: Path) -> list[_Frame]:
    frames, lacking = [], []
    folder = root / _SELECTION
    for depth in picture_files(folder / "groundtruth_depth", [".png"]):
        # 2011_09_26_drive_0002_sync_groundtruth_depth_0000000005_image_02.png
        drive, _, rest = depth.stem.partition("_groundtruth_depth_")
        stem = f"{drive}_image_{rest}"
        if (image := with_image_suffix(folder / "image" / stem)) is None:
            lacking.append(folder / "image" / stem)
            continue
        frames.append(_Frame(stem, drive, image, depth, folder / "intrinsics" / f"{stem}.txt", depth.stem[-8:]))
    return _complete(frames, lacking, folder)


def _complete(frames: list[_Frame], lacking: list[Path], where: Path) -> list[_Frame]:
    if lacking:
        raise MdeError(
            f"{lacking[0]}.png or .jpg: colour image missing, {len(lacking)} in all; unpack the drives' raw data"
        )
    if not frames:
        raise MdeError(f"{where}: no depth image in KITTI's official layout; unpack the official archive there")
    return frames


@cache
def _intrinsics(path: Path, camera: str) -> Tensor | None:
    """The 3 x 3 of the selection's own file, or the left 3 x 3 of P_rect_02|03 (3 x 4) in calib_cam_to_cam.txt."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if path.name == "calib_cam_to_cam.txt":
        key = f"P_rect_{camera[-2:]}:"
        text = next((line.removeprefix(key) for line in text.splitlines() if line.startswith(key)), "")
    try:
        values = torch.tensor([float(word) for word in text.split()]).reshape(3, -1)[:, :3]
    except (ValueError, RuntimeError):
        values = torch.empty(0)
    if values.shape != (3, 3):
        raise MdeError(f"{path}: no intrinsics of {camera} in it; copy the file again or remove it")
    return values.contiguous()
