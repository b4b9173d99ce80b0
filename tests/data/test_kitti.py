from pathlib import Path

import numpy as np
import pytest
import torch

from mde.data.kitti import kitti_splits, kitti_validation
from mde.errors import MdeError
from tests.data.conftest import save_depth, save_image

SIZE = (37, 124)
CALIBRATION = """calib_time: 09-Jan-2012 13:57:47
K_02: 9 0 0 0 9 0 0 0 1
P_rect_02: 7.2e+01 0.0e+00 6.0e+01 4.4e+00 0.0e+00 7.2e+01 1.7e+01 2.1e-01 0.0e+00 0.0e+00 1.0e+00 2.7e-03
P_rect_03: 7.3e+01 0.0e+00 6.1e+01 -3.3e+01 0.0e+00 7.4e+01 1.8e+01 2.1e-01 0.0e+00 0.0e+00 1.0e+00 2.7e-03
"""


def counts(size=SIZE):
    """Depth of 10 m on every fourth row, unknown elsewhere."""
    depth = np.zeros(size)
    depth[::4] = 2560
    return depth


def add_annotated(root: Path, part: str, drive: str, frames: int = 3) -> None:
    date = drive[:10]
    for camera in ("image_02", "image_03"):
        for number in range(5, 5 + frames):
            depth = root / part / drive / "proj_depth" / "groundtruth" / camera / f"{number:010d}.png"
            save_depth(depth, counts())
            save_image(root / date / drive / camera / "data" / f"{number:010d}.png", SIZE, seed=number)
    (root / date / "calib_cam_to_cam.txt").write_text(CALIBRATION)


@pytest.fixture
def annotated(tmp_path):
    for number in range(1, 12):
        add_annotated(tmp_path, "train", f"2011_09_26_drive_{number:04d}_sync")
    add_annotated(tmp_path, "val", "2011_09_28_drive_0050_sync")
    return tmp_path


@pytest.fixture
def selection(tmp_path):
    folder = tmp_path / "depth_selection" / "val_selection_cropped"
    for drive in (2, 5, 13):
        for frame in (5, 8):
            name = f"2011_09_26_drive_{drive:04d}_sync_{{}}_{frame:010d}_image_0{2 + frame % 2}"
            save_depth(folder / "groundtruth_depth" / f"{name.format('groundtruth_depth')}.png", counts((352, 1216)))
            save_image(folder / "image" / f"{name.format('image')}.png", (352, 1216))
            path = folder / "intrinsics" / f"{name.format('image')}.txt"
            path.parent.mkdir(exist_ok=True)
            path.write_text("721.5 0.0 596.5 0.0 721.6 149.8 0.0 0.0 1.0\n")
    return tmp_path


def drives(frames):
    return {frame.drive for frame in frames.frames}


def test_annotated_depth_is_paired_with_the_raw_images_of_both_cameras(annotated):
    splits = kitti_splits(annotated)
    assert len(splits.train) + len(splits.validation) == 11 * 2 * 3
    assert len(splits.test) == 2 * 3
    sample = splits.train[0]
    pixels = save_image(annotated / "again.png", SIZE, seed=int(sample.frame[-10:]))
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), pixels)
    assert sample.depth.unique().tolist() == [0, 10]
    assert sample.depth_unit == 1 / 256
    assert splits.train.cap == splits.test.cap == 80


@pytest.mark.parametrize("layout", ["annotated", "selection"])
def test_colour_may_be_jpeg_and_what_macos_leaves_is_no_frame(layout, request):
    root = request.getfixturevalue(layout)
    before = kitti_validation(root)
    for frame in before.frames:
        save_image(frame.image.with_suffix(".jpg"), (SIZE if layout == "annotated" else (352, 1216)))
        frame.image.unlink()
        for path in (frame.depth, frame.image):
            path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7")
    frames = kitti_validation(root)
    assert [frame.id for frame in frames.frames] == [frame.id for frame in before.frames]
    assert frames[0].image.shape[1:] == frames[0].depth.shape[1:]


def test_a_tenth_of_the_training_drives_validates(annotated):
    splits = kitti_splits(annotated)
    assert len(drives(splits.validation)) == 1
    assert len(drives(splits.train)) == 10
    assert drives(splits.train).isdisjoint(drives(splits.validation))
    assert drives(splits.test) == {"2011_09_28_drive_0050_sync"}
    assert splits.note == ""


def test_intrinsics_are_those_of_the_rectified_camera(annotated):
    frames = kitti_validation(annotated)
    by_camera = {frames[i].frame.split("/")[1]: frames[i].intrinsics for i in range(len(frames))}
    assert by_camera["image_02"].tolist() == [[72, 0, 60], [0, 72, 17], [0, 0, 1]]
    assert by_camera["image_03"].tolist() == [[73, 0, 61], [0, 74, 18], [0, 0, 1]]


def test_without_a_calibration_file_intrinsics_are_unknown(annotated):
    (annotated / "2011_09_28" / "calib_cam_to_cam.txt").unlink()
    assert kitti_validation(annotated)[0].intrinsics is None


def test_a_calibration_without_the_camera_is_an_error(annotated):
    (annotated / "2011_09_28" / "calib_cam_to_cam.txt").write_text("P_rect_00: 1 2 3\n")
    with pytest.raises(MdeError, match=r"calib_cam_to_cam\.txt"):
        kitti_validation(annotated)[0]


@pytest.mark.parametrize(
    ("crop", "top", "bottom"), [("garg", 0.40810811, 0.99189189), ("eigen_kitti", 0.3324324, 0.91351351)]
)
def test_evaluated_truth_is_cropped_and_training_truth_is_not(annotated, crop, top, bottom):
    splits = kitti_splits(annotated, crop=crop)
    rows, columns = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])
    inside = (rows >= int(top * SIZE[0])) & (rows < int(bottom * SIZE[0]))
    inside = inside & (columns >= int(0.03594771 * SIZE[1])) & (columns < int(0.96405229 * SIZE[1]))
    for frames in (splits.validation, splits.test):
        sample = frames[0]
        assert torch.equal(sample.mask[0], inside & (sample.depth[0] > 0))
        assert sample.image.shape[-2:] == SIZE
    sample = splits.train[0]
    assert torch.equal(sample.mask, sample.depth > 0)


def test_garg_is_the_default_crop_and_none_is_none(annotated):
    assert torch.equal(kitti_validation(annotated)[0].mask, kitti_validation(annotated, crop="garg")[0].mask)
    sample = kitti_validation(annotated, crop="none")[0]
    assert torch.equal(sample.mask, sample.depth > 0)


def test_only_validation_frames_can_be_trained_on_but_the_note_warns(annotated):
    add_annotated(annotated, "val", "2011_09_29_drive_0004_sync")
    (annotated / "train").rename(annotated / "elsewhere")
    splits = kitti_splits(annotated)
    assert drives(splits.train) | drives(splits.validation) == {
        "2011_09_28_drive_0050_sync",
        "2011_09_29_drive_0004_sync",
    }
    assert splits.test is None
    assert "official validation" in splits.note


def test_the_selection_is_read_with_its_own_intrinsics_and_not_cropped_again(selection):
    frames = kitti_validation(selection)
    assert len(frames) == 6
    sample = frames[0]
    assert sample.image.shape == (3, 352, 1216)
    assert torch.equal(sample.mask, sample.depth > 0)
    torch.testing.assert_close(sample.intrinsics, torch.tensor([[721.5, 0, 596.5], [0, 721.6, 149.8], [0, 0, 1]]))
    again = kitti_validation(selection, crop="benchmark")[0]
    assert torch.equal(again.mask, sample.mask)


def test_the_selection_is_cut_by_drive_and_the_note_warns(selection):
    splits = kitti_splits(selection)
    assert drives(splits.train).isdisjoint(drives(splits.validation))
    assert len(splits.train) + len(splits.validation) == 6
    assert splits.test is None
    assert "official validation" in splits.note


@pytest.mark.parametrize("crop", ["garg", "eigen_kitti"])
def test_cropping_the_selection_twice_is_refused(selection, crop):
    with pytest.raises(MdeError, match="twice"):
        kitti_splits(selection, crop=crop)


def test_a_benchmark_crop_of_small_frames_is_refused(annotated):
    with pytest.raises(MdeError, match="352 x 1216"):
        kitti_validation(annotated, crop="benchmark")[0]


@pytest.mark.parametrize("options", [{"layout": "odometry"}, {"crop": "centre"}])
def test_unknown_options_are_errors_that_list_the_known_ones(annotated, options):
    with pytest.raises(MdeError, match=r"are auto, .* and"):
        kitti_splits(annotated, **options)


def test_a_folder_that_is_not_kitti_is_an_error(tmp_path):
    with pytest.raises(MdeError, match="unpacked"):
        kitti_splits(tmp_path)


@pytest.mark.parametrize("layout", ["annotated", "selection"])
def test_a_layout_that_is_not_there_is_an_error(tmp_path, layout):
    with pytest.raises(MdeError, match="unpack"):
        kitti_splits(tmp_path, layout=layout)


def test_missing_colour_images_are_counted_and_one_is_named(annotated):
    for path in (annotated / "2011_09_28" / "2011_09_28_drive_0050_sync" / "image_03" / "data").iterdir():
        path.unlink()
    with pytest.raises(MdeError, match=r"image_03/data/0000000005\.png.* 3 in all"):
        kitti_splits(annotated)
