"""Every command that README and docs show does what they say, run as they show it, from another directory."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT, write_frames
from tests.test_config import composed

PAGES = ["README.md", "docs/train.md"]


def commands(page: str) -> list[list[str]]:
    """The arguments of each `python train.py ...` in a page's code blocks, comments left out."""
    blocks = re.findall(r"^```\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(python train\.py [^`]*)`", (ROOT / page).read_text())
    found = [re.match(r"(?:\$ )?(?:\.venv/bin/)?python train\.py\b(.*)", line) for line in lines]
    return [shlex.split(match[1], comments=True) for match in found if match]


def run(arguments: list[str], directory: Path, steps: int = 1) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"MDE_MAX_STEPS": str(steps), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    script = [sys.executable, str(ROOT / "train.py")]
    return subprocess.run(
        [*script, *arguments], cwd=directory, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run_in_order(page, tmp_path):
    frames = write_frames(tmp_path / "frames")
    shown = commands(page)
    assert shown, "no command found: the page's code blocks changed shape"
    for arguments in shown:
        arguments = [argument.replace("PATH", str(frames)) for argument in arguments]
        if "trainer.max_minutes=30" in arguments:  # shown as a run that is stopped and continued by the next command
            arguments[arguments.index("trainer.max_minutes=30")] = "trainer.max_minutes=0.00001"
            done = run(arguments, tmp_path, steps=2)
            assert "to continue: python train.py resume=" in done.stdout
            continue
        done = run(arguments, tmp_path, steps=2 if arguments[0:1] == ["resume=outputs/train/long"] else 1)
        if "trainer.max_stepz=3" in arguments:  # shown as a mistake
            assert done.returncode == 2
            assert "did you mean 'trainer.max_steps'?" in done.stderr
        elif "experiment=full" in arguments and not torch.cuda.is_available():  # said to need a GPU and a download
            assert done.returncode == 2
            assert re.match(r"error: .*(GPU|weights)", done.stderr.strip().splitlines()[-1])
        elif "--cfg" in arguments:
            assert done.returncode == 0
            assert "max_steps:" in done.stdout
        else:
            assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
            assert "report: " in done.stdout


def test_the_commands_behind_the_results_compose():
    shown = commands("docs/results.md")
    assert shown
    for arguments in shown:
        composed(*[argument for argument in arguments if not argument.startswith("hydra.")])
