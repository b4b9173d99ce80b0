"""A folder of frames as a sensor's stream: one that was recorded here, or any data set that `data=folder` reads."""

import csv
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from mde.data.folder import REMEDY, FolderFrames
from mde.errors import MdeError
from mde.json_file import read_json
from mde.renderer.depth_sensor import depth_edges
from mde.sensors.frame import Account, SensorFrame
from mde.sensors.realsense import Settings
from mde.sensors.recorder import TIMES

RATE = 30.0  # frames a second where nothing was noted


class FolderStream:
    """The frames of a folder in natural order, depth at its own size if that is not the image's.

    A frame that cannot be read ends the stream: `account.problem` says which.
    """

    def __init__(self, root: str, settings: Settings):
        for option, value in (("preset", settings.preset), ("confidence", settings.confidence)):
            if value:
                raise MdeError(f"data.{option}={value}: of a camera or its recording, not of a folder; leave it out")
        self._frames = FolderFrames(root)
        self.settings, self.name, self.cap = settings, self._frames.name, settings.max_depth
        self.count: int | None = max(0, len(self._frames) - (settings.warmup or 0))
        meta = read_json(Path(root) / "meta.json", REMEDY)
        self.account = Account(
            root, device=str(meta.get("sensor", "")), serial=str(meta.get("serial", "")), unit=self._frames.depth_unit
        )
        self._clock = _clock(Path(root) / TIMES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def __iter__(self) -> Iterator[SensorFrame]:
        settings, account = self.settings, self.account
        account.warmup = settings.warmup or 0
        for index in range(account.warmup, len(self._frames)):
            start = time.perf_counter()
            try:
                sample = self._frames[index]
            except MdeError as error:
                account.problem = str(error)
                return
            number, seconds = self._clock.get(sample.frame, (index, index / RATE))
            rgb = sample.image.permute(1, 2, 0).contiguous().numpy()
            depth = sample.depth[0].numpy()
            if settings.drop_edges:
                depth[depth_edges(sample.depth)[0][0].numpy()] = 0
            depth[(depth < settings.min_depth) | (depth > settings.max_depth)] = 0
            account.arrived(number)
            account.size = (rgb.shape[0], rgb.shape[1])
            intrinsics = None if sample.intrinsics is None else sample.intrinsics.double().numpy()
            captured = 1000 * (time.perf_counter() - start)
            yield SensorFrame(number, seconds, rgb, depth, intrinsics, account.unit, capture_ms=captured)


def _clock(path: Path) -> dict[str, tuple[int, float]]:
    """Number and seconds of each frame, as far as times.csv has whole lines."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = list(csv.reader(file))[1:]
    return {row[0]: (int(row[1]), float(row[2])) for row in rows if len(row) == 3}
