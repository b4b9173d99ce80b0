"""The launchers of conf/hydra/launcher, each really started with two tiny jobs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.tiny_job import DIES
from tests.conftest import ROOT

PLUGINS = {
    "processes": "hydra_joblib_launcher",
    "ray_local": "hydra_ray_launcher",
    "slurm_local": "hydra_submitit_launcher",
    "slurm": "hydra_submitit_launcher",
}


def launch(launcher: str, directory: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(f"hydra_plugins.{PLUGINS[launcher]}") is None:
        pytest.skip(f"the plugin {PLUGINS[launcher]} is not installed")
    options = [f"hydra/launcher={launcher}", f"hydra.sweep.dir={directory}", *overrides]
    return subprocess.run(
        [sys.executable, "-m", "tests.app.tiny_job", "-m", *options],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def statuses(directory: Path) -> dict[str, str]:
    return {row["job"]: row["status"] for row in json.loads((directory / "summary.json").read_text())["jobs"]}


@pytest.mark.parametrize(
    "launcher", ["processes", *(pytest.param(name, marks=pytest.mark.whole) for name in ("slurm_local", "ray_local"))]
)
def test_a_launcher_runs_the_jobs_and_the_sweep_ends_in_a_page(launcher, tmp_path):
    done = launch(launcher, tmp_path, "seed=1,2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses(tmp_path) == {"seed-1": "complete", "seed-2": "complete"}
    assert "2 of 2 jobs complete" in done.stdout
    assert "Warning: " not in done.stderr.replace("FutureWarning: ", "")


def test_a_worker_that_is_killed_counts_as_a_failure_and_the_page_is_made(tmp_path):
    done = launch("processes", tmp_path, f"seed=1,{DIES}")
    found = statuses(tmp_path)
    assert found[f"seed-{DIES}"] == "no result"
    # Joblib ends the other worker too, which may or may not have been done by then.
    assert done.returncode == sum(status != "complete" for status in found.values()), done.stdout + done.stderr


def test_the_slurm_launcher_asks_for_slurm(tmp_path):
    done = launch("slurm", tmp_path, "seed=1,2")
    assert done.returncode == 1
    assert "srun" in done.stderr
