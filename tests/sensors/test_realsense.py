import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyrealsense2 as rs
import pytest

from mde.errors import MdeError
from mde.renderer.depth_sensor import L515_UNIT
from mde.sensors import emulator, library
from mde.sensors.ahead import Ahead
from mde.sensors.realsense import RealSense, Settings, set_preset
from mde.sensors.source import open_sensor, sensor_splits
from tests.conftest import ROOT
from tests.data import make_bag
from tests.sensors.conftest import SIZE


def frames_of(path, **settings):
    with open_sensor(str(path), Settings(**settings)) as stream:
        return list(stream), stream.account


def test_a_recording_loses_nothing_and_changes_nothing(ideal, shown):
    frames, account = frames_of(ideal)
    assert [frame.number for frame in frames] == list(range(1, 13))
    assert account.lost == 0
    assert account.problem is None
    assert account.device == "Intel RealSense L515"
    assert account.serial == "f0000001"
    assert account.unit == pytest.approx(L515_UNIT)
    assert account.size == SIZE
    for frame, sent in zip(frames, shown, strict=True):
        assert np.array_equal(frame.rgb, sent.rgb)
        inside = np.where((sent.counts * L515_UNIT >= 0.25) & (sent.counts * L515_UNIT <= 9), sent.counts, 0)
        assert np.array_equal(np.rint(frame.depth / frame.unit), inside)
        assert np.allclose(frame.intrinsics, sent.K[0])


def test_a_slow_reader_gets_every_frame(ideal):
    with open_sensor(str(ideal), Settings()) as stream:
        numbers = [frame.number for frame in Ahead(stream) if not time.sleep(0.02)]
    assert numbers == list(range(1, 13))


def test_depth_from_beside_is_aligned_to_colour(noisy):
    """Where the true depth is smooth, what arrives is that depth with the sensor's noise: parallax would be more."""
    truth = np.load(noisy.with_suffix(".exact.npz"))["depth"]
    frames, _ = frames_of(noisy)
    for frame, exact in zip(frames, truth, strict=True):
        both = (frame.depth > 0) & np.isfinite(exact)
        assert both.mean() > 0.8
        assert np.median(np.abs(frame.depth - exact)[both] / exact[both]) < 0.01


def test_an_old_bag_and_a_new_db3_say_the_same(tmp_path):
    """tiny.bag was written by librealsense 2.54, as make_bag.py says."""
    depth, color = make_bag.frames()
    make_bag.record(tmp_path / "tiny.db3", depth, color)
    old, of_old = frames_of(ROOT / "tests" / "data" / "tiny.bag")
    new, of_new = frames_of(tmp_path / "tiny.db3")
    assert len(old) == len(new) == len(depth)
    for one, other, counts, rgb in zip(old, new, depth, color, strict=True):
        assert np.array_equal(one.rgb, other.rgb)
        assert np.array_equal(one.rgb, rgb)
        assert np.array_equal(one.depth, other.depth)
        assert np.array_equal(one.intrinsics, other.intrinsics)
        assert one.number == other.number
        assert one.time == pytest.approx(other.time)
        assert (one.depth > 0).any()
        assert set(np.rint(one.depth[one.depth > 0] / one.unit)) <= set(counts[counts > 0])  # aligned, none made up
    for name in ("device", "serial", "unit", "size", "lost"):
        assert getattr(of_old, name) == getattr(of_new, name)


def test_of_a_recording_that_breaks_off_the_rest_is_used_and_said(tmp_path, ideal, shown):
    broken = tmp_path / "broken.db3"
    broken.write_bytes(ideal.read_bytes()[: ideal.stat().st_size * 6 // 10])
    frames, account = frames_of(broken)
    assert 3 <= len(frames) < 12
    for frame, sent in zip(frames, shown, strict=False):
        assert np.array_equal(frame.rgb, sent.rgb)
    (note,) = account.notes
    assert "broken.db3 breaks off" in note


def test_of_a_damaged_file_nothing_is_made_up(tmp_path):
    path = tmp_path / "noise.db3"
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)
    with pytest.raises(MdeError, match=r"noise\.db3"), open_sensor(str(path), Settings()):
        pass


def test_range_warmup_and_count_are_as_asked(ideal):
    frames, account = frames_of(ideal, warmup=4, min_depth=1.0, max_depth=3.0)
    assert [frame.number for frame in frames] == list(range(5, 13))
    assert account.warmup == 4
    known = np.concatenate([frame.depth[frame.depth > 0] for frame in frames])
    assert 1.0 <= known.min() <= known.max() <= 3.0


def test_distrusted_edges_are_gone(ideal):
    plain, _ = frames_of(ideal)
    frames, _ = frames_of(ideal, drop_edges=True)
    for frame, before in zip(frames, plain, strict=True):
        depth = before.depth
        kept = frame.depth > 0
        assert kept.mean() > 0.5
        assert np.array_equal(frame.depth[kept], depth[kept])
        padded = np.pad(depth, 1, mode="edge")
        around = np.stack([padded[y : y + SIZE[0], x : x + SIZE[1]] for y in range(3) for x in range(3)])
        nearest = np.where(around > 0, around, np.inf).min(axis=0)
        inner = np.s_[1:-1, 1:-1]
        assert not kept[inner][(around.max(axis=0) > 1.06 * nearest)[inner]].any()


def test_frames_that_did_not_arrive_are_counted(tmp_path, shown):
    """The device's own numbers say so."""
    path = tmp_path / "gaps.db3"
    device = emulator.SoftwareL515(shown[0], 0.0)
    recorder = emulator.start_recorder(device, path)
    for number in (1, 2, 5, 6, 10):
        device.show(shown[number], number)
        time.sleep(0.01)
    emulator.stop_recorder(recorder)
    frames, account = frames_of(path)
    assert [frame.number for frame in frames] == [1, 2, 5, 6, 10]
    assert account.lost == 5


@pytest.mark.parametrize("missing", ["depth", "colour"])
def test_an_image_that_did_not_arrive_is_not_replaced_by_an_old_one(tmp_path, shown, missing):
    """librealsense pairs what comes with the last image of the other stream: that is no truth of this moment."""
    path = tmp_path / "half.db3"
    device = emulator.SoftwareL515(shown[0], 0.0)
    both = dict(device.views)
    recorder = emulator.start_recorder(device, path)
    for number in range(1, 12):
        device.views = {name: view for name, view in both.items() if name != missing or not 5 <= number <= 7}
        device.show(shown[number], number)
        time.sleep(0.01)
    emulator.stop_recorder(recorder)
    frames, account = frames_of(path)
    numbers = [frame.number for frame in frames]
    assert not set(numbers) & {5, 6, 7}
    assert account.lost >= 3
    assert len(numbers) + account.lost == 11
    for frame in frames:
        sent = shown[frame.number]
        assert np.array_equal(frame.rgb, sent.rgb)
        known = frame.depth > 0
        assert np.array_equal(np.rint(frame.depth / frame.unit)[known], sent.counts[known])


def test_what_librealsense_would_write_over_is_refused(tmp_path):
    precious = tmp_path / "precious.db3"
    precious.write_text("precious")
    for name, reason in (("precious.db3", "exists already"), ("room.bag", r"writes \.db3")):
        with pytest.raises(MdeError, match=reason):
            RealSense("live", Settings(), tmp_path / name)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("wrong", [{"resolution": (480,)}, {"warmup": -1}, {"confidence": 16}, {"min_depth": 9.5}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(MdeError, match=f"data.{next(iter(wrong))}"):
        Settings(**wrong)


def test_a_frame_is_a_sample(ideal):
    frame = frames_of(ideal)[0][0]
    sample = frame.sample("room")
    assert sample.image.shape == (3, *SIZE)
    assert sample.depth.shape == (1, *SIZE)
    assert (sample.mask == (sample.depth > 0)).all()
    assert (sample.dataset, sample.frame) == ("room", "000001")


def test_reading_ahead_ends_with_its_reader(ideal):
    with open_sensor(str(ideal), Settings()) as stream:
        ahead = Ahead(stream)
        frames = ahead.__iter__()
        list(itertools.islice(frames, 3))
        frames.close()
        assert not ahead._thread.is_alive()


def test_reading_ahead_raises_what_the_stream_raises(ideal):
    class Broken:
        def __iter__(self):
            yield from ()
            raise MdeError("broken")

    with pytest.raises(MdeError, match="broken"):
        list(Ahead(Broken()))


@pytest.mark.parametrize("missing", ["depth", "colour"])
def test_a_recording_of_one_stream_is_refused(tmp_path, shown, missing):
    path = tmp_path / "half.db3"
    device = emulator.SoftwareL515(shown[0], 0.0, streams=("colour",) if missing == "depth" else ("depth",))
    recorder = emulator.start_recorder(device, path)
    for number in range(1, 4):
        device.show(shown[number], number)
    emulator.stop_recorder(recorder)
    with pytest.raises(MdeError, match=f"holds no {missing}"), open_sensor(str(path), Settings()):
        pass


def test_what_is_no_recording_is_refused(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    for source, reason in ((text, "no recording"), (tmp_path / "none.bag", "no such file")):
        with pytest.raises(MdeError, match=reason):
            open_sensor(str(source), Settings())


def test_a_preset_of_a_recording_is_refused(ideal):
    with pytest.raises(MdeError, match="live camera"):
        open_sensor(str(ideal), Settings(preset="no_ambient"))


def test_no_camera_is_said_with_the_remedy(monkeypatch, tmp_path):
    monkeypatch.setattr(library, "USB_DEVICES", tmp_path)
    with pytest.raises(MdeError, match=r"finds no camera.*data\.source=FILE"), open_sensor("live", Settings()):
        pass


def test_an_l515_that_librealsense_forgot_is_said_with_the_remedy(monkeypatch, tmp_path):
    device = tmp_path / "2-1"
    device.mkdir()
    (device / "idVendor").write_text("8086\n")
    (device / "idProduct").write_text("0b64\n")
    monkeypatch.setattr(library, "USB_DEVICES", tmp_path)
    with pytest.raises(MdeError, match=r"L515 is connected.*2\.54\.2"), open_sensor("live", Settings()):
        pass


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [("No module named 'pyrealsense2'", "pip install"), ("libusb-1.0.so.0: cannot open shared", "apt install")],
)
def test_a_missing_library_is_said_with_the_remedy(monkeypatch, reason, remedy):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "pyrealsense2":
                raise ImportError(reason)

    monkeypatch.delitem(sys.modules, "pyrealsense2")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(MdeError, match=remedy):
        library.require_realsense()


def test_presets_are_known_by_the_names_the_camera_gives_them():
    class Sensor:
        chosen = None

        def supports(self, option):
            return True

        def get_option_range(self, option):
            return type("Range", (), {"min": 0.0, "max": 2.0})

        def get_option_value_description(self, option, value):
            return ["Custom", "No Ambient Light", "Max Range"][int(value)]

        def set_option(self, option, value):
            self.chosen = value

    sensor = Sensor()
    for preset, value in (("max_range", 2), ("no_ambient", 1), ("no_ambient_light", 1)):
        set_preset(rs, sensor, preset)
        assert sensor.chosen == value
    for preset in ("fastest", ""):
        with pytest.raises(MdeError, match="custom, no_ambient_light, max_range"):
            set_preset(rs, sensor, preset)


def test_depth_of_low_confidence_is_hidden():
    stream = RealSense("live", Settings(confidence=8))
    # librealsense hands out the camera's 4 bits as 0, 16, ... 240.
    counts, confidence = np.full((2, 3), 4000, np.uint16), np.array([[0, 7, 8], [15, 8, 3]], np.uint8) << 4
    stream._hide(counts, confidence)
    assert counts.tolist() == [[0, 0, 4000], [4000, 4000, 0]]
    stream._hide(counts, None)  # a recording without that stream
    assert counts.sum() == 3 * 4000


def test_the_unit_is_read_from_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(emulator, "L515_UNIT", 0.001)
    path = tmp_path / "millimetres.db3"
    emulator.record(emulator.rendered(2, replace(emulator.IDEAL, size=(48, 64))), path, 0.0)
    frames, account = frames_of(path)
    assert account.unit == pytest.approx(0.001)
    exact = np.load(path.with_suffix(".exact.npz"))["depth"]
    for frame, depth in zip(frames, exact, strict=True):
        assert np.abs(frame.depth - depth)[frame.depth > 0].max() <= 0.0005 + 1e-6


def test_nothing_trains_on_a_stream():
    with pytest.raises(MdeError, match="record it first"):
        len(sensor_splits(source="live").train)


OLD = ROOT / ".venv" / "librealsense-2.54"
LIVE = """
import threading, time
from pathlib import Path
import numpy as np
import pyrealsense2 as rs
from mde.sensors import realsense
from mde.sensors.ahead import Ahead
from dataclasses import replace
from mde.sensors.emulator import IDEAL, SoftwareL515, rendered

realsense.SILENCE = 1.0

class Context(rs.context):
    pulled = False
    def query_devices(self):
        return [] if self.pulled else rs.context.query_devices(self)

context = Context()
# One geometry: rs.align of 2.54 takes the unit from the sensor, which of a software device it does not know while live.
shown = list(rendered(4, replace(IDEAL, size=(96, 128))))
device = SoftwareL515(shown[0], 0.0)
device.device.create_matcher(rs.matchers.default)
device.device.add_to(context)
started = threading.Event()

def play():
    started.wait()
    for number in range(1, 41):
        device.show(shown[number % 4], number)
        time.sleep(1 / 60)
    context.pulled = {pulled}

threading.Thread(target=play, daemon=True).start()
settings = realsense.Settings(resolution=(96, 128), warmup=5)
kept = Path({kept!r}) if {pulled} else None
with realsense.RealSense("live", settings, kept, context) as stream:
    started.set()
    frames = list(Ahead(stream))
account = stream.account
print(account.device, account.library, account.live, account.warmup, sep="|")
print(frames[0].number, frames[-1].number, len(frames) + account.lost, account.problem, sep="|")
if kept:
    with realsense.RealSense(str(kept), realsense.Settings()) as stream:
        frames = list(stream)
print(len(frames), max(np.median(np.abs(frame.depth - shown[frame.number % 4].exact)) for frame in frames), sep="|")
"""


@pytest.mark.skipif(
    not OLD.is_dir(), reason="librealsense 2.54.2 is not beside the present one; its wheels end at 3.11"
)
@pytest.mark.parametrize(("pulled", "reason"), [(True, "unplugged"), (False, "sent nothing for")])
def test_a_live_l515_that_goes_away_keeps_what_it_gave(tmp_path, pulled, reason):
    """On 2.54.2, the last librealsense that knows it, and the last whose pipeline takes a software device."""
    environment = os.environ | {"PYTHONPATH": f"{OLD}:{ROOT}"}
    script = LIVE.format(pulled=pulled, kept=str(tmp_path / "kept.bag"))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    about, outcome, seen = done.stdout.splitlines()
    assert about == "Intel RealSense L515|librealsense 2.54.2|True|5"
    first, last, count, problem = outcome.split("|")
    assert reason in problem
    assert int(first) > 5
    assert int(last) == 40
    assert int(count) == 40 - int(first) + 1  # each is here, or counted as lost
    frames, error = seen.split("|")
    assert int(frames) >= 30
    assert float(error) <= L515_UNIT
