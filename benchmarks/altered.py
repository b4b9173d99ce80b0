"""Training with one thing changed that is no option: for the rows of benchmarks/ablation.py.

    python benchmarks/altered.py plain_textures data=synthetic trainer.max_steps=250 ...    # then as train.py

Data are made in the process itself (workers=0): a worker would not know of the change.
"""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

import mde.data.synthetic as synthetic
from mde.data import transforms
from mde.data.synthetic import rooms, scene, streets

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def no_colour_jitter() -> None:
    transforms._COLOUR = ()


def whole_frames() -> None:
    """No crops: only mirrored."""
    transforms._SMALLEST_AREA, transforms._ASPECT_CHANGE = 1.0, 1.0


def one_field_of_view() -> None:
    """60 degrees, about that of NYU's camera."""
    for world in (rooms, streets):
        world.FIELD_OF_VIEW = (60.0, 60.0)


def plain_textures() -> None:
    scene.KINDS = dict.fromkeys(scene.KINDS, scene.KINDS["plain"])


def one_light() -> None:
    """Every room lit alike, as far as its size allows."""
    lights = rooms._lights
    rooms._lights = lambda rng, *walls: lights(Random(0), *walls)


def one_exposure() -> None:
    """The same white balance, exposure, vignette, blur, noise and contrast in every frame."""
    expose = synthetic.expose
    synthetic.expose = lambda radiance, generator: expose(radiance, torch.Generator().manual_seed(0))


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
        plain_textures,
        one_light,
        one_exposure,
        moving_average,
    )
}


def main() -> None:
    change = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if change not in ALTERATIONS:
        raise SystemExit(f"{change}: unknown; choose one of {', '.join(ALTERATIONS)}")
    ALTERATIONS[change]()
    sys.argv[0] = str(TRAIN)
    sys.argv.append("workers=0")
    runpy.run_path(str(TRAIN), run_name="__main__")


if __name__ == "__main__":
    main()
