"""An embedded dataset: rooms and streets rendered on the fly, with exact depth. Nothing to download."""

from random import Random

import torch
from torch import Tensor

from mde.data.sample import Sample, Splits
from mde.errors import MdeError
from mde.renderer import depth_sensor as sensors
from mde.renderer import render
from mde.renderer.photo import expose
from mde.renderer.rooms import room
from mde.renderer.scene import Scene
from mde.renderer.streets import street

CAP = 80.0
WORLDS = ("mixed", "rooms", "streets")
SENSORS = ("none", "l515", "lidar")
STREET_SHARE = 0.2


class SyntheticFrames:
    """Seeded frames of our own renderer. frames[i] depends on (seed, i, size, sensor, world) alone.

    size    (H, W) of image and depth
    sensor  "none": exact depth everywhere, sky +inf; "l515", "lidar": what that sensor would measure
    world   "rooms", "streets", or "mixed" (four rooms to one street)

    Pixels need not be square: a part of the frames imitates wider pictures stretched to `size`, as real ones often are.
    No scene reaches beyond `cap`, 80 m. Raises MdeError for an unknown sensor or world.
    """

    name = "synthetic"
    cap = CAP

    def __init__(
        self, length: int, size: tuple[int, int] = (256, 256), seed: int = 0, sensor: str = "none", world: str = "mixed"
    ):
        _known("sensor", sensor, SENSORS)
        _known("world", world, WORLDS)
        self.length, self.size, self.seed, self.sensor, self.world = length, (size[0], size[1]), seed, sensor, world

    def __len__(self) -> int:
        return self.length

    def scene(self, index: int) -> Scene:
        rng = Random(f"{self.seed}/{index}")
        outdoors = rng.random() < {"mixed": STREET_SHARE, "rooms": 0.0, "streets": 1.0}[self.world]
        return street(rng, self.size) if outdoors else room(rng, self.size)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"frame {index} of {self.length}")
        generator = torch.Generator().manual_seed(Random(f"{self.seed}/{index}/pixels").getrandbits(63))
        scene = self.scene(index)
        radiance, hits = render.render(scene)
        image = expose(radiance, generator)
        depth = (1 / hits.inverse_depth)[None]  # 1 / 0 is the sky's +inf
        camera = scene.camera
        intrinsics = torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]])
        depth = self._measure(depth, image, intrinsics, generator)
        unit = sensors.L515_UNIT if self.sensor == "l515" else 0.001
        return Sample(image, depth, depth > 0, self.name, f"{self.seed}-{index:06d}", intrinsics, unit)

    def _measure(self, depth: Tensor, image: Tensor, intrinsics: Tensor, generator: torch.Generator) -> Tensor:
        if self.sensor == "l515":
            return sensors.l515(depth, image, intrinsics, generator)
        if self.sensor == "lidar":
            return sensors.lidar(depth, intrinsics, generator)
        return depth


def _known(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise MdeError(f"data.{option}={value}: unknown; choose one of {', '.join(choices)}")


def synthetic_splits(
    frames: int = 20000,
    size: tuple[int, int] = (256, 256),
    validation: int = 64,
    test: int = 128,
    seed: int = 0,
    sensor: str = "none",
    world: str = "mixed",
) -> Splits:
    """Disjoint scenes for the three parts. Validation and test have exact depth whatever the sensor."""
    return Splits(
        name=SyntheticFrames.name,
        train=SyntheticFrames(frames, size, 3 * seed, sensor, world),
        validation=SyntheticFrames(validation, size, 3 * seed + 1, "none", world),
        test=SyntheticFrames(test, size, 3 * seed + 2, "none", world),
        note="rendered; exact depth",
    )
