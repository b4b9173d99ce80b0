from dataclasses import replace

import numpy as np
import torch

from mde.renderer.depth_sensor import L515_UNIT
from mde.renderer.scene import Camera
from mde.sensors import emulator
from mde.sensors.emulator import IDEAL, Rig, carried, moved, rendered, replayed
from tests.sensors.conftest import SIZE


def camera(**changes):
    values = {"fx": 100.0, "fy": 100.0, "cx": 63.5, "cy": 47.5, "size": SIZE} | changes
    return Camera(torch.zeros(3), torch.eye(3), **values)


def test_without_noise_the_counts_are_the_exact_depth_rounded(shown):
    for frame in shown:
        seen = np.where(np.isfinite(frame.exact), frame.exact, 0)
        assert np.abs(frame.counts * L515_UNIT - seen).max() <= L515_UNIT / 2 + 1e-6


def test_scenes_change_and_noise_flickers():
    frames = list(rendered(2 * emulator.STILL, Rig(size=SIZE)))
    assert np.array_equal(frames[0].rgb, frames[1].rgb)
    assert not np.array_equal(frames[0].counts, frames[1].counts)
    assert not np.array_equal(frames[0].rgb, frames[emulator.STILL].rgb)


def test_a_plane_moves_by_focal_length_times_baseline_over_depth():
    """Beside the colour camera, a point at z appears fx b / z pixels further left."""
    depth = torch.full((1, *SIZE), 2.0)
    depth[:, :, 60:] = 1.0
    color = camera()
    seen = carried(depth, color, moved(color, Rig(size=SIZE, focal_ratio=1.0, baseline=0.1)))
    # 0.1 m at 100 px: 10 pixels at 1 m, 5 at 2 m; the near step hides what is behind it.
    assert (seen[0, :, :50] == 2.0).all()
    assert (seen[0, :, 50:118] == 1.0).all()
    assert (seen[0, :, 118:] == 0).all()


def test_with_half_the_focal_length_everything_is_half_as_large():
    depth = torch.zeros(1, *SIZE)
    depth[0, 40:56, 56:72] = 1.5
    seen = carried(depth, camera(), moved(camera(), Rig(size=SIZE, focal_ratio=0.5, baseline=0)))
    rows, columns = np.nonzero(seen[0].numpy())
    assert (rows.min(), rows.max()) == (44, 51)
    assert (columns.min(), columns.max()) == (60, 67)


def test_real_frames_are_played_as_an_l515_would_see_them(make_folder):
    root = make_folder({"a": "room", "b": "room"})
    frames = list(replayed(str(root), 3, replace(IDEAL, size=SIZE)))
    assert len(frames) == 3  # the folder is shorter, and begins anew
    for frame in frames:
        assert frame.rgb.shape == (*SIZE, 3)
        known = frame.exact > 0
        assert np.abs(frame.counts * L515_UNIT - frame.exact)[known].max() <= L515_UNIT / 2 + 1e-6


def test_the_command_records_and_says_where(tmp_path, capsys):
    path = tmp_path / "room.db3"
    assert emulator.main([str(path), "--frames", "2", "--size", "48", "64", "--ideal"]) == 0
    assert f"recorded: {path}" in capsys.readouterr().out
    assert np.load(tmp_path / "room.exact.npz")["depth"].shape == (2, 48, 64)
    assert emulator.main([str(path), "--frames", "1"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_an_old_format_is_refused_in_one_line(tmp_path, capsys):
    assert emulator.main([str(tmp_path / "room.bag"), "--frames", "1", "--size", "48", "64"]) == 2
    assert ".db3" in capsys.readouterr().err
