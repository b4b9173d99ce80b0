"""Learning from a teacher: what another network predicts of the training images, computed once and kept on disk."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mde.atomic_file import atomic_file
from mde.data.datamodule import in_shared_memory, parts_of
from mde.data.mix import ConcatFrames
from mde.data.sample import Frames, Sample, Splits
from mde.engines.description import graph_hash, network_file
from mde.engines.runtime import Runtime, load_runtime
from mde.errors import MdeError
from mde.losses import relative_inverse_depth
from mde.models import read_metadata
from mde.progress import track
from mde.report.terminal import say

CACHE = Path("outputs/cache/teacher")


def build_teacher(config: DictConfig, splits: Splits) -> "Teacher | None":
    """The teacher that config.teacher names, opened. MdeError when there is none and the data need one, when it cannot
    be opened, and for options that contradict it.
    """
    path = config.teacher
    if path is None:
        if not splits.labelled:
            raise MdeError(f"{splits.name}: has training images without depth; give teacher=PATH, a network's file")
        return None
    if not Path(path).is_file():
        raise MdeError(
            f"teacher={path}: no such file; give a trained network's: .safetensors, .pt, .onnx, .tflite, ..."
        )
    if config.trainer.max_steps == 0:
        raise MdeError(f"teacher={path}: nothing is trained in 0 steps; leave it out, or choose recovery=finetune")
    if config.loss.data == "mse":
        raise MdeError(f"teacher={path}: predicts inverse depth, loss=mse learns depth; choose loss=trimmed")
    if config.loss.teacher <= 0:
        raise MdeError(f"loss.teacher={config.loss.teacher}: must be above 0 with a teacher; leave out teacher=")
    features = [item for item in HydraConfig.get().overrides.task if item.startswith("recovery.features=")]
    if features and config.prune.kind == "none":
        raise MdeError(f"{features[0]}: teacher={path} shows its output alone; leave it out")
    return Teacher(Path(path))


class Teacher:
    """A network in any file that `load_runtime` opens: image, uint8 (3, H, W) -> its inverse depth of the whole image,
    float32 (1, h, w) at the network's own size, as `relative_inverse_depth` scales it.

    It looks at an image once. Its answer is kept in `folder`, in half precision, under a hash of the network's file and
    one of the image's pixels: another network, and a frame that changed, get entries of their own. A damaged entry is
    computed again.

    about  what a network that learned from it has to say of it: file, sha256, network, precision, licence, trained_on
    """

    def __init__(self, path: Path, folder: Path = CACHE):
        self.path = path
        self._runtime: Runtime | None = self._open()
        description, own = self._runtime.description, own_metadata(path, self._runtime.description.network)
        self.name, digest = self._runtime.name, graph_hash(path)
        self.about: dict[str, Any] = {
            "file": str(path),
            "sha256": digest,
            "network": description.network,
            "precision": description.precision,
            "licence": description.licence or own.get("licence", "not stated"),
            "trained_on": own.get("trained_on", "not stated"),
        }
        self.lineage: list[dict[str, Any]] = [*own.get("teachers", []), self.about]
        identity = digest + json.dumps(asdict(description))
        self.folder = folder / hashlib.sha256(identity.encode()).hexdigest()[:16]

    def __call__(self, image: Tensor) -> Tensor:
        entry = self._entry(image)
        answer = _read(entry)
        if answer is None:
            answer = self._ask(image)
            with atomic_file(entry) as file:
                np.savez_compressed(file, inverse_depth=answer)
        return torch.from_numpy(answer.astype(np.float32))

    def knows(self, image: Tensor) -> bool:
        """Whether its answer is on disk, and whole."""
        return _read(self._entry(image)) is not None

    def close(self) -> None:
        """Lets the engine go, until an image comes that is not known: an engine does not survive a fork."""
        self._runtime = None

    def _open(self) -> Runtime:
        return load_runtime(self.path, threads=torch.get_num_threads())

    def _ask(self, image: Tensor) -> np.ndarray:
        self._runtime = self._runtime or self._open()
        output = self._runtime.infer(self._runtime.preprocess(image.permute(1, 2, 0).numpy()))
        if not np.isfinite(output).all():
            raise MdeError(f"teacher={self.path}: answers NaN or infinity; deploy it again, in another precision")
        relative = relative_inverse_depth(torch.from_numpy(np.asarray(output, dtype=np.float32)))
        return relative[0].numpy().astype(np.float16)

    def _entry(self, image: Tensor) -> Path:
        digest = hashlib.sha256(str(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:32]}.npz"


def _read(entry: Path) -> np.ndarray | None:
    try:
        with np.load(entry) as file:  # zip archives carry checksums
            return file["inverse_depth"]
    except Exception:  # bytes that are no entry can fail anywhere in the readers
        return None


class TaughtFrames:
    """Frames with what a teacher predicts of each."""

    def __init__(self, frames: Frames, teacher: Teacher):
        self.frames, self.teacher = frames, teacher
        self.name, self.cap = frames.name, frames.cap

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        sample = self.frames[index]
        return replace(sample, teacher=self.teacher(sample.image))


class UnknownImages(Dataset[Tensor | None]):
    """The images that a teacher has yet to see; None in the place of others. Read by workers, predicted by none."""

    def __init__(self, frames: Frames, teacher: Teacher):
        self.frames, self.teacher = frames, teacher

    def __getitem__(self, index: int) -> Tensor | None:
        image = self.frames[index].image
        return None if self.teacher.knows(image) else image


def taught(splits: Splits, teacher: Teacher) -> Splits:
    """`splits` whose training frames have their teacher."""
    parts: list[Frames] = [TaughtFrames(part, teacher) for part in parts_of(splits.train)]
    train = ConcatFrames(parts) if isinstance(splits.train, ConcatFrames) else parts[0]
    return replace(splits, train=train)


def show(teacher: Teacher, frames: Frames, workers: int, indices: list[int]) -> None:
    """Shows the teacher those of `frames` that it has not seen, with a progress bar; nothing is left open."""
    teacher.close()
    unknown = UnknownImages(frames, teacher)
    loader = DataLoader(unknown, None, sampler=indices, num_workers=workers, collate_fn=in_shared_memory)
    for image in track(loader, f"teacher: {teacher.path.name}", len(indices), transient=True):
        if image is not None:
            teacher(image)
    teacher.close()
    say(f"teacher: {teacher.name}: {len(indices)} training frames, kept in {teacher.folder}")


def own_metadata(path: Path, network: str) -> dict[str, Any]:
    """What the network's own file says; {} without."""
    source = network_file(path)
    metadata = read_metadata(source) if source.is_file() else {}
    return metadata if metadata.get("network") == network else {}
