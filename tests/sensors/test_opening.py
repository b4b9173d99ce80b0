"""Recordings that librealsense does not open, or in which it searches for ever, end in one line."""

import sqlite3
import struct
from pathlib import Path

import pytest

from mde.errors import MdeError
from mde.sensors import opening
from mde.sensors.realsense import Settings
from mde.sensors.source import open_sensor
from tests.conftest import ROOT

TOPICS = (b"/camera/color/image_raw", b"/camera/aligned_depth_to_color/image_raw")


def uint32(number: int) -> bytes:
    return struct.pack("<I", number)


def record(data: bytes = b"", **fields: bytes) -> bytes:
    """One of rosbag's records."""
    header = b"".join(
        uint32(len(name) + 1 + len(value)) + name.encode() + b"=" + value for name, value in fields.items()
    )
    return uint32(len(header)) + header + uint32(len(data)) + data


def ros1(path: Path) -> None:
    """As `rosbag record` leaves it: a chunk of two topics with a message each, and its index."""
    connections = [record(b"", op=b"\7", conn=uint32(n), topic=topic) for n, topic in enumerate(TOPICS)]
    messages = [record(bytes(50), op=b"\2", conn=uint32(n), time=bytes(8)) for n in range(len(TOPICS))]
    content = b"".join([*connections, *messages])
    chunk = record(content, op=b"\5", compression=b"none", size=uint32(len(content)))
    counts = b"".join(uint32(n) + uint32(1) for n in range(len(TOPICS)))
    info = record(counts, op=b"\6", chunk_pos=struct.pack("<Q", 13 + 4096), count=uint32(2))
    fields = {"op": b"\3", "index_pos": struct.pack("<Q", 13 + 4096 + len(chunk))}
    head = record(b" " * (4096 - len(record(b"", **fields))), **fields)
    path.write_bytes(b"#ROSBAG V2.0\n" + head + chunk + b"".join(connections) + info)


def ros2(path: Path) -> None:
    """As `ros2 bag record` leaves it."""
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT, type TEXT)")
    database.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)")
    for number, topic in enumerate(TOPICS):
        database.execute("INSERT INTO topics VALUES (?, ?, 'sensor_msgs/msg/Image')", (number, topic.decode()))
        database.execute("INSERT INTO messages VALUES (?, ?, 0, ?)", (number, number, bytes(9000)))
    database.commit()
    database.close()


def refused(source: Path) -> str:
    with pytest.raises(MdeError) as error, open_sensor(str(source), Settings()):
        pass
    assert "\n" not in str(error.value)
    assert str(source) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "broken off"])
@pytest.mark.parametrize(("name", "write"), [("ros1.bag", ros1), ("ros2.db3", ros2)], ids=["ROS 1", "ROS 2"])
def test_a_recording_of_ros_is_called_one(name, write, whole, tmp_path):
    path = tmp_path / name
    write(path)
    if not whole:
        path.write_bytes(path.read_bytes()[: -(60 if path.suffix == ".bag" else 4096)])
    said = refused(path)
    assert "recorded by ROS" in said
    assert "breaks off" not in said
    assert "copy it again" not in said


def test_so_is_the_folder_that_ros_2_makes_and_its_newer_format(tmp_path):
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information:\n")
    (tmp_path / "drive.mcap").write_bytes(b"\x89MCAP0\r\n")
    for source in (tmp_path, tmp_path / "drive.mcap"):
        assert "recorded by ROS" in refused(source)


def test_one_in_which_librealsense_searches_for_ever_is_ended(tmp_path, ideal, monkeypatch):
    """A changed byte in the name of one topic: it looks for the old one, and holds Python's lock."""
    path, name = tmp_path / "changed.db3", b"/device_0/sensor_0/option/Depth_Units/value"
    content = ideal.read_bytes()
    path.write_bytes(content.replace(name, name[:-1] + b"f"))
    monkeypatch.setattr(opening, "LIMIT", 5.0)
    assert "searches in it for 5 s and finds no end" in refused(path)


def test_whole_recordings_open_and_others_do_not(tmp_path, ideal):
    assert opening.opens(ideal)
    assert opening.opens(ROOT / "tests/data/tiny.bag")
    (tmp_path / "noise.db3").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    assert not opening.opens(tmp_path / "noise.db3")
