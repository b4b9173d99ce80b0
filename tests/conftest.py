"""What several test folders share: tiny RGB-D folders, and train.py called as a user calls it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.forked import run_script

with contextlib.suppress(ImportError):  # of the extra tflite
    from absl.logging import get_absl_handler

    # absl remembers what sys.stderr is when it is imported, here pytest's capture of one test, and closes it as soon as
    # Hydra configures logging, in another test: unless it is the real one.
    get_absl_handler().python_handler.stream = sys.__stderr__

ROOT = Path(__file__).resolve().parent.parent
MOST = 100  # steps=: more than the run has; that the variable is set keeps it from measuring the memory of engines
TINY = ["size=[64,64]", "batch_size=2", "workers=0", "weights=none", "logger=csv", "trainer.precision=32-true"]


def write_frames(root: Path, frames: int = 10, size: tuple[int, int] = (48, 64), **meta: object) -> Path:
    """Frames of two scenes: a slanted floor whose colour follows its depth, 1 to 4 m, one corner unknown."""
    rng = np.random.default_rng(0)
    for name in ("rgb", "depth"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for index in range(frames):
        far = rng.uniform(2, 4)
        depth = np.linspace(far, 1, size[0])[:, None] + np.zeros(size) + rng.uniform(0, 0.05, size)
        depth[:4, :4] = 0
        shade = np.stack([depth / 4, 1 - depth / 5, rng.uniform(0, 1, size)], axis=-1).clip(0, 1)
        Image.fromarray((shade * 255).astype(np.uint8)).save(root / "rgb" / f"{index:03}.png")
        Image.fromarray((depth * 1000).astype(np.uint16)).save(root / "depth" / f"{index:03}.png")
    scenes = {f"{index:03}": f"room{index % 2}" for index in range(frames)}
    content = {"name": root.name, "depth_unit_m": 0.001, "scenes": scenes} | meta
    (root / "meta.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def frames_folder(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "tiny")


def train_command(*overrides: str, steps: int | None = None, script: str = "train.py", **environment: str) -> dict:
    """Arguments of subprocess.run/Popen for `python train.py overrides`, from the repository root, with one thread."""
    return {
        "args": [sys.executable, script, *overrides],
        "cwd": ROOT,
        "env": script_environment(steps) | environment,
    }


def script_environment(steps: int | None) -> dict[str, str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    variables.setdefault("WANDB_DATA_DIR", tempfile.gettempdir())  # else it stages tables in the home directory
    variables.pop("MDE_MAX_STEPS", None)
    return variables if steps is None else variables | {"MDE_MAX_STEPS": str(steps)}


def call(
    *overrides: str, steps: int | None = None, script: str = "train.py", directory: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python train.py overrides`, or another script, to its end and returns the process with its output."""
    return run_script(ROOT / script, [*overrides], directory, script_environment(steps) | environment)


@pytest.fixture
def run_train() -> Callable[..., subprocess.CompletedProcess[str]]:
    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: "test_docs.py" not in item.nodeid)
