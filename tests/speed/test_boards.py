"""What a network takes on its board: an estimate, until the board's own profile is given back."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mde.data.folder import FolderFrames
from mde.deploy.run import for_board
from mde.engines.request import Request
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.jetson import runner
from mde.models import build_model, save_model
from mde.records import describe_model, new_record, write_record
from mde.report.run_page import write_report
from mde.speed.boards import measured, read_profile
from tests.conftest import call, write_frames
from tests.export import random_network
from tests.test_config import composed

BOARD = "NVIDIA Jetson Orin Nano Developer Kit"
ENTRY = {"status": "measured", "p50_ms": 5.0, "p95_ms": 5.5, "p99_ms": 6.0, "fps": 200.0, "precision": "fp32",
         "speedup_vs_reference": None, "runs": 200, "threads": None, "warmup": 20}  # fmt: skip


def write_profile(folder: Path, description: dict, monkeypatch: pytest.MonkeyPatch, board: str | None = BOARD) -> Path:
    """As the bundle's runner does after a benchmark on the board."""
    monkeypatch.setattr(runner.device, "describe", lambda: {"board": board})
    facts = {"library": "tensorrt", "library_version": "10.3", "device": "Orin", "dla": None}
    runner.write_profile(str(folder), description | facts, ENTRY, {"kernel": 1.0})
    return folder / "profile.json"


def test_the_estimate_is_marked_wherever_it_is_shown(tmp_path: Path) -> None:
    checkpoint, frames = tmp_path / "trained.safetensors", write_frames(tmp_path / "frames", frames=4)
    save_model(build_model("midas_small", encoder="lite0"), checkpoint, input=[64, 64])
    overrides = [f"checkpoint={checkpoint}", "data=folder", f"data.root={frames}", f"hydra.run.dir={tmp_path / 'run'}"]
    done = call(*overrides, "device=orin_nano", "target=pytorch", "threads=1", script="deploy.py")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    statuses = {name: entry["status"] for name, entry in record["latency"].items()}
    assert statuses == {"pytorch": "measured", "orin_nano": "estimate"}
    entry, published = record["latency"]["orin_nano"], record["reference_latency"]["orin_nano"]
    assert (entry["macs"], entry["precision"]) == (record["model"]["macs"], "fp32")
    assert (published["status"], published["precision"]) == ("estimate", "fp32")
    page = (tmp_path / "run/report.html").read_text()
    for said in (done.stdout, page):
        assert f"estimate, at least {entry['p50_ms']:.2f}" in said
    assert "an estimate, no measurement" in page


def test_the_profile_of_the_same_bundle_takes_the_estimates_place(tmp_path, monkeypatch) -> None:
    torch.set_num_threads(1)
    model, frames = random_network(reference=False), FolderFrames(write_frames(tmp_path / "frames", frames=2))
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()

    def record_of(run: str, *overrides: str) -> dict:
        config = composed("checkpoint=/x", "device=orin_nano", "parity_frames=2", *overrides, script="deploy")
        folder = tmp_path / run
        (folder / "temporary").mkdir(parents=True)
        request = Request(model.name, graph, (64, 64), "fp32", folder / "temporary")
        job = SimpleNamespace(config=config, run_dir=folder, model=model)
        record = new_record("complete", model=describe_model(model, (64, 64)) | {"file_bytes": 1}, reference_latency={})
        for_board(job, request, record, frames)
        write_record(folder, record)
        return record

    record = record_of("first", "bundle=true")
    assert record["latency"]["orin_nano"]["status"] == "estimate"
    description = json.loads((tmp_path / "first/bundle/model.onnx.json").read_text())
    profile = write_profile(tmp_path, description, monkeypatch)
    record = record_of("second", f"device.profile={profile}")
    assert record["latency"]["orin_nano"].items() >= (ENTRY | {"board": BOARD, "engine_version": "10.3"}).items()
    assert record["reference_latency"] == {}
    page = write_report(tmp_path / "second").read_text()
    assert f"measured on {BOARD}" in page
    assert "no measurement" not in page
    with torch.no_grad():
        graph.network.decoder.head.conv3.bias.add_(1)
    with pytest.raises(MdeError, match="of another network or size"):
        record_of("other", f"device.profile={profile}")


@pytest.mark.parametrize(
    ("changes", "board", "line"),
    [
        ({}, "NVIDIA Jetson AGX Orin Developer Kit", "made on NVIDIA Jetson AGX Orin .* which is no Orin Nano"),
        ({}, None, "made on None, which is no Orin Nano"),
        ({"precision": "int8"}, BOARD, "in int8, not fp16; choose quantize="),
        ({"graph_sha256": "beef"}, BOARD, "of another network or size"),
    ],
)
def test_a_profile_of_something_else_is_refused(changes, board, line, tmp_path, monkeypatch) -> None:
    description = {"network": "midas_small", "input": [64, 64], "precision": "fp16", "graph_sha256": "f00d"}
    path = write_profile(tmp_path, description | changes, monkeypatch, board)
    device = composed("checkpoint=/x", "device=orin_nano", f"device.profile={path}", script="deploy").device
    with pytest.raises(MdeError, match=rf"^device\.profile={path}: {line}"):
        measured(device, "fp16", "f00d")


WHOLE = {"board": BOARD, "precision": "fp16", "graph_sha256": "f00d", "engine": "tensorrt", "engine_version": "10.3"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "no JSON object"),
        ('{"board": "Orin Nano"}', "graph_sha256 is missing, text"),
        (json.dumps(WHOLE | {"engine": 7}), "engine must be text, not 7"),
        (json.dumps(WHOLE), "latency is missing, an object"),
        (json.dumps(WHOLE | {"latency": ENTRY | {"status": "estimate"}}), 'must be measured, not "estimate"'),
        (json.dumps(WHOLE | {"latency": ENTRY | {"p50_ms": "5"}}), 'latency.p50_ms must be a number, not "5"'),
        (json.dumps(WHOLE | {"latency": ENTRY | {"runs": None}}), "latency.runs is missing, a number"),
    ],
)
def test_what_is_no_profile_is_refused_and_its_entry_named(content, line, tmp_path) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content)
    device = composed("checkpoint=/x", "device=orin_nano", f"device.profile={path}", script="deploy").device
    with pytest.raises(MdeError, match=rf"^device\.profile={path}: .*{line}.*; take the one that") as caught:
        read_profile(device, "fp16")
    assert "\n" not in str(caught.value)
