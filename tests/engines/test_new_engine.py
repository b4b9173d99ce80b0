"""Adding an engine is adding what it is called, and what writes and opens its files: deploy.py then deploys to it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mde.deploy.run import deploy
from mde.engines import ENGINES, Engine
from mde.engines.engine import Input, Opened
from mde.engines.request import Request
from mde.engines.runtime import load_runtime
from mde.models import save_model
from tests.conftest import write_frames
from tests.export import random_network
from tests.test_config import composed

torch.set_num_threads(1)


def write(request: Request, path: Path) -> None:
    program = torch.jit.trace(request.graph, request.graph.example(request.size))
    torch.jit.save(program, path)


def open_file(path: Path, threads: int) -> Opened:
    program = torch.jit.load(path)
    return lambda image: program(torch.from_numpy(image)).detach().numpy(), [Input((1, 64, 96, 3), "uint8")]


TORCHSCRIPT = Engine("torchscript", (".script",), "torch", open_file, {"fp32": write}, no_profile="It gives no times")


def test_deploy_deploys_to_an_engine_that_it_has_never_heard_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(ENGINES, TORCHSCRIPT.name, TORCHSCRIPT)
    (run_dir := tmp_path / "run").mkdir()
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(run_dir)))
    monkeypatch.setattr("mde.deploy.run.HydraConfig", SimpleNamespace(get=lambda: hydra))
    save_model(random_network(), tmp_path / "network.safetensors", input=[64, 96])
    frames = write_frames(tmp_path / "frames")
    options = [f"checkpoint={tmp_path}/network.safetensors", "data=folder", f"data.root={frames}", "experiment=quick"]
    deploy(composed(*options, "target.name=torchscript", "threads=1", script="deploy"))
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["deployment"]["parity"]["largest"] < 1e-4
    assert record["latency"]["torchscript"]["status"] == "measured"
    assert "It gives no times." in (run_dir / "report.html").read_text()
    runtime = load_runtime(run_dir / "model.script", threads=1)
    rgb = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    own = load_runtime(run_dir / "model.safetensors", threads=1)
    np.testing.assert_allclose(runtime.predict(rgb), own.predict(rgb), rtol=1e-4, atol=1e-5)
