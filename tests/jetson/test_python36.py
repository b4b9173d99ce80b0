"""The shipped folder under a real Python 3.6 with an old numpy, as JetPack 4 has them, where such an interpreter is."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mde.jetson import depth, runner
from tests.conftest import ROOT
from tests.jetson.test_runner import assert_quality

BUNDLE = ROOT / "weights/midas_small_tenth_jetson"
Python = Callable[..., None]


@pytest.fixture(scope="module")
def python36() -> Python:
    """Runs Python 3.6 in a folder. The interpreter is found on the PATH or as pyenv puts it, numpy as the Makefile."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / ".venv/numpy-1.19")}

    def run(python: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
        command = [python, "-B", *arguments]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)

    candidates = map(str, Path.home().glob(".pyenv/versions/3.6.*/bin/python"))
    for python in filter(None, [shutil.which("python3.6"), *candidates]):
        if run(python, "-c", "import numpy", folder=ROOT).returncode == 0:  # pyenv's own python3.6 may be an empty shim
            break
    else:
        pytest.skip("no Python 3.6 with numpy; `pyenv install 3.6.15`, and `make install` brings numpy 1.19.5")

    def checked(*arguments: str, folder: Path) -> None:
        done = run(python, *arguments, folder=folder)
        assert done.returncode == 0, done.stderr

    return checked


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The folder, with a calibration, so that metres are computed too: about three of them in the middle."""
    folder = shutil.copytree(BUNDLE, tmp_path / "bundle")
    described, frames = folder / "model.onnx.json", runner.load_frames(str(folder / "frames.npz"))
    calibration = {"scale": float(0.3 / np.median(frames["reference"])), "shift": 0.03, "cap": 10.0}
    described.write_text(json.dumps(json.loads(described.read_text()) | {"calibration": calibration}))
    return folder


def quality(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())["quality"]


def test_stored_outputs_are_evaluated_as_here(python36, bundle):
    command = ["evaluate", "--outputs", "stored"]
    python36("runner.py", *command, folder=bundle)
    found = quality(bundle)
    assert runner.main([*command, "--folder", str(bundle)]) == 0
    assert set(found) == {"synthetic", "synthetic_calibrated"}
    for name, expected in quality(bundle).items():
        assert_quality(found[name], expected, rel=1e-6)


def test_a_photo_becomes_the_input_that_it_becomes_here(python36, bundle):
    photo = np.asarray(Image.open(ROOT / "docs/photos/coffee.jpg"))
    np.save(bundle / "photo.npy", photo)
    program = "import numpy, depth, runner; about = runner.load_description('model.onnx'); "
    program += "numpy.save('input.npy', depth.prepare(numpy.load('photo.npy'), about))"
    python36("-c", program, folder=bundle)
    expected = depth.prepare(photo, runner.load_description(str(bundle / "model.onnx")))
    found = np.load(bundle / "input.npy")
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    # Another numpy may add in another order: where a mean lies between two bytes either is right.
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert (found != expected).mean() < 1e-3
