"""A plain folder of photos: nothing is known of their depth, a teacher has to say it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mde.data.folder import IMAGE_SUFFIXES, FolderFrames
from mde.data.images import read_image
from mde.data.sample import Sample, Splits
from mde.data.synthetic import synthetic_splits
from mde.errors import MdeError


class PhotoFrames:
    """Every .jpg, .jpeg and .png of a folder and of those inside it; the mask of a sample is empty.

    Raises MdeError for a folder that is missing, holds no photo, or holds depth images, which are no photos; reading a
    frame raises it for a damaged file.
    """

    cap = 10.0  # of no consequence: nothing can be evaluated

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise MdeError(f"{self.root}: no such folder; give one that holds photos")
        inside = (path.relative_to(self.root) for path in self.root.rglob("*"))
        self.paths = sorted(
            path
            for path in inside
            if path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in path.parts)
        )
        if not self.paths:
            raise MdeError(f"{self.root}: no photo in it ({', '.join(IMAGE_SUFFIXES)}); give a folder of photos")
        for folder in {(self.root / path).parent for path in self.paths}:
            if folder.name == "depth" and (folder.parent / "rgb").is_dir():
                raise MdeError(
                    f"{folder}: depth images, no photos; give data=folder, or {folder.parent / 'rgb'} as data.root"
                )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Sample:
        path = self.paths[index]
        image = read_image(self.root / path)
        depth = torch.zeros(1, 1, 1).expand(1, *image.shape[-2:])
        return Sample(image, depth, depth > 0, self.name, path.as_posix())


def photos_splits(root: str | Path, val_root: str | Path | None = None, size: Sequence[int] = (256, 256)) -> Splits:
    """All photos train. What validates and tests must have depth: the folder `val_root`, else synthetic scenes of
    `size` (height, width). Raises MdeError as PhotoFrames and FolderFrames do.
    """
    photos = PhotoFrames(root)
    if val_root is not None:
        return Splits(photos.name, photos, FolderFrames(val_root), labelled=False)
    rendered = synthetic_splits(size=(size[0], size[1]), validation=32)
    note = "photos have no depth: figures are those of synthetic scenes"
    return Splits(photos.name, photos, rendered.validation, rendered.test, note, labelled=False)
