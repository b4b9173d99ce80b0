"""What several test folders share: tiny RGB-D folders, and train.py called as a user calls it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
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
SCRIPTS = ("train.py", "prune.py", "deploy.py", "-m benchmarks.altered")
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


def quick(script: str, overrides: Sequence[str], steps: int | None) -> list[str]:
    """The command line, of that many steps if it names no number itself, with few frames and rounds where it says
    nothing of them and may."""
    given = {override.partition("=")[0] for override in overrides}
    if {"resume", "source"} & given or "data=l515" in overrides or script not in SCRIPTS:
        return [*overrides]
    options = {"evaluation.frames": 4, "measure.rounds": 2 if script == "deploy.py" else 0, "measure.memory": "false"}
    if script == "deploy.py" and "compare" not in given:
        options |= {"parity_frames": 4, "quantize.frames": 4, "quantize.gate_frames": 4}
    if steps is not None and script != "deploy.py":
        options |= {"trainer.max_steps": steps}
    if script != "deploy.py":
        options |= {"importance.images": 4, "recovery.batchnorm_images": 4}
    return [*overrides, *(f"{name}={value}" for name, value in options.items() if name not in given)]


def train_command(*overrides: str, steps: int | None = None, script: str = "train.py", **environment: str) -> dict:
    """Arguments of subprocess.run/Popen for `python train.py overrides`, from the repository root, with one thread."""
    return {
        "args": [sys.executable, script, *quick(script, overrides, steps)],
        "cwd": ROOT,
        "env": script_environment() | environment,
    }


def script_environment() -> dict[str, str]:
    variables = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    variables.setdefault("WANDB_DATA_DIR", tempfile.gettempdir())  # else it stages tables in the home directory
    return variables


def call(
    *overrides: str, steps: int | None = None, script: str = "train.py", directory: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python train.py overrides`, another script or "-m module", to its end; returns the process with output."""
    return run_script(
        script if script.startswith("-m ") else ROOT / script,
        quick(script, overrides, steps),
        directory,
        script_environment() | environment,
    )


@pytest.fixture
def run_train() -> Callable[..., subprocess.CompletedProcess[str]]:
    return call


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with one of them at the end."""
    items.sort(key=lambda item: "test_docs.py" not in item.nodeid)
