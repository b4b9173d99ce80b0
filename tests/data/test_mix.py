import pytest
import torch
from hydra.utils import instantiate

from mde.data.folder import folder_splits
from mde.data.mix import ConcatFrames, mix_splits
from mde.data.sample import Splits
from mde.data.synthetic import synthetic_splits
from mde.errors import MdeError


@pytest.fixture
def parts(make_folder):
    near = make_folder({f"n{i}": f"room{i % 4}" for i in range(12)}, "near")
    scenes = {f"f{i}": f"street{i}" for i in range(6)}
    split = {frame: "test" if frame == "f5" else "train" for frame in scenes}
    far = make_folder(scenes, "far", environment="outdoor", split=split)
    return {"near": folder_splits(near), "far": folder_splits(far)}


def test_a_mixture_goes_through_its_parts_in_order(parts):
    mixed = mix_splits(parts)
    one_by_one = [part.train[i] for part in parts.values() for i in range(len(part.train))]
    assert mixed.train.lengths == [len(part.train) for part in parts.values()]
    assert len(mixed.train) == len(one_by_one)
    for i, expected in enumerate(one_by_one):
        assert (mixed.train[i].dataset, mixed.train[i].frame) == (expected.dataset, expected.frame)
        assert torch.equal(mixed.train[i].image, expected.image)


@pytest.mark.parametrize("outside", [-1, 10**6])
def test_an_index_outside_is_an_error(parts, outside):
    with pytest.raises(IndexError):
        ConcatFrames([part.train for part in parts.values()])[outside]


def test_validation_keeps_its_parts_with_their_own_caps(parts):
    mixed = mix_splits(parts)
    assert [(part.name, part.cap) for part in mixed.validation.parts] == [("near", 10.0), ("far", 80.0)]
    assert mixed.name == "near+far"


def test_only_parts_with_a_test_split_are_tested(parts):
    mixed = mix_splits(parts)
    assert [part.name for part in mixed.test.parts] == ["far"]
    assert mix_splits({"near": parts["near"]}).test is None


def test_weights_default_to_the_number_of_frames(parts):
    lengths = [len(part.train) for part in parts.values()]
    assert mix_splits(parts).weights == pytest.approx([length / sum(lengths) for length in lengths])
    assert mix_splits(parts, {"far": 1, "near": 3}).weights == [0.75, 0.25]


def test_notes_say_which_part_they_are_about(parts):
    noted = Splits("near", parts["near"].train, parts["near"].validation, note="same scene")
    assert mix_splits({"a": noted, "b": parts["far"]}).note == "near: same scene"


def test_sets_of_one_name_are_told_apart_by_their_parts(make_folder, parts):
    scenes = {f"f{i}": f"s{i}" for i in range(6)}
    split = {frame: "test" if frame == "f5" else "train" for frame in scenes}
    room = {key: folder_splits(make_folder(scenes, key, name="room", split=split)) for key in ("kitchen", "office")}
    mixed = mix_splits(room | {"near": parts["near"]})
    names = ["room_kitchen", "room_office", "near"]
    assert [part.name for part in mixed.train.parts] == [part.name for part in mixed.validation.parts] == names
    assert [part.name for part in mixed.test.parts] == names[:2]
    assert mixed.name == "+".join(names)
    second = mixed.test.parts[1]
    assert (second[0].dataset, second[0].frame, second.cap) == ("room_office", "f5", 10)
    worlds = {world: synthetic_splits(4, (32, 32), 2, 2, world=world) for world in ("rooms", "streets")}
    assert [part.name for part in mix_splits(worlds).test.parts] == ["synthetic_rooms", "synthetic_streets"]


def test_parts_come_from_the_configuration_too(make_folder):
    roots = [make_folder({f"f{i}": f"s{i}" for i in range(4)}, place, name="room") for place in ("kitchen", "office")]
    folder = "mde.data.folder.folder_splits"
    parts = {f"part{i}": {"_target_": folder, "root": str(root)} for i, root in enumerate(roots)}
    mixed = instantiate({"_target_": "mde.data.mix.mix_splits", "parts": parts})
    assert [part.name for part in mixed.validation.parts] == ["room_part0", "room_part1"]


@pytest.mark.parametrize("far", [None, 0, -1, float("nan"), float("inf")])
def test_weights_that_do_not_suit_are_an_error(parts, far):
    weights = {"near": 1} if far is None else {"near": 1, "far": far}
    with pytest.raises(MdeError, match=r"data\.weights"):
        mix_splits(parts, weights)


def test_a_mixture_of_nothing_is_an_error():
    with pytest.raises(MdeError, match="at least one"):
        mix_splits({})
