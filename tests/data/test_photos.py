import numpy as np
import pytest
import torch

from mde.data.folder import folder_splits
from mde.data.mix import mix_splits
from mde.data.photos import PhotoFrames, photos_splits
from mde.errors import MdeError
from tests.data.conftest import save_depth, save_image


@pytest.fixture
def album(tmp_path):
    for number, name in enumerate(["b.png", "a/deep/1.JPG", "a/2.jpeg", ".hidden/3.png", "a/.4.png"]):
        save_image(tmp_path / "album" / name, seed=number)
    (tmp_path / "album/notes.txt").write_text("no photo")
    return tmp_path / "album"


def test_photos_are_found_in_folders_inside_and_their_depth_is_unknown(album):
    frames = PhotoFrames(album)
    assert [frames[index].frame for index in range(len(frames))] == ["a/2.jpeg", "a/deep/1.JPG", "b.png"]
    sample = frames[2]
    assert torch.equal(sample.image.permute(1, 2, 0), torch.from_numpy(save_image(album / "again.png", seed=0)))
    assert sample.depth.shape == sample.mask.shape == (1, *sample.image.shape[1:])
    assert not sample.mask.any()
    assert sample.dataset == "album"


def test_a_truncated_photo_is_named_when_it_is_read(album):
    (album / "b.png").write_bytes((album / "b.png").read_bytes()[:300])
    with pytest.raises(MdeError, match=r"b\.png: damaged image"):
        PhotoFrames(album)[2]


def test_a_folder_without_photos_is_an_error(tmp_path):
    with pytest.raises(MdeError, match="no such folder"):
        PhotoFrames(tmp_path / "nowhere")
    with pytest.raises(MdeError, match="no photo in it"):
        PhotoFrames(tmp_path)


def test_depth_images_are_not_taken_for_photos(make_folder, tmp_path):
    root = make_folder({"0": "room", "1": "room"})
    for above in (root, tmp_path, root / "depth"):
        with pytest.raises(MdeError, match=r"depth/0\.png: depth images, no photos \(2 in all.*data=folder"):
            PhotoFrames(above)
    assert len(PhotoFrames(root / "rgb")) == 2


@pytest.mark.parametrize("name", ["frame-000000.depth.png", "depth/0.png", "raw/0.png", "range.png"])
def test_depth_images_are_known_whatever_their_names(album, name):
    save_depth(album / name, np.full((24, 32), 1500))
    with pytest.raises(MdeError, match=rf"{name}: depth images, no photos \(1 in all"):
        PhotoFrames(album)


def test_photos_behind_links_are_found(album, tmp_path):
    save_image(tmp_path / "disk2/x.jpg")
    (album / "more").symlink_to(tmp_path / "disk2")
    (album / "a/again").symlink_to(album)
    assert [path.as_posix() for path in PhotoFrames(album).paths] == ["a/2.jpeg", "a/deep/1.JPG", "b.png", "more/x.jpg"]


def test_photos_train_and_frames_with_depth_validate(album, make_folder):
    rendered = photos_splits(album, size=(32, 64))
    assert not rendered.labelled
    assert rendered.train.name == "album"
    assert rendered.validation[0].image.shape == (3, 32, 64)
    assert rendered.validation[0].mask.any()
    assert rendered.test is not None
    assert "synthetic" in rendered.note
    root = make_folder({"0": "room", "1": "room"}, "measured")
    measured = photos_splits(album, val_root=root)
    assert (measured.validation.name, len(measured.validation), measured.test) == ("measured", 2, None)


def test_a_mixture_with_photos_is_validated_on_its_other_parts(album, make_folder):
    labelled = folder_splits(make_folder({f"{i}": f"room{i % 3}" for i in range(9)}))
    mixed = mix_splits({"photos": photos_splits(album), "labelled": labelled}, {"photos": 3, "labelled": 1})
    assert [part.name for part in mixed.train.parts] == ["album", "tiny"]
    assert [part.name for part in mixed.validation.parts] == ["tiny"]
    assert (mixed.labelled, mixed.test, mixed.note) == (False, None, "")
    assert mix_splits({"labelled": labelled}).labelled
    assert [part.name for part in mix_splits({"photos": photos_splits(album)}).validation.parts] == ["synthetic"]
