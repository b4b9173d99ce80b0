"""The scripts behind the published figures run; their times are never looked at."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import arm, seven_bits, ship
from mde.deploy import load_runtime
from mde.engines.description import Description, write_description
from mde.engines.pairs import largest_pairs
from mde.models import read_metadata, save_model
from mde.quantization.fake import activation_scales
from tests.conftest import ROOT, TINY, call, write_frames
from tests.export import random_network
from tests.quantization.small_network import calibration_frames, small_graph

SHARED = Path(os.environ.get("MDE_SHARED", "../shared"))


def run(script: str, *arguments: str) -> str:
    done = call(*arguments, script=script)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_training_benchmark_prints_a_ratio_and_writes_its_figures(tmp_path):
    small = ["--size", "64", "64", "--batch-size", "2", "--rounds", "1"]
    printed = run("-m benchmarks.training", *small, "--out", str(tmp_path / "figures.json"))
    figures = json.loads((tmp_path / "figures.json").read_text())
    seconds = figures["seconds_per_batch"]
    assert f"ours / published: {seconds['published'] / seconds['ours']:.2f}x" in printed


def test_the_memory_benchmark_reads_the_resident_size(tmp_path):
    small = ["--size", "64", "64", "--batch-size", "2", "--memory-steps", "2"]
    run("-m benchmarks.training", *small, "--out", str(tmp_path / "memory.json"))
    readings = json.loads((tmp_path / "memory.json").read_text())["memory_mb"]
    assert [step for step, _ in readings] == [1, 2]
    assert all(megabytes > 100 for _, megabytes in readings)


@pytest.mark.parametrize("given", [pytest.param("sparsity", marks=pytest.mark.whole), "files"])
def test_the_deployment_benchmark_has_a_row_for_every_network_and_precision(given, tmp_path):
    options = ["--size", "64", "64", "--threads", "1", "--engines", "openvino", "--rounds", "2"]
    if given == "files":
        dense, narrow = random_network(), random_network()
        narrow.decoder.head.conv1 = torch.nn.Conv2d(64, 16, 3, padding=1)
        narrow.decoder.head.conv2 = torch.nn.Conv2d(16, 32, 3, padding=1)
        narrow_row = str(tmp_path / "narrow.safetensors")
        for name, model in {"dense": dense, "narrow": narrow}.items():
            save_model(model, tmp_path / f"{name}.safetensors")
        options += [
            "--checkpoint",
            str(tmp_path / "dense.safetensors"),
            "--pruned",
            narrow_row,
        ]
    else:
        narrow_row = "channel 0.75"
        options += ["--encoder", "lite0", "--sparsities", "0.75", "--layers"]
    printed = run("-m benchmarks.deploy", *options, "--out", str(tmp_path / "figures.json"))
    assert ("openvino, the last INT8 graph" in printed) == ("--layers" in options)
    figures = json.loads((tmp_path / "figures.json").read_text())["latency"]["openvino"]
    expected = {f"{network}, {p}" for network in ("dense", narrow_row) for p in ("fp32", "int8")}
    assert figures.keys() == expected | {"published graph, fp32"}
    assert all(name in printed for name in figures)


@pytest.mark.whole
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="set MDE_SHARED to the folder with the real frames")
def test_the_table_of_real_sets_has_every_set_and_marks_the_trained_one(run_train, tmp_path):
    run_dir = tmp_path / "run"
    folder = SHARED.resolve() / "data/redwood"
    done = run_train("data=folder", f"data.root={folder}", *TINY, f"hydra.run.dir={run_dir}", steps=1)
    assert done.returncode == 0, done.stderr
    printed = run("-m benchmarks.real_sets", f"mine={run_dir}", "--frames", "4", "--out", str(tmp_path / "table"))
    results = json.loads((tmp_path / "table/table.json").read_text())["results"]
    assert results.keys() == {"vertical ramp", "FastDepth INT8", "mine"}
    assert {"nyu", "kitti", "redkitchen", "redwood"} <= results["mine"].keys()
    assert not {"replica", "tartanair"} & results["mine"].keys()
    row = next(line for line in printed.splitlines() if line.startswith("| redwood"))
    assert row.rstrip(" |").endswith("*")
    texts = ["--title", "Tiny", "--licence", "As redwood's.", "--limits", "Useless."]
    card = run("-m benchmarks.ship", "tiny", str(run_dir), *texts, "--frames", "4", "--out", str(tmp_path))
    assert "# Tiny\n\n**Licence.** As redwood's." in card
    assert "python train.py data=folder data.root=$MDE_SHARED/data/redwood" in card
    assert "| redwood | | | learned from |" in card
    assert read_metadata(tmp_path / "tiny.safetensors")["licence"] == "As redwood's."
    page = tmp_path / "tiny.md"
    written = page.read_text()
    page.write_text(re.sub(r"\| kitti .*", "| kitti | what it was once |", written))
    run("-m benchmarks.ship", "tiny", "--measure", "--frames", "4", "--out", str(tmp_path))
    assert page.read_text() == written


def test_a_card_begins_with_the_commands_of_the_shipped_network_that_the_first_piece_began_with(tmp_path):
    def piece(command: str, parent: Path | str) -> dict:
        return {"environment": {"command": command}, "parent": str(parent)}

    shipped = tmp_path / "shipped.safetensors"
    shipped.with_suffix(".md").write_text(
        "## How\n\nSo:\n\n```\npython train.py hydra.run.dir=one weights=imagenet\n```\n"
    )
    first = piece(f"prune.py hydra.run.dir=two checkpoint={shipped}", shipped)
    second = piece("train.py weights=two/model.safetensors", "two/model.safetensors")
    assert ship.commands({Path("two"): first, Path("three"): second}) == [
        "python train.py hydra.run.dir=one weights=imagenet",
        "python prune.py hydra.run.dir=two checkpoint=one/model.safetensors",
        "python train.py weights=two/model.safetensors",
    ]
    assert ship.commands({Path("three"): second}) == ["python train.py weights=two/model.safetensors"]


def test_the_quantization_benchmark_has_a_row_for_every_way(tmp_path):
    save_model(random_network(reference=False), tmp_path / "float.safetensors", input=[64, 64])
    network = random_network(reference=False)
    scales = activation_scales(network, [torch.randn(1, 3, 64, 64)])
    save_model(network, tmp_path / "model.safetensors", input=[64, 64], activation_scales=scales)
    printed = run("-m benchmarks.quantization", str(tmp_path), "--data", str(write_frames(tmp_path / "frames")))
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in printed.splitlines()[2:]}
    assert float(rows["trained for INT8, PyTorch"][-1].strip(" |")) == 0
    assert 0 < float(rows["its file in OpenVINO"][-1].strip(" |")) < float(rows["float"][-1].strip(" |"))


def test_answers_need_numpy_and_the_engines_alone_as_on_an_emulated_board(tmp_path):
    files = [ROOT / f"weights/midas_small_tenth_int8.{suffix}" for suffix in ("onnx", "tflite")]
    image = np.random.default_rng(0).integers(0, 256, (192, 192, 3), np.uint8)  # the networks' size
    np.savez(tmp_path / "images.npz", noise=image)
    (packages := tmp_path / "packages").mkdir()
    for name in (*arm.WHEELS, "mde"):
        for found in Path(importlib.util.find_spec(name).origin).parents[1].glob(f"{name}*"):
            (packages / found.name).symlink_to(found)
    done = subprocess.run(
        [sys.executable, "-S", "-B", ROOT / "benchmarks/answers.py", "images.npz", "answers.npz", *files],
        cwd=tmp_path,
        env={"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answered = np.load(tmp_path / "answers.npz")
    for path in files:
        np.testing.assert_allclose(answered[f"{path.name}:noise"], load_runtime(path).predict(image), rtol=1e-5)
        np.testing.assert_array_equal(answered[f"{path.name}:noise:taken"], image[None])


def test_the_table_of_arm_shows_the_largest_and_the_mean_difference_and_what_is_not_finite(tmp_path):
    answer = np.linspace(0, 1, 100, dtype=np.float32).reshape(10, 10)
    here = {f"{name}.onnx:{image}": answer for name in ("near", "broken") for image in ("first", "second")}
    there = {name: found.copy() for name, found in here.items()}
    there["near.onnx:second"][3, 4] += 0.5
    there["broken.onnx:first"][0, 0] = np.nan
    paths = [tmp_path / f"{name}.onnx" for name in ("near", "broken")]
    for path in paths:
        path.write_bytes(b"graph")
        write_description(path, Description("midas_small", "onnxruntime", "int8", (10, 10)))
    rows = arm.table(paths, here, {"cortex-a57": there}).splitlines()[2:]
    assert rows == [
        "| `near.onnx` | onnxruntime | int8 | 0.5 | 0.0025 |",
        "| `broken.onnx` | onnxruntime | int8 | inf | inf |",
    ]


def test_the_benchmark_of_7_bits_changes_what_its_rows_say(tmp_path):
    frames = calibration_frames()
    engines = seven_bits.engines(small_graph(), frames, tmp_path, 1)
    assert len(engines) == 2 * (1 + len(seven_bits.VARIANTS))
    for (engine, variant), run in engines.items():
        pairs = largest_pairs(tmp_path / f"{variant}{seven_bits.SUFFIXES[engine]}")
        assert max(pairs.values(), default=0) == {"8": 255 * 254, "7": 255 * 128, "f": 0}[variant[0]]
        output = run(frames[0])
        assert (len(np.unique(output)) <= 256) == ("rounded" in variant), variant
        assert seven_bits.far_levels(output) <= len(np.unique(output))
