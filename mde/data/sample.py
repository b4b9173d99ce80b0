"""What every dataset yields: one frame of colour and depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class Sample:
    """One RGB-D frame, as measured or rendered: nothing resized, nothing normalised.

    image       uint8 (3, H, W), RGB
    depth       float32 (1, h, w), metres along the optical axis (z, not range); 0 where unknown, +inf at known sky
    mask        bool (1, h, w), true where depth is known (sky included)
    dataset     name of the set, as in result tables
    frame       id of the frame within the set
    intrinsics  float32 (3, 3), pinhole, in pixels of `image` (pixel centres at whole numbers), or None when unknown
    depth_unit  metres in one count of the stored depth image; what "raw depth" means for this set
    scene       place or drive that it is of, whose frames are alike; "" where unknown
    teacher     float32 (1, h', w'), what a teacher predicts of the whole image, as `relative_inverse_depth` scales it

    h, w equal H, W or are the same aspect at another size (a LiDAR's grid); evaluation happens at (h, w).
    """

    image: Tensor
    depth: Tensor
    mask: Tensor
    dataset: str
    frame: str
    intrinsics: Tensor | None = None
    depth_unit: float = 0.001
    teacher: Tensor | None = None
    scene: str = ""


class Frames(Protocol):
    """A dataset: an indexable, sized collection of samples. `frames[i]` depends on nothing but i."""

    name: str
    cap: float  # metres; deeper truth is left out of evaluation

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


@dataclass
class Splits:
    """The three parts of a dataset, cut by scene.

    test is None where the set has no part of its own for a last evaluation. note: one line for the report, such as
    "same scene" when training and validation frames come from one room. labelled: false where training frames have no
    depth, so that only a teacher can say what they show; validation frames always have.
    """

    name: str
    train: Frames
    validation: Frames
    test: Frames | None = None
    note: str = ""
    labelled: bool = True


class Subset:
    """Chosen frames of another dataset, in the given order."""

    def __init__(self, frames: Frames, indices: Sequence[int]):
        self.frames, self.indices = frames, list(indices)
        self.name, self.cap = frames.name, frames.cap

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.frames[self.indices[index]]
