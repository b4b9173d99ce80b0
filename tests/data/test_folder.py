import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mde.data.folder import FolderFrames, folder_splits
from mde.data.holdout import hold_out
from mde.data.images import read_image
from mde.errors import MdeError
from tests.data.conftest import SIZE, save_depth, save_image

SHARED = Path(os.environ.get("MDE_SHARED", "../shared")) / "data"


def frame_ids(frames):
    return [frames[i].frame for i in range(len(frames))]


# Frames


def test_a_frame_comes_as_it_lies_on_disk(make_folder):
    root = make_folder({"a": "x", "b": "y"}, "tiny")
    sample = FolderFrames(root)[1]
    assert (sample.dataset, sample.frame, sample.depth_unit, sample.intrinsics) == ("tiny", "b", 0.001, None)
    assert torch.equal(sample.image, read_image(root / "rgb" / "b.png"))
    assert torch.equal(sample.mask, sample.depth > 0)
    assert not sample.mask[0, 0, 0]
    assert sample.mask.sum() == SIZE[0] * SIZE[1] - 1


def test_ids_come_in_natural_order(make_folder):
    frames = FolderFrames(make_folder({"f10": "s", "f2": "s", "f1": "s"}))
    assert frames.ids == ["f1", "f2", "f10"]


def test_a_digit_that_is_no_decimal_one_is_a_letter(make_folder):
    assert FolderFrames(make_folder({"²3": "s", "2": "s", "٣": "s"})).ids == ["2", "٣", "²3"]


def test_what_macos_leaves_beside_each_file_is_no_frame(make_folder):
    root = make_folder({"a": "x"})
    for name in ("rgb/._a.png", "depth/._a.png", "rgb/.DS_Store"):
        (root / name).write_bytes(b"\0\5\x16\7")
    assert FolderFrames(root).ids == ["a"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_colour_stays_on_its_depth_whatever_its_exif_orientation(make_folder, orientation):
    root = make_folder({"a": "x"})
    exif = Image.Exif()
    exif[0x0112] = orientation
    counts = np.full(SIZE, 2000)
    counts[:3, :5] = 1000
    Image.fromarray(np.where(counts == 1000, 255, 0).astype(np.uint8)).save(root / "rgb" / "a.png", exif=exif)
    save_depth(root / "depth" / "a.png", counts)
    sample = FolderFrames(root)[0]
    assert torch.equal(sample.image[0] == 255, sample.depth[0] == 1)


def test_depth_of_the_turned_picture_is_refused(make_folder):
    root = make_folder({"a": "x"})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", SIZE[::-1]).save(root / "rgb" / "a.png", exif=exif)
    save_depth(root / "depth" / "a.png", np.full(SIZE[::-1], 2000))
    with pytest.raises(MdeError, match=r"a\.png.*aspect.*as stored \(no EXIF orientation turns it\)"):
        FolderFrames(root)[0]


def test_depth_beyond_the_sensors_range_is_unknown_but_sky_stays(make_folder):
    root = make_folder({"a": "x"}, max_depth_m=5)
    (root / "depth" / "a.png").unlink()
    depth = np.full(SIZE, 2.0)
    depth[0, :4] = [5.0, 5.001, np.inf, np.nan]
    np.save(root / "depth" / "a.npy", depth)
    sample = FolderFrames(root)[0]
    assert sample.depth[0, 0, :4].tolist() == [5.0, 0, float("inf"), 0]
    assert sample.mask[0, 0, :4].tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("meta", "cap"),
    [({"environment": "outdoor"}, 80), ({"environment": "mixed", "max_depth_m": 20}, 10), ({"max_depth_m": 5}, 10)],
)
def test_the_cap_is_80_m_outdoors_and_10_m_elsewhere(make_folder, meta, cap):
    assert FolderFrames(make_folder({"a": "x"}, **meta)).cap == cap


def test_a_cap_that_is_given_holds_for_every_part(make_folder):
    splits = folder_splits(
        make_folder({"a": "x", "b": "y", "c": "z"}, split={"a": "train", "b": "train", "c": "test"}), cap=3
    )
    assert (splits.train.cap, splits.validation.cap, splits.test.cap) == (3, 3, 3)


def test_intrinsics_are_for_all_frames_or_by_id(make_folder):
    values = {"fx": 20, "fy": 21, "cx": 15.5, "cy": 11.5}
    expected = [[20, 0, 15.5], [0, 21, 11.5], [0, 0, 1]]
    assert FolderFrames(make_folder({"a": "x"}, "all", intrinsics=values))[0].intrinsics.tolist() == expected
    by_id = FolderFrames(make_folder({"a": "x", "b": "x"}, "by_id", intrinsics={"b": values}))
    assert by_id[0].intrinsics is None
    assert by_id[1].intrinsics.tolist() == expected
    with pytest.raises(MdeError, match=r"meta\.json.*fx, fy, cx"):
        FolderFrames(make_folder({"a": "x"}, "bad", intrinsics={"fx": 20}))[0]


def test_depth_of_the_same_aspect_keeps_its_own_size(make_folder):
    root = make_folder({"a": "x"})
    save_depth(root / "depth" / "a.png", np.full((6, 8), 1000))
    sample = FolderFrames(root)[0]
    assert sample.image.shape == (3, *SIZE)
    assert sample.depth.shape == (1, 6, 8)


def test_depth_of_another_aspect_is_refused(make_folder):
    root = make_folder({"a": "x"})
    save_depth(root / "depth" / "a.png", np.full((8, 8), 1000))
    with pytest.raises(MdeError, match=r"a\.png.*aspect"):
        FolderFrames(root)[0]


@pytest.mark.parametrize("unit", [1e-6, 1.0])
def test_a_median_that_no_scene_has_points_at_the_unit(make_folder, unit):
    with pytest.raises(MdeError, match="depth_unit_m"):
        FolderFrames(make_folder({"a": "x"}, depth_unit_m=unit))[0]


@pytest.mark.parametrize(("suffix", "unit"), [("npy", 1e-6), ("NPY", 0.001)])
def test_of_a_npy_in_millimetres_the_unit_is_not_to_blame(make_folder, suffix, unit):
    root = make_folder({"a": "x"}, depth_unit_m=unit)
    (root / "depth" / "a.png").unlink()
    with open(root / "depth" / f"a.{suffix}", "wb") as file:
        np.save(file, np.full(SIZE, 2000.0))
    with pytest.raises(MdeError, match=r"median depth 2e\+03; a \.npy holds metres, divide by 1000"):
        FolderFrames(root)[0]


def test_a_frame_without_any_depth_has_an_empty_mask(make_folder):
    root = make_folder({"a": "x"})
    save_depth(root / "depth" / "a.png", np.zeros(SIZE))
    assert not FolderFrames(root)[0].mask.any()


# Bad folders


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(MdeError, match=r"nowhere.*no such folder"):
        FolderFrames(tmp_path / "nowhere")


def test_an_empty_folder_is_an_error(make_folder):
    root = make_folder({})
    (root / "rgb").mkdir()
    with pytest.raises(MdeError, match=r"rgb.*put the frames there"):
        FolderFrames(root)


def test_a_folder_without_meta_is_an_error_with_the_remedy(make_folder):
    root = make_folder({"a": "x"})
    (root / "meta.json").unlink()
    with pytest.raises(MdeError, match=r"no meta\.json.*depth_unit_m"):
        FolderFrames(root)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"depth_unit_m": "mm"}', '{"depth_unit_m": 0}'])
def test_a_meta_without_a_usable_unit_is_an_error(make_folder, text):
    root = make_folder({"a": "x"})
    (root / "meta.json").write_text(text)
    with pytest.raises(MdeError, match=r"meta\.json"):
        FolderFrames(root)


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"depth_unit_m": True}, "depth_unit_m is missing or not a positive number"),
        ({"max_depth_m": "9"}, 'max_depth_m must be a number, not "9"'),
        ({"name": ["a"]}, r'name must be text, not \["a"\]'),
        ({"environment": 1}, "environment must be text, not 1"),
        ({"scenes": ["s"]}, "scenes must be an object"),
        ({"scenes": {"a": {"room": 1}}}, "scenes.a must be text or a number"),
        ({"scenes": {"a": None}}, "scenes lacks 1 frame"),
        ({"split": "train"}, "split must be an object"),
        ({"intrinsics": [[500, 0, 320], [0, 500, 240], [0, 0, 1]]}, "intrinsics need the numbers fx, fy, cx and cy"),
        ({"intrinsics": {"a": [500, 500, 320, 240]}}, "intrinsics need the numbers fx, fy, cx and cy"),
        ({"intrinsics": {"fx": "500", "fy": 500, "cx": 0, "cy": 0}}, "intrinsics need the numbers fx, fy, cx and cy"),
    ],
)
def test_an_entry_of_another_type_is_found_before_any_frame_is_read(make_folder, entries, line):
    with pytest.raises(MdeError, match=rf"meta\.json: {line}.*; ") as caught:
        folder_splits(make_folder({"a": "x"}, **entries))
    assert "\n" not in str(caught.value)


def test_null_entries_are_as_if_they_were_not_there(make_folder):
    keys = ("name", "environment", "max_depth_m", "scenes", "split", "intrinsics", "invalid")
    frames = FolderFrames(make_folder({"a": "x"}, **dict.fromkeys(keys)))
    assert (frames.name, frames.cap, frames.max_depth, frames.has_split) == ("tiny", 10, float("inf"), False)
    assert (frames.scenes, frames[0].intrinsics) == (["tiny"], None)


def test_a_raised_digit_in_a_name_is_no_number(make_folder):
    assert FolderFrames(make_folder({"10": "s", "\u00b23": "s", "9": "s"})).ids == ["9", "10", "\u00b23"]


@pytest.mark.parametrize(("missing", "named"), [("depth", "depth"), ("rgb", "rgb")])
def test_frames_without_a_partner_are_listed_a_few_at_most(make_folder, missing, named):
    root = make_folder({f"{i:02d}": "x" for i in range(9)})
    for i in range(1, 9):
        (root / missing / f"{i:02d}.png").unlink()
    with pytest.raises(MdeError, match=rf"{named}: nothing for 8 frame.*01, 02, 03, 04, 05, \.\.\.; "):
        FolderFrames(root)


def test_two_images_of_one_id_are_an_error(make_folder):
    root = make_folder({"a": "x"})
    save_image(root / "rgb" / "a.jpg")
    with pytest.raises(MdeError, match="same id"):
        FolderFrames(root)


@pytest.mark.parametrize("key", ["scenes", "split"])
def test_frames_that_meta_forgets_are_listed(make_folder, key):
    root = make_folder({"a": "x", "b": "x"}, **{key: {"a": "train"}})
    with pytest.raises(MdeError, match=f"{key} lacks 1 frame.*b"):
        folder_splits(root)


def test_errors_are_one_line(make_folder, tmp_path):
    root = make_folder({"a": "x"})
    (root / "meta.json").write_text("{\n\n,")
    with pytest.raises(MdeError) as caught:
        FolderFrames(root)
    assert "\n" not in str(caught.value)


# Splits


def test_a_tenth_of_the_scenes_validates_and_no_scene_is_on_both_sides():
    scenes = [f"scene{i // 3}" for i in range(90)]
    training, validation, note = hold_out(scenes, "set")
    assert sorted(training + validation) == list(range(90))
    assert len(validation) == 9
    assert {scenes[i] for i in training}.isdisjoint(scenes[i] for i in validation)
    assert note == ""


def test_the_held_out_scenes_depend_on_their_names_and_not_on_the_order_of_frames():
    scenes = [f"scene{i}" for i in range(30)]
    _, forwards, _ = hold_out(scenes, "set")
    _, backwards, _ = hold_out(scenes[::-1], "set")
    assert {scenes[i] for i in forwards} == {scenes[::-1][i] for i in backwards}
    assert len(forwards) == 3


def test_one_of_two_scenes_validates():
    training, validation, note = hold_out(["a", "a", "b"], "set")
    assert sorted([training, validation]) == [[0, 1], [2]]
    assert note == ""


def test_a_single_scene_is_cut_in_time_with_a_gap():
    training, validation, note = hold_out(["room"] * 40, "set")
    assert (training, validation) == (list(range(30)), list(range(32, 40)))
    assert note.startswith("same scene")


@pytest.mark.parametrize("count", range(2, 30))
def test_every_single_scene_gives_both_parts(count):
    training, validation, _ = hold_out(["room"] * count, "set")
    assert training
    assert validation
    assert training[-1] < validation[0]


def test_a_single_frame_cannot_be_cut(make_folder):
    with pytest.raises(MdeError, match="1 frame"):
        folder_splits(make_folder({"a": "x"}))


def test_folder_splits_keep_the_official_test_part_whole(make_folder):
    scenes = {f"{i:02d}": f"scene{i % 20}" for i in range(60)}
    split = {frame: "test" if int(scene.removeprefix("scene")) >= 10 else "train" for frame, scene in scenes.items()}
    root = make_folder(scenes, split=split)
    splits = folder_splits(root)
    assert frame_ids(splits.test) == [frame for frame in scenes if split[frame] == "test"]
    training, validation = frame_ids(splits.train), frame_ids(splits.validation)
    assert sorted(training + validation) == [frame for frame in scenes if split[frame] == "train"]
    assert len(validation) == 3
    assert {scenes[frame] for frame in training}.isdisjoint(scenes[frame] for frame in validation)
    assert frame_ids(FolderFrames(root, split="test")) == frame_ids(splits.test)


def test_another_folder_can_validate(make_folder):
    root = make_folder({"a": "x", "b": "x"}, "first")
    splits = folder_splits(root, val_root=make_folder({"c": "x"}, "second"))
    assert (frame_ids(splits.train), frame_ids(splits.validation)) == (["a", "b"], ["c"])
    assert splits.validation.name == "second"


def test_an_unknown_split_is_an_error(make_folder):
    with pytest.raises(MdeError, match="no frame has split 'test'"):
        FolderFrames(make_folder({"a": "x"}, split={"a": "train"}), split="test")


@pytest.mark.skipif(not (SHARED / "nyu").is_dir(), reason="the shared frames are not here (MDE_SHARED)")
def test_nyus_official_split_is_kept():
    splits = folder_splits(SHARED / "nyu")
    scenes = json.loads((SHARED / "nyu" / "meta.json").read_text())["scenes"]
    training, validation = ([part.frames.ids[i] for i in part.indices] for part in (splits.train, splits.validation))
    assert len(training) + len(validation) == 788
    assert len(splits.test) == 654
    parts = [{scenes[frame] for frame in ids} for ids in (training, validation, splits.test.ids)]
    assert parts[0].isdisjoint(parts[1])
    assert (parts[0] | parts[1]).isdisjoint(parts[2])
    sample = splits.test[0]
    assert sample.image.shape[-2:] == sample.depth.shape[-2:] == (256, 336)
    assert 0.5 < sample.depth[sample.mask].median() < 10
