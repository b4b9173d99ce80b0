"""A plain folder of photos: nothing is known of their depth, a teacher has to say it."""

from collections.abc import Sequence
from pathlib import Path

import torch

from mde.data.folder import FolderFrames
from mde.data.images import read_image
from mde.data.listing import IMAGE_SUFFIXES, depth_maps, picture_files
from mde.data.sample import Sample, Splits
from mde.data.synthetic import synthetic_splits
from mde.errors import MdeError


class PhotoFrames:
    """Every .jpg, .jpeg and .png of a folder and of those inside it (see `picture_files`); a sample's mask is empty.

    Raises MdeError for a folder that is missing, holds no photo, or holds depth images, which are no photos; reading a
    frame raises it for a damaged file.
    """

    cap = 10.0  # of no consequence: nothing can be evaluated

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.name = self.root.resolve().name
        if not self.root.is_dir():
            raise MdeError(f"{self.root}: no such folder; give one that holds photos")
        paths = picture_files(self.root, deep=True)
        if not paths:
            raise MdeError(f"{self.root}: no photo in it ({', '.join(IMAGE_SUFFIXES)}); give a folder of photos")
        if maps := depth_maps(paths):
            raise MdeError(
                f"{maps[0]}: depth images, no photos ({len(maps)} in all: grey of 16 bits, or called depth); move them "
                "away, or give the folder of the colour images alone; frames with depth are for data=folder"
            )
        self.paths = [path.relative_to(self.root) for path in paths]

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
