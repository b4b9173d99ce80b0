import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mde.data.folder import FolderFrames, folder_splits
from mde.errors import MdeError
from mde.jetson.runner import load_frames
from mde.sensors.frame import Account, SensorFrame
from mde.sensors.realsense import Settings
from mde.sensors.recorder import BundleRecorder, FolderRecorder
from mde.sensors.source import open_sensor


def keep(source, path, kind=FolderRecorder):
    with open_sensor(str(source), Settings()) as stream, kind(path, stream.account, path.stem, stream.cap) as recorder:
        frames = list(stream)
        for frame in frames:
            recorder.add(frame)
    return frames


@pytest.fixture(scope="session")
def folder(noisy, tmp_path_factory):
    path = tmp_path_factory.mktemp("folders") / "desk"
    return path, keep(noisy, path)


def test_a_recorded_folder_gives_back_every_pixel(folder):
    path, kept = folder
    with open_sensor(str(path), Settings()) as stream:
        frames = list(stream)
    assert stream.count == len(kept)
    assert stream.account.device == "Intel RealSense L515"
    for frame, before in zip(frames, kept, strict=True):
        assert np.array_equal(frame.rgb, before.rgb)
        assert np.array_equal(frame.depth, before.depth)
        assert np.allclose(frame.intrinsics, before.intrinsics, atol=1e-4)
        assert (frame.number, frame.unit) == (before.number, pytest.approx(before.unit))
        assert frame.time == pytest.approx(before.time, abs=1e-6)


def test_a_recorded_folder_trains(folder):
    splits = folder_splits(folder[0])
    assert splits.name == "desk"
    assert len(splits.train) >= 8
    assert len(splits.validation) >= 2
    assert splits.train[0].intrinsics is not None


def test_what_was_lost_stays_known(noisy, tmp_path):
    """The camera's numbers are kept, so that a gap is still one when the folder is read."""
    with open_sensor(str(noisy), Settings()) as stream:
        frames = list(stream)
    with FolderRecorder(tmp_path / "gaps", stream.account, "gaps", 9.0) as recorder:
        for frame in frames[:2] + frames[5:]:
            recorder.add(frame)
    with open_sensor(str(tmp_path / "gaps"), Settings()) as again:
        assert len(list(again)) == len(frames) - 3
    assert again.account.lost == 3


def test_every_frame_is_on_the_disk_once_it_is_added(noisy, tmp_path):
    """A recorder that is never closed, as when the process is killed, leaves a folder that reads."""
    with open_sensor(str(noisy), Settings()) as stream:
        frames = list(stream)
    recorder = FolderRecorder(tmp_path / "killed", stream.account, "killed", 9.0).__enter__()
    for count, frame in enumerate(frames[:4], start=1):
        recorder.add(frame)
        assert len(FolderFrames(tmp_path / "killed")) == count
        with open_sensor(str(tmp_path / "killed"), Settings()) as again:
            assert [kept.number for kept in again] == [frame.number for frame in frames[:count]]


@pytest.mark.parametrize("at", ["save", "replace"])
def test_ctrl_c_while_a_frame_is_written_leaves_the_others(noisy, tmp_path, monkeypatch, at):
    with open_sensor(str(noisy), Settings()) as stream:
        frames = list(stream)
    calls = 0

    def interrupted(original):
        def run(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == 6:  # the second image of the third frame
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return run

    owner = Image.Image if at == "save" else Path
    monkeypatch.setattr(owner, at, interrupted(getattr(owner, at)))
    with FolderRecorder(tmp_path / "cut", stream.account, "cut", 9.0) as recorder:
        recorder.add(frames[0])
        recorder.add(frames[1])
        with pytest.raises(KeyboardInterrupt):
            recorder.add(frames[2])
    assert len(FolderFrames(tmp_path / "cut")) == 2
    assert not list((tmp_path / "cut").rglob(".*"))


def test_a_camera_that_counts_anew_overwrites_nothing(noisy, tmp_path):
    with open_sensor(str(noisy), Settings()) as stream:
        frames = list(stream)[:3]
    with FolderRecorder(tmp_path / "again", stream.account, "again", 9.0) as recorder:
        for frame in [*frames, *frames]:
            recorder.add(frame)
    with open_sensor(str(tmp_path / "again"), Settings()) as again:
        kept = list(again)
    assert [frame.number for frame in kept] == 2 * [frame.number for frame in frames]
    for frame, before in zip(kept, [*frames, *frames], strict=True):
        assert np.array_equal(frame.depth, before.depth)


def test_depth_that_16_bits_do_not_hold_is_refused(tmp_path):
    rgb, depth = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 20.0, np.float32)
    with (
        FolderRecorder(tmp_path / "far", Account("live"), "far", 80.0) as recorder,
        pytest.raises(MdeError, match="no 16-bit count"),
    ):
        recorder.add(SensorFrame(1, 0.0, rgb, depth, None, 0.0001))


def test_depth_of_arrays_keeps_millimetres(tmp_path):
    """A folder with .npy depth says metres; a metre is no unit for 16 bits."""
    rgb, depth = np.zeros((8, 8, 3), np.uint8), np.full((8, 8), 7.6, np.float32)
    with FolderRecorder(tmp_path / "near", Account("live"), "near", 80.0) as recorder:
        recorder.add(SensorFrame(1, 0.0, rgb, depth, None, 1.0))
    assert FolderFrames(tmp_path / "near")[0].depth.mean() == pytest.approx(7.6, abs=0.0006)


def test_the_bundle_reads_its_recording(noisy, tmp_path):
    path = tmp_path / "desk.npz"
    kept = keep(noisy, path, BundleRecorder)
    frames = load_frames(str(path))
    assert frames["dataset"] == "desk"
    assert frames["cap"] == 9.0
    assert frames["reference"] is None
    assert np.array_equal(frames["rgb"], np.stack([frame.rgb for frame in kept]))
    assert np.allclose(frames["depth"], np.stack([frame.depth for frame in kept]))
    assert np.array_equal(frames["mask"], np.stack([frame.depth > 0 for frame in kept]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["desk.npz"]


@pytest.mark.parametrize("kind", [FolderRecorder, BundleRecorder])
def test_nothing_is_written_over(tmp_path, kind):
    path = tmp_path / ("old" if kind is FolderRecorder else "old.npz")
    path.mkdir() if kind is FolderRecorder else path.write_text("precious")
    if kind is FolderRecorder:
        (path / "precious").touch()
    with pytest.raises(MdeError, match="exists already"), kind(path, Account("live"), "old", 9.0):
        pass


def test_a_damaged_frame_ends_the_stream_with_its_reason(folder, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(folder[0], root)
    third = sorted((root / "depth").iterdir())[2]
    third.write_bytes(third.read_bytes()[:100])
    with open_sensor(str(root), Settings()) as stream:
        assert len(list(stream)) == 2
    assert third.name in stream.account.problem


def test_a_folder_of_another_unit_is_refused(folder, tmp_path):
    root = tmp_path / "unit"
    shutil.copytree(folder[0], root)
    meta = json.loads((root / "meta.json").read_text())
    (root / "meta.json").write_text(json.dumps(meta | {"depth_unit_m": 1.0}))
    with open_sensor(str(root), Settings()) as stream:
        assert list(stream) == []
    assert "depth_unit_m" in stream.account.problem


def test_an_empty_depth_is_kept_as_unknown(tmp_path):
    rgb, depth = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.float32)
    with FolderRecorder(tmp_path / "dark", Account("live"), "dark", 9.0) as recorder:
        recorder.add(SensorFrame(7, 0.5, rgb, depth, None, 0.00025))
    with open_sensor(str(tmp_path / "dark"), Settings()) as stream:
        (frame,) = stream
    assert not frame.depth.any()
    assert frame.intrinsics is None


@pytest.mark.parametrize("option", [{"preset": "max_range"}, {"confidence": 3}])
def test_options_of_a_camera_are_refused_for_a_folder(folder, option):
    with pytest.raises(MdeError, match=next(iter(option))):
        open_sensor(str(folder[0]), Settings(**option))
