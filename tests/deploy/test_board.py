"""What a network takes on its board: an estimate, until the board's own profile is given back."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from mde.deploy.board import measured, read_profile
from mde.errors import MdeError
from mde.jetson import runner
from mde.models import build_model, save_model
from tests.conftest import train_command, write_frames
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


def deploy(*overrides: str) -> subprocess.CompletedProcess[str]:
    command = train_command(*overrides, steps=1, script="deploy.py")
    return subprocess.run(**command, capture_output=True, text=True, timeout=600, check=False)


def test_the_estimate_is_marked_and_gives_way_to_the_boards_measurement(tmp_path, monkeypatch) -> None:
    checkpoint = tmp_path / "trained.safetensors"
    torch.manual_seed(0)
    save_model(build_model("midas_small", encoder="lite0"), checkpoint, input=[64, 64])
    frames = write_frames(tmp_path / "frames", frames=4)
    common = [f"checkpoint={checkpoint}", "data=folder", f"data.root={frames}", "device=orin_nano", "target=pytorch"]
    done = deploy(*common, "bundle=true", f"hydra.run.dir={tmp_path / 'first'}")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "first/metrics.json").read_text())
    assert {name: entry["status"] for name, entry in record["latency"].items()} == {
        "pytorch": "measured",
        "orin_nano": "estimate",
    }
    entry, published = record["latency"]["orin_nano"], record["reference_latency"]["orin_nano"]
    assert (entry["macs"], entry["precision"]) == (record["model"]["macs"], "fp32")
    assert (published["status"], published["precision"]) == ("estimate", "fp32")
    page = (tmp_path / "first/report.html").read_text()
    for said in (done.stdout, page):
        assert f"estimate, at least {entry['p50_ms']:.2f}" in said
    assert "an estimate, no measurement" in page

    description = json.loads((tmp_path / "first/bundle/model.onnx.json").read_text())
    profile = write_profile(tmp_path, description, monkeypatch)
    done = deploy(*common, f"device.profile={profile}", f"hydra.run.dir={tmp_path / 'second'}")
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "second/metrics.json").read_text())
    assert record["latency"]["orin_nano"].items() >= (ENTRY | {"board": BOARD, "engine_version": "10.3"}).items()
    assert "orin_nano" not in record["reference_latency"]
    page = (tmp_path / "second/report.html").read_text()
    assert f"measured on {BOARD}" in page
    assert "no measurement" not in page


@pytest.mark.parametrize(
    ("changes", "board", "line"),
    [
        ({}, "NVIDIA Jetson AGX Orin Developer Kit", "made on NVIDIA Jetson AGX Orin .* which is no Orin Nano"),
        ({}, None, "made on None, which is no Orin Nano"),
        ({"precision": "fp32"}, BOARD, "in fp32, not fp16; choose quantize="),
        ({"graph_sha256": "beef"}, BOARD, "of another network or size"),
    ],
)
def test_a_profile_of_something_else_is_refused(changes, board, line, tmp_path, monkeypatch) -> None:
    description = {"network": "midas_small", "input": [64, 64], "precision": "fp16", "graph_sha256": "f00d"}
    path = write_profile(tmp_path, description | changes, monkeypatch, board)
    device = composed("checkpoint=/x", "device=orin_nano", f"device.profile={path}", script="deploy").device
    with pytest.raises(MdeError, match=rf"^device\.profile={path}: {line}"):
        measured(device, "fp16", "f00d")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"board": "Orin Nano"}', '{"p50_ms": 5.0}'])
def test_what_is_no_profile_is_refused(content, tmp_path) -> None:
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content)
    device = composed("checkpoint=/x", "device=orin_nano", f"device.profile={path}", script="deploy").device
    with pytest.raises(MdeError, match="no readable profile"):
        read_profile(device, "fp16")


def test_a_profile_for_no_board_is_refused(tmp_path) -> None:
    done = deploy("checkpoint=/x", "device.profile=/none", f"hydra.run.dir={tmp_path}")
    assert done.returncode == 2
    assert "error: device=cpu is no Jetson" in done.stderr
