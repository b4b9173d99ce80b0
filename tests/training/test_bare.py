"""A machine that only trains needs none of the libraries that deploy, log elsewhere or show."""

import json

from mde.models import load_model
from tests.conftest import ROOT, TINY, quick, script_environment
from tests.forked import run_script

ABSENT = ["wandb", "onnx", "onnxruntime", "onnxslim", "openvino", "ai_edge_litert", "litert_torch", "tensorrt"]
ABSENT += ["tensorrt_rtx", "rerun", "ray", "optuna", "joblib", "av", "h5py", "pyrealsense2", "wandb_workspaces", "lz4"]
BARE = f"""
import runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] in {ABSENT} + ["mde"]]:
    del sys.modules[name]
sys.modules |= dict.fromkeys({ABSENT})
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_training_runs_where_optional_libraries_cannot_be_imported(frames_folder, tmp_path):
    script, run_dir = tmp_path / "train.py", tmp_path / "run"
    script.write_text(BARE)
    options = quick(
        "train.py",
        ["data=folder", f"data.root={frames_folder}", f"hydra.run.dir={run_dir}", *TINY, "measure.rounds=2"],
        1,
    )
    done = run_script(script, options, ROOT, script_environment())
    assert done.returncode == 0, done.stderr
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["status"] == "complete"
    assert record["latency"] == {}
    assert (
        "Latency was not measured in onnxruntime and openvino: it, or onnx and onnxslim, are not installed here."
        in record["notes"]
    )
    assert (run_dir / "report.html").exists()
    assert load_model(run_dir / "model.safetensors").name == "midas_small"
    asked = run_script(
        script, [*options, "logger=wandb", f"hydra.run.dir={tmp_path}/other"], ROOT, script_environment()
    )
    assert asked.returncode == 2
    assert asked.stderr.splitlines()[-1] == (
        "error: logger=wandb: wandb is not installed; pip install wandb, or choose logger=csv"
    )
