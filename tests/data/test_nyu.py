import base64
import pickle
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from mde.data.nyu import INTRINSICS, NyuFrames, nyu_splits, read_mat5
from mde.data.transforms import TrainingSet
from mde.errors import MdeError

h5py = pytest.importorskip("h5py", reason="the extra `nyu` is not installed")

FRAMES = 6
SCENES = ["kitchen_0001a", "bath_0001", "bath_0001", "kitchen_0001a", "office_0002", "bath_0001"]
# Written by scipy.io.savemat(..., do_compression=True): columns of doubles, trainNdxs = 1 4 5 and testNdxs = 2 3 6.
SPLITS_MAT = (
    b"MATLAB 5.0 MAT-file".ljust(124)
    + b"\x00\x01IM"
    + base64.b64decode(
        "DwAAADkAAAB4nONjYGCIAGI2IOaA0iDACuUzAzEjFHMCcUlRYmaeX0pFMVQdSEyCAQY+2ENoAQcILeIAAPKiBkUPAAAANAAAAHic"
        "42NgYAgAYjYg5oDSIMAK5TMDMSMUg/glqcUlfikVxZxAtgQDHDhAKA4oLeEAALCkBOs="
    )
)


@pytest.fixture
def root(tmp_path):
    """The labelled file with six frames, laid out as published: axes in MATLAB's order, scenes by reference."""
    generator = np.random.default_rng(0)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w") as file:
        file["images"] = generator.integers(0, 256, (FRAMES, 3, 640, 480), dtype=np.uint8)
        depths = generator.uniform(0.7, 9.9, (FRAMES, 640, 480)).astype(np.float32)
        depths[:, 100, 200] = 0  # column 100, row 200
        file["depths"] = depths
        references = file.create_dataset("scenes", (1, FRAMES), dtype=h5py.ref_dtype)
        for i, scene in enumerate(SCENES):
            file[f"#refs#/{i}"] = np.array([[ord(letter)] for letter in scene], dtype=np.uint16)
            references[0, i] = file[f"#refs#/{i}"].ref
    (tmp_path / "splits.mat").write_bytes(SPLITS_MAT)
    return tmp_path


def test_a_frame_is_turned_from_matlabs_order(root):
    sample = nyu_splits(root).test[1]
    assert sample.frame == "0002"  # MATLAB's 3
    with h5py.File(root / "nyu_depth_v2_labeled.mat") as file:
        image, depth = file["images"][2], file["depths"][2]
    assert sample.image.shape == (3, 480, 640)
    assert sample.depth.shape == (1, 480, 640)
    for row, column in ((0, 0), (479, 639), (200, 100), (17, 400)):
        assert sample.image[:, row, column].tolist() == image[:, column, row].tolist()
        assert sample.depth[0, row, column] == depth[column, row]
    assert sample.intrinsics.tolist() == torch.tensor(INTRINSICS).tolist()


def test_the_split_is_the_official_one_and_scenes_are_not_shared(root):
    splits = nyu_splits(root)
    assert [splits.test[i].frame for i in range(3)] == ["0001", "0002", "0005"]
    training, validation = ([SCENES[i] for i in part.indices] for part in (splits.train, splits.validation))
    assert sorted(training + validation) == ["kitchen_0001a", "kitchen_0001a", "office_0002"]
    assert set(training).isdisjoint(validation)
    assert splits.train.cap == 10


def test_evaluated_truth_has_the_eigen_crop_and_training_truth_has_not(root):
    splits = nyu_splits(root)
    for frames in (splits.validation, splits.test):
        mask = frames[0].mask[0]
        assert mask[45:471, 41:601].sum() == mask.sum() == 426 * 560 - 1
        assert not mask[200, 100]
    assert splits.train[0].mask.sum() == 480 * 640 - 1


def test_workers_and_copies_open_the_file_themselves(root):
    frames = nyu_splits(root).test
    expected = frames[0].image  # the file is open in this process now
    assert torch.equal(pickle.loads(pickle.dumps(frames))[0].image, expected)
    dataset = TrainingSet(frames, (32, 32), (0.5,) * 3, (0.5,) * 3, seed=0)
    keys = [(k, k) for k in range(3)]
    loaded = list(DataLoader(dataset, 1, sampler=keys, num_workers=2))
    for key, item in zip(keys, loaded, strict=True):
        assert torch.equal(item["image"][0], dataset[key]["image"])


@pytest.mark.parametrize("name", ["nyu_depth_v2_labeled.mat", "splits.mat"])
def test_a_missing_file_is_an_error_that_names_it(root, name):
    (root / name).unlink()
    with pytest.raises(MdeError, match=rf"{name}.*download"):
        nyu_splits(root)


@pytest.mark.parametrize("name", ["nyu_depth_v2_labeled.mat", "splits.mat"])
@pytest.mark.parametrize("size", [0, 64, 250])
def test_a_file_cut_short_is_an_error_that_names_it(root, name, size):
    (root / name).write_bytes((root / name).read_bytes()[:size])
    with pytest.raises(MdeError, match=name):
        nyu_splits(root)


def test_a_split_that_does_not_fit_the_frames_is_an_error(root):
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "a") as file:
        scenes = file["scenes"][:, :5]
        del file["scenes"]
        file["scenes"] = scenes
    with pytest.raises(MdeError, match=r"splits\.mat.*5 frames"):
        nyu_splits(root)


def test_another_hdf5_file_is_an_error(root):
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        file["x"] = 1
    with pytest.raises(MdeError, match="images, depths or scenes"):
        nyu_splits(root)


def test_without_h5py_the_error_says_what_to_install(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MdeError, match=r"mde\[nyu\]"):
        NyuFrames(root / "nyu_depth_v2_labeled.mat", [0])[0]


def test_a_matlab_5_file_gives_its_arrays_by_name(root):
    arrays = read_mat5(root / "splits.mat")
    assert {name: values.tolist() for name, values in arrays.items()} == {"trainNdxs": [1, 4, 5], "testNdxs": [2, 3, 6]}
