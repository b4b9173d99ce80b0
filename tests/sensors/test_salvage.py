"""Recordings that break off, played by librealsense itself after what is left of them was salvaged."""

import contextlib
import re
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path

import lz4.frame
import numpy as np
import pyrealsense2 as rs
import pytest

from mde.errors import MdeError
from mde.sensors import salvage as module
from mde.sensors.realsense import Settings
from mde.sensors.salvage import recorded_images, salvage
from mde.sensors.source import open_sensor
from tests.conftest import ROOT
from tests.data import make_bag

TINY = ROOT / "tests/data/tiny.bag"
ALL_BUT_THE_LAST = (12, 11)  # depth, colour


def play(path: Path) -> dict[str, dict[int, tuple[float, np.ndarray]]]:
    """{stream: {frame number: (time stamp in ms, pixels)}} of a whole recording."""
    device = rs.context().load_device(str(path))
    device.set_real_time(False)
    assert device.first_depth_sensor().get_depth_scale() == pytest.approx(make_bag.UNIT)
    seen: dict[str, dict[int, tuple[float, np.ndarray]]] = {"Depth": {}, "Color": {}}
    # Playing begins with the first sensor's start: its first frame waits for the others, or theirs would be dropped.
    # (Pausing meanwhile does the same, but librealsense 2.59 sometimes takes 10 s to resume.)
    started = threading.Event()

    def keep(frame: rs.frame) -> None:
        started.wait()
        pixels = np.array(frame.get_data())
        seen[frame.get_profile().stream_name()][frame.get_frame_number()] = (frame.get_timestamp(), pixels)

    sensors = device.query_sensors()
    for sensor in sensors:
        sensor.open(sensor.get_stream_profiles())
    for sensor in sensors:
        sensor.start(keep)
    started.set()
    deadline, before, now = time.monotonic() + 20, 0, 0
    while not now or now > before or device.current_status() != rs.playback_status.stopped:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        before, now = now, sum(map(len, seen.values()))
    for sensor in sensors:
        sensor.stop()
        sensor.close()
    return seen


def kept(path: Path, depth: np.ndarray, color: np.ndarray) -> tuple[int, int]:
    """How many frames of depth and of colour; they must be the first ones, bit for bit, with their time stamps."""
    seen = play(path)
    for name, images in (("Depth", depth), ("Color", color)):
        assert sorted(seen[name]) == list(range(1, len(seen[name]) + 1))
        for number, (stamp, pixels) in seen[name].items():
            assert stamp == pytest.approx((number - 1) * 1000 / 30, abs=0.01)
            np.testing.assert_array_equal(pixels, images[number - 1])
    return len(seen["Depth"]), len(seen["Color"])


def reported(report: str) -> tuple[int, tuple[int, int], float, float]:
    """Messages, frames of depth and colour, MB read, MB there were."""
    pattern = (
        r"short\.\w+ breaks off: (\d+) messages \(frames: (\d+) of Color_0, (\d+) of Depth_0\) in (.+) of (.+) MB read"
    )
    found = re.match(pattern, report)
    assert found, report
    return int(found[1]), (int(found[3]), int(found[2])), float(found[4]), float(found[5])


def cut(path: Path, length: int, folder: Path, filler: int = 0) -> Path:
    short = folder / f"short{path.suffix}"
    short.write_bytes(path.read_bytes()[:length] + bytes(filler))
    return short


@pytest.fixture(scope="module")
def noise() -> tuple[np.ndarray, np.ndarray]:
    """20 frames that nothing compresses: a share of the file is the same share of the frames."""
    rng = np.random.default_rng(0)
    shape = (20, make_bag.HEIGHT, make_bag.WIDTH)
    return rng.integers(1, 1 << 16, shape, np.uint16), rng.integers(0, 256, (*shape, 3), np.uint8)


@pytest.fixture(scope="module")
def db3(tmp_path_factory, noise) -> Path:
    path = tmp_path_factory.mktemp("db3") / "room.db3"
    make_bag.record(path, *noise)
    return path


def chunks(compression: str) -> list[bytes]:
    """tiny.bag's one chunk as the records of several, of about a frame each."""
    data = TINY.read_bytes()
    chunk = next(r for r in module._records(data, len(module.BAG), len(data)) if r.op == module.CHUNK)
    content = lz4.frame.decompress(data[chunk.data : chunk.end])
    parts = [b""]
    for record in module._records(content, 0, len(content)):
        parts[-1] += content[record.start : record.end]
        if len(parts[-1]) > 15_000:
            parts.append(b"")
    as_it_does = {"content_checksum": True, "store_size": False}  # the only way librealsense unpacks
    pack = {"none": bytes, "lz4": partial(lz4.frame.compress, **as_it_does)}[compression]
    fields = {"compression": compression.encode()}
    return [module._record(module.CHUNK, pack(part), size=module._uint32(len(part)), **fields) for part in parts]


def killed(path: Path, parts: list[bytes]) -> Path:
    """A .bag without an index, and without the place of one in its header."""
    path.write_bytes(module.BAG + module._bag_header(0, 0, 0) + b"".join(parts))
    return path


def rows(path: Path) -> list[tuple[int, int, int, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute("SELECT * FROM messages ORDER BY id").fetchall()


def test_librealsense_refuses_a_file_cut_off(db3, tmp_path):
    """The day it does not, none of this is needed."""
    for path in (TINY, db3):
        with pytest.raises(RuntimeError):
            play(cut(path, path.stat().st_size - 5000, tmp_path))


def test_a_db3_keeps_the_frames_before_the_cut(db3, noise, tmp_path):
    size, counts = db3.stat().st_size, []
    for share in (0.3, 0.6, 0.95, 1 - 1 / size):
        short = cut(db3, round(share * size), tmp_path)
        before = short.read_bytes()
        salvaged = salvage(short, tmp_path / "out")
        assert short.read_bytes() == before
        assert salvaged.path == tmp_path / "out" / "short_salvaged.db3"
        counts.append(kept(salvaged.path, *noise))
        assert min(counts[-1]) >= share * len(noise[0]) - 3
        messages, frames, read, total = reported(salvaged.report)
        assert (messages, frames) == (len(rows(salvaged.path)), counts[-1])
        assert (read, total) == (pytest.approx(share * size / 1e6, abs=0.01), pytest.approx(size / 1e6, abs=0.005))
    assert counts == sorted(counts)


@pytest.mark.parametrize("filler", [0, 100_000])
def test_no_row_of_a_db3_is_half_read_wherever_it_is_cut(db3, tmp_path, filler):
    """Also when the file was given its full length before it was filled: zeros are what a missing page reads as.

    Of a row of 4,600 bytes, 500 are with those of other rows, the rest on a page of its own: several can lack theirs.
    """
    small = tmp_path / "small.db3"
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        with contextlib.closing(sqlite3.connect(db3)) as recorded:
            recorded.backup(database)
        database.execute("UPDATE messages SET data = substr(data, 1, 4600)")
        database.commit()
        database.execute("VACUUM INTO ?", (str(small),))
    whole, size, most = rows(small), small.stat().st_size, 0
    for length in range(size // 2, size // 2 + 30 * 4096, 4096 - 100):
        left = rows(salvage(cut(small, length, tmp_path, filler), tmp_path).path)
        assert left == whole[: len(left)]
        assert len(left) >= max(most, 1)
        most = len(left)


def test_a_long_db3_keeps_rows_that_its_tree_does_not_lead_to(db3, tmp_path):
    """Past some 2,000 rows the root points to pages made then, and a file without them has no row SQLite would find."""
    long = tmp_path / "long.db3"
    long.write_bytes(db3.read_bytes())
    with contextlib.closing(sqlite3.connect(long)) as database:
        messages = "messages (topic_id, timestamp, data)"
        for _ in range(60):
            database.execute(
                f"INSERT INTO {messages} SELECT topic_id, timestamp, data FROM messages WHERE id BETWEEN 40 AND 99"
            )
        database.commit()
    whole = rows(long)
    assert len(whole) > 3000
    left = rows(salvage(cut(long, long.stat().st_size // 3, tmp_path), tmp_path).path)
    assert left == whole[: len(left)]
    assert len(left) > 0.3 * len(whole)


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_bag_keeps_the_frames_before_the_cut(tmp_path, compression):
    path = killed(tmp_path / "room.bag", chunks(compression))
    size, counts = path.stat().st_size, []
    for share in (0.3, 0.6, 0.95, 1 - 1 / size, 1):
        salvaged = salvage(cut(path, round(share * size), tmp_path), tmp_path)
        counts.append(kept(salvaged.path, *make_bag.frames()))
        _, frames, read, total = reported(salvaged.report)
        assert frames == counts[-1]
        assert read <= total == pytest.approx(share * size / 1e6, abs=0.005)
    assert (0, 0) < counts[0] < counts[1] < counts[2] <= counts[3] <= counts[4] == ALL_BUT_THE_LAST


def test_a_bag_without_compression_keeps_the_messages_of_a_chunk_that_was_never_closed(tmp_path):
    parts = chunks("none")
    before = kept(salvage(killed(tmp_path / "closed.bag", parts[:4]), tmp_path).path, *make_bag.frames())
    header = module._record(module.CHUNK, b"", compression=b"none", size=bytes(4))
    record = next(module._records(parts[4], 0, len(parts[4])))
    path = killed(tmp_path / "open.bag", [*parts[:4], header, parts[4][record.data : -100]])
    assert sum(kept(salvage(path, tmp_path).path, *make_bag.frames())) > sum(before)


def test_a_bag_that_lost_no_more_than_its_index_keeps_all_frames_but_the_last(tmp_path):
    for length in (TINY.stat().st_size - 1, 80_000):
        salvaged = salvage(cut(TINY, length, tmp_path), tmp_path)
        assert kept(salvaged.path, *make_bag.frames()) == ALL_BUT_THE_LAST


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_zeros_after_the_cut_are_as_good_as_nothing(tmp_path, compression):
    path = killed(tmp_path / "room.bag", chunks(compression))
    length = path.stat().st_size * 6 // 10
    without = reported(salvage(cut(path, length, tmp_path), tmp_path).report)
    padded = salvage(cut(path, length, tmp_path, 200_000), tmp_path)
    assert reported(padded.report)[:3] == without[:3]
    assert kept(padded.path, *make_bag.frames()) == without[1]


@pytest.mark.parametrize("damage", ["a byte", "the end"])
def test_what_follows_a_damaged_chunk_is_left_out(tmp_path, damage):
    parts = chunks("lz4")
    before = kept(salvage(killed(tmp_path / "before.bag", parts[:3]), tmp_path).path, *make_bag.frames())
    record = next(module._records(parts[3], 0, len(parts[3])))
    data = parts[3][record.data :]
    data = data[:200] + bytes([data[200] ^ 1]) + data[201:] if damage == "a byte" else data[:-4]
    parts[3] = module._record(module.CHUNK, data, compression=b"lz4", size=record.fields[b"size"])
    salvaged = salvage(killed(tmp_path / "short.bag", parts), tmp_path)
    assert kept(salvaged.path, *make_bag.frames()) == reported(salvaged.report)[1] == before


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 5000,
        b"not a recording",
        module.BAG,
        module.BAG + b"\1" * 9999,
        module.DB3,
        module.DB3 + b"\1" * 9999,
    ],
    ids=["empty", "zeros", "text", "bag's name", "bag of garbage", "db3's name", "db3 of garbage"],
)
def test_what_is_no_recording_is_refused(tmp_path, content):
    (tmp_path / "x.bag").write_bytes(content)
    with pytest.raises(MdeError, match=r"x\.bag"):
        salvage(tmp_path / "x.bag", tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_recording_cut_before_its_first_frame_is_refused(db3, tmp_path):
    for path, lengths in ((TINY, (20, 4117, 5000, 40_000)), (db3, (17, 100, 4095, 4096, 8192, 12288, 20_000))):
        for length in lengths:
            with pytest.raises(MdeError, match="before its first whole frame"):
                salvage(cut(path, length, tmp_path), tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MdeError, match=r"gone\.bag"):
        salvage(tmp_path / "gone.bag", tmp_path)


@pytest.mark.parametrize("suffix", [".bag", ".db3"])
def test_an_index_counts_the_images_of_a_whole_file_only(tmp_path, suffix):
    path = TINY
    if suffix == ".db3":
        path = tmp_path / "tiny.db3"
        make_bag.record(path, *make_bag.frames())
    assert recorded_images(path) == {"Depth_0": 12, "Color_0": 12}
    size = path.stat().st_size
    for length in (size - 1, size // 2, 14, 0):
        short = cut(path, length, tmp_path)
        assert not recorded_images(short) or (suffix == ".db3" and length == size - 1)
    assert not recorded_images(tmp_path / f"gone{suffix}")


def damaged(whole: Path, length: int, folder: Path) -> Path:
    """Noise in the middle."""
    content = bytearray(whole.read_bytes())
    middle = len(content) // 2
    content[middle : middle + length] = np.random.default_rng(0).bytes(length)
    path = folder / f"damaged{whole.suffix}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("suffix", [".bag", ".db3"])
def test_where_a_recording_is_damaged_librealsense_stops_and_that_is_said(tmp_path, db3, suffix):
    whole = db3 if suffix == ".db3" else salvage(killed(tmp_path / "whole.bag", chunks("lz4")), tmp_path).path
    there = recorded_images(whole)
    with open_sensor(str(damaged(whole, 200, tmp_path)), Settings()) as stream:
        frames = list(stream)
    assert 3 <= len(frames) < 12
    (note,) = stream.account.notes
    found = re.match(
        rf"damaged\{suffix}: .* stopped after (\d+) of (\d+) .* of depth and (\d+) of (\d+) of colour", note
    )
    assert [int(number) for number in found.groups()][1::2] == [there["Depth_0"], there["Color_0"]]
    assert len(frames) in (int(found[1]), int(found[3]))


def test_a_bag_whose_records_are_damaged_is_salvaged(tmp_path):
    """librealsense 2.59 would look for the next one for ever."""
    whole = salvage(killed(tmp_path / "whole.bag", chunks("lz4")), tmp_path).path
    with open_sensor(str(damaged(whole, 20_000, tmp_path)), Settings()) as stream:
        frames = list(stream)
    assert 3 <= len(frames) < 10
    assert "damaged.bag breaks off" in stream.account.notes[0]
