from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mde.data.listing import DEPTH_SUFFIXES, PICTURE_SUFFIXES, depth_maps, picture_files, with_image_suffix
from mde.errors import MdeError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path, **options: bool) -> list[str]:
    return [path.relative_to(root).as_posix() for path in picture_files(root, **options)]


def test_pictures_are_files_by_their_suffix_and_not_hidden(tmp_path):
    touch(tmp_path, "b.JPG", "a.png", "._a.png", ".c.jpeg", "notes.txt", "d.webp", "e.jpg/x.txt", "in/f.png")
    assert listed(tmp_path) == ["a.png", "b.JPG"]
    assert [path.name for path in picture_files(tmp_path, PICTURE_SUFFIXES)] == ["a.png", "b.JPG", "d.webp"]
    assert [path.name for path in picture_files(touch(tmp_path, "x.NPY"), DEPTH_SUFFIXES)] == ["a.png", "x.NPY"]
    assert listed(tmp_path, deep=True) == ["a.png", "b.JPG", "in/f.png"]
    assert picture_files(tmp_path / "nowhere") == []


def test_links_are_followed_to_files_and_folders(tmp_path):
    touch(tmp_path / "disk", "1.jpg", "deep/2.jpg", "._1.jpg")
    root = touch(tmp_path / "photos", "own.jpg")
    (root / "more").symlink_to(tmp_path / "disk")
    (root / "one.jpg").symlink_to(tmp_path / "disk/1.jpg")
    assert listed(root, deep=True) == ["more/1.jpg", "more/deep/2.jpg", "one.jpg", "own.jpg"]
    (tmp_path / "album").symlink_to(root)
    assert listed(tmp_path / "album", deep=True) == listed(root, deep=True)


def test_a_folder_that_links_lead_back_to_counts_once_and_under_its_own_name(tmp_path):
    root = touch(tmp_path / "photos", "z/1.jpg", "z/y/2.jpg")
    (root / "a").symlink_to(root / "z")  # sorted before what it leads to
    (root / "z/up").symlink_to("..")
    (root / "z/y/self").symlink_to(".")
    (root / "b").symlink_to(tmp_path)
    assert listed(root, deep=True) == ["z/1.jpg", "z/y/2.jpg"]


@pytest.mark.parametrize("target", ["gone", "link"])
def test_a_link_that_leads_nowhere_is_an_error_before_photos_are_missed(tmp_path, target):
    root = touch(tmp_path / "photos", "own.jpg")
    (root / "link").symlink_to(target)
    with pytest.raises(MdeError, match=r"photos/link: a link that leads nowhere"):
        picture_files(root, deep=True)
    assert listed(root) == ["own.jpg"]


def test_an_image_is_found_whatever_its_suffix(tmp_path):
    touch(tmp_path, "1.5.jpg", "2.jpeg", "3.png", "3.jpg")
    found = [with_image_suffix(tmp_path / name) for name in ("1.5", "2", "3", "4")]
    assert [path and path.name for path in found] == ["1.5.jpg", "2.jpeg", "3.png", None]


def test_depth_maps_are_known_by_their_bits_and_by_their_names(tmp_path):
    pictures = {"colour": Image.new("RGB", (4, 3)), "grey": Image.new("L", (4, 3))}
    pictures["deep"] = Image.fromarray(np.full((3, 4), 1500, np.uint16))
    names = {
        "frame-0.color.png": "colour",
        "frame-0.depth.png": "deep",
        "color/0.png": "deep",
        "ir/0.tif": "deep",
        "depth/0.jpg": "grey",
        "depth/1.jpg": "colour",
        "0_disparity.png": "grey",
        "depths.png": "grey",
        "0.png": "grey",
    }
    for name, kind in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pictures[kind].save(tmp_path / name)
    paths = [tmp_path / name for name in names]
    named = [tmp_path / name for name in ("frame-0.depth.png", "depth/0.jpg", "0_disparity.png")]
    assert depth_maps(paths, infrared=True) == named
    assert set(depth_maps(paths)) == {*named, tmp_path / "color/0.png", tmp_path / "ir/0.tif"}
    (tmp_path / "frame-0.depth.png").write_bytes(b"damaged")
    assert depth_maps(paths[:2]) == []
