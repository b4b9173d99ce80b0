"""`data=l515`: which camera or recording, read how."""

from pathlib import Path
from typing import Any

from mde.data.sample import Sample, Splits
from mde.errors import MdeError
from mde.sensors.folder import FolderStream
from mde.sensors.frame import SensorStream
from mde.sensors.realsense import LIVE, RECORDINGS, RealSense, Settings
from mde.sensors.salvage import of_ros


def open_sensor(source: str, settings: Settings, record: Path | None = None) -> SensorStream:
    """`source`: "live", a .bag or .db3, or a folder of frames. `record`: see RealSense. MdeError for anything else."""
    path = Path(source)
    if path.suffix == ".mcap" or (path / "metadata.yaml").is_file():  # the folder around one, as ROS 2 makes it
        raise of_ros(path)
    if source == LIVE or (path.is_file() and path.suffix in RECORDINGS):
        return RealSense(source, settings, record)
    if path.is_dir():
        return FolderStream(source, settings)
    if path.exists():
        raise MdeError(f"data.source={source}: no recording; give {LIVE}, a {' or '.join(RECORDINGS)}, or a folder")
    raise MdeError(f"data.source={source}: no such file or folder; give {LIVE} for a camera, or a recording")


class Unindexed:
    """Frames that come once and in order: whoever wants the i-th is told how to have it."""

    name, cap = "l515", 0.0

    def __len__(self) -> int:
        raise MdeError(
            "data=l515: nothing can train or calibrate on a stream of frames; record it first: "
            "deploy.py record=FOLDER data=l515 data.source=..., then data=folder data.root=FOLDER"
        )

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)


def sensor_splits(**options: Any) -> Splits:
    """What `data=l515` is to whoever wants a dataset: an error, see Unindexed."""
    return Splits(Unindexed.name, Unindexed(), Unindexed())
