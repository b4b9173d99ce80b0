"""Training with one thing changed that is no option: for the rows of benchmarks.ablation.

    python -m benchmarks.altered plain_textures data=synthetic trainer.max_steps=150 ...    # then as train.py

Data are made in the process itself (workers=0): a worker that is not forked would not know of the change.
"""

import sys
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import hydra
import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from omegaconf import DictConfig

from mde.app.entry import job, register, run
from mde.data import synthetic, transforms
from mde.renderer import furniture, photo, rooms, scene, streets
from mde.training import held_scale as scale
from mde.training import train


def no_colour_jitter() -> None:
    transforms._COLOUR = ()


def whole_frames() -> None:
    """No crops: only mirrored."""
    transforms._SMALLEST_AREA, transforms._ASPECT_CHANGE = 1.0, 1.0


def one_field_of_view() -> None:
    """Every camera's in the middle of the range."""
    for world in (rooms, streets):
        middle = sum(world.FIELD_OF_VIEW) / 2
        world.FIELD_OF_VIEW = (middle, middle)


def one_object_scale() -> None:
    """Furniture and things, cars and people, each in the middle of its range of sizes; all else is drawn as it was."""

    class Middling(Random):
        def uniform(self, low: float, high: float) -> float:
            drawn, caller = super().uniform(low, high), sys._getframe(1).f_code
            sizes = caller.co_filename == furniture.__file__ or caller is rooms._piece.__code__
            return (low + high) / 2 if sizes and low > 0 else drawn  # a place may lie on either side of zero

    synthetic.Random = Middling


def plain_textures() -> None:
    """As many of every kind as before, so that nothing else of a scene changes."""
    plain = scene.KINDS["plain"]
    scene.KINDS = {kind: [plain[n % len(plain)] for n in range(len(those))] for kind, those in scene.KINDS.items()}


def one_light() -> None:
    """Every room has the same lights, as far as its size allows, every street the same sun and sky."""
    for world, name in (rooms, "_lights"), (streets, "_sun"), (streets, "_sky"):
        setattr(world, name, partial(_unvaried, getattr(world, name)))


def _unvaried(draw: Callable[..., Any], rng: Random, *rest: Any) -> Any:
    return draw(Random(0), *rest)


def one_exposure() -> None:
    """Exposure, white balance, vignette, blur, noise level and contrast in the middle of their ranges."""
    photo._chance = lambda generator: [0.5] * 9


def scale_not_held() -> None:
    """Nothing keeps the size of outputs and inner maps, to which the losses are blind."""
    scale.WEIGHT = 0.0


def moving_average() -> None:
    """The mean of the weights over about the last 50 steps is what is kept."""

    class Averaging(L.Trainer):
        def __init__(self, *, callbacks: list[L.Callback], **options):
            super().__init__(callbacks=[*callbacks, EMAWeightAveraging(decay=0.98)], **options)

    L.Trainer = Averaging


ALTERATIONS: dict[str, Callable[[], None]] = {
    change.__name__: change
    for change in (
        no_colour_jitter,
        whole_frames,
        one_field_of_view,
        one_object_scale,
        plain_textures,
        one_light,
        one_exposure,
        scale_not_held,
        moving_average,
    )
}


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@job
def as_train(config: DictConfig) -> None:
    train(config)


def main() -> None:
    change = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if change not in ALTERATIONS:
        raise SystemExit(f"{change}: unknown; choose one of {', '.join(ALTERATIONS)}")
    ALTERATIONS[change]()
    sys.argv[0] = f"-m benchmarks.altered {change}"  # the run's record names the command
    sys.argv.append("workers=0")
    register()
    run(as_train)


if __name__ == "__main__":
    main()
