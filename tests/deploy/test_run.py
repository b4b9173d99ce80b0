"""deploy.py, run as a user runs it."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mde.data.folder import FolderFrames
from mde.deploy.job import Job, check_job, clear, sensitivity, written
from mde.deploy.parity import check_parity, check_rounding, measure_parity
from mde.engines import write_target
from mde.engines.pytorch import graph_engine
from mde.engines.request import Request
from mde.engines.runtime import Runtime, load_runtime
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.models import build_model, read_metadata, save_model
from mde.quantization.fake import activation_scales, fake_quantize
from tests.conftest import call, write_frames
from tests.export import random_network
from tests.quantization.small_network import layers
from tests.test_config import composed

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "model.safetensors"
    torch.manual_seed(0)
    save_model(build_model("midas_small", encoder="lite0"), path, input=[64, 64], trained_on="nothing")
    return path


@pytest.fixture
def deploy(checkpoint: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return call(*overrides, f"checkpoint={checkpoint}", script="deploy.py")

    return run


def test_a_sweep_over_targets_ends_in_one_table_with_parity(checkpoint: Path, deploy, tmp_path: Path) -> None:
    done = deploy(
        "-m", "target=openvino,tensorrt", "quantize=int8", "quantize.max_drop=1", f"hydra.sweep.dir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 of 2 jobs complete" in done.stdout
    assert "parity" in (tmp_path / "report.html").read_text()
    for target, suffix in {"openvino": ".xml", "tensorrt": ".engine"}.items():
        (run_dir,) = tmp_path.glob(f"*target-{target}*")
        record = json.loads((run_dir / "metrics.json").read_text())
        entry, latency = record["deployment"], record["latency"][target]
        assert (entry["target"], entry["precision"]) == (target, "int8")
        assert entry["parity"]["largest"] > 1e-5, "INT8 that differs by nothing is no INT8"
        assert entry["quantization"]["calibration_frames"] == 4
        assert (run_dir / f"model{suffix}.json").exists()
        metadata = read_metadata(run_dir / "model.safetensors")
        assert (metadata["trained_on"], metadata["parent"]) == ("nothing", str(checkpoint))
        files = [path for path in run_dir.glob("model.*") if path.suffix in (suffix, ".bin")]
        assert record["model"]["file_bytes"] == sum(path.stat().st_size for path in files) > 1e6
        if target == "tensorrt" and not torch.cuda.is_available():
            assert latency["status"] == "built_not_run"
            assert "p50_ms" not in latency
            assert entry["parity"]["engine"] == "onnxruntime"
        else:
            assert latency["status"] == "measured"
            assert record["reference_latency"][target]["p50_ms"] > 0
            load_runtime(run_dir / f"model{suffix}", threads=1).predict(np.zeros((50, 70, 3), np.uint8))


def test_a_size_that_no_network_takes_is_one_line(deploy, tmp_path: Path) -> None:
    done = deploy("size=[64,100]", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    (last,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert last.startswith("error: size=[64, 100]: height and width as multiples of 32")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["checkpoint=null"], "nothing to deploy: give checkpoint=PATH, or compare="),
        (["checkpoint=a", "parity_frames=0"], "parity_frames=0: must be at least 1"),
        (["checkpoint=a", "threads=0"], "threads=0: must be at least 1"),
        (["checkpoint=a", "target.opset=11", "quantize=int8"], "target.opset=11: has no scale per channel"),
        (["checkpoint=a", "target=litert", "quantize=qat"], "target=litert: not with quantize=qat"),
        (["checkpoint=a", "target=litert", "quantize=dynamic"], "target=litert: computes nothing in dynamic"),
        (["checkpoint=a", "target.name=x"], "target.name=x: unknown; choose from pytorch, onnxruntime"),
        (["checkpoint=a", "quantize.kind=x"], "quantize.kind=x: unknown; choose from none, float16"),
    ],
)
def test_what_cannot_be_deployed_is_said_at_once(overrides: list[str], line: str) -> None:
    with pytest.raises(MdeError, match=f"^{re.escape(line)}"):
        check_job(composed(*overrides, script="deploy"))


@pytest.mark.parametrize(
    ("target", "precision", "line"),
    [
        ("litert", "dynamic", "target=litert: computes nothing in dynamic; choose one of onnxruntime"),
        ("tensorflow", "fp32", "target.name=tensorflow: unknown; choose from pytorch, onnxruntime"),
        ("onnxruntime", "int8", "no calibration frames"),
    ],
)
def test_what_a_target_does_not_compute_is_refused(target: str, precision: str, line: str, tmp_path: Path) -> None:
    model = random_network()
    graph = ImageGraph(deployable(model), model.mean, model.std)
    with pytest.raises(MdeError, match=line):
        write_target(target, Request(model.name, graph, (64, 64), precision, tmp_path), tmp_path / "model.onnx")


def test_the_gate_can_send_every_layer_back_to_float(tmp_path: Path) -> None:
    model = random_network(reference=False, border="replicate")
    save_model(model, tmp_path / "model.safetensors", input=[64, 64])
    network = load_runtime(tmp_path / "model.safetensors", threads=1)
    images = [np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8) for seed in range(3)]
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    request = Request(model.name, graph, (64, 64), "int8", tmp_path, images)
    config = OmegaConf.create({"target": {"name": "onnxruntime"}, "threads": 1})
    job = Job(config, tmp_path, model, network, network, None, request)
    costs = sensitivity(job)
    assert set(costs) == layers(graph.network)

    def error(exclude: list[str]) -> float:
        return float(np.abs(written(job, exclude).infer(images[0]) - network.infer(images[0])).max())

    assert error(list(costs)) < 0.1 * error([])


def test_a_deployment_that_breaks_says_so_in_its_record(deploy, tmp_path: Path) -> None:
    done = deploy("quantize=dynamic", "quantize.max_drop=-2", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert record["status"] == "failed"
    assert record["error"].startswith("quantize.max_drop=-2: delta1 falls by ")
    assert {path.name for path in (tmp_path / "run").glob("model*")} == {"model.safetensors"}, "a refused file is there"


def test_what_a_killed_job_left_is_cleared_away_but_for_the_network(tmp_path: Path) -> None:
    kept = {"config.yaml", "model.safetensors"}
    for name in kept | {"model.onnx", "model.onnx.json", "layers.csv"}:
        (tmp_path / name).write_text("of the job that was killed")
    (tmp_path / "bundle").mkdir()
    clear(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_parity_names_the_worst_frame_and_draws_it(tmp_path: Path) -> None:
    frames = FolderFrames(write_frames(tmp_path / "frames"))
    save_model(random_network(), tmp_path / "model.safetensors", input=[64, 64])
    network = load_runtime(tmp_path / "model.safetensors", threads=1)
    wrong = network.preprocess(frames[2].image.permute(1, 2, 0).numpy())

    def faulty(image: np.ndarray) -> np.ndarray:
        output = network.infer(image).copy()
        if np.array_equal(image, wrong):
            output[0, 0, 5, 7] += 0.5 * np.ptp(output)
        return output

    runtime = Runtime(tmp_path / "model.onnx", network.description, faulty)
    parity = measure_parity(runtime, network, frames, 16)
    assert (parity.worst, parity.frames) == (2, len(frames))
    assert parity.largest == pytest.approx(0.5, rel=1e-4)
    with pytest.raises(MdeError, match=r"differs from PyTorch by 0\.5 .* frame 2"):
        check_parity(parity, runtime, network, frames, tmp_path / "pictures")
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"parity_expected.png", "parity_found.png"}
    check_parity(measure_parity(network, network, frames, 4), network, network, frames, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_engine_that_answers_nan_fails_parity(tmp_path: Path) -> None:
    frames = FolderFrames(write_frames(tmp_path / "frames"))
    save_model(random_network(), tmp_path / "model.safetensors", input=[64, 64])
    network = load_runtime(tmp_path / "model.safetensors", threads=1)
    runtime = Runtime(tmp_path / "m.onnx", network.description, lambda image: network.infer(image) * np.float32(np.nan))
    with pytest.raises(MdeError, match="differs from PyTorch"):
        check_parity(measure_parity(runtime, network, frames, 2), runtime, network, frames, tmp_path)


def test_a_file_that_rounds_nothing_or_something_else_is_not_what_was_trained(tmp_path: Path) -> None:
    frames = FolderFrames(write_frames(tmp_path / "frames"))
    model = random_network(reference=False)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    scales = activation_scales(model, [image])
    save_model(model, tmp_path / "model.safetensors", input=[64, 64])
    network = load_runtime(tmp_path / "model.safetensors", threads=1)

    def rounded(factor: float) -> Runtime:
        other = deployable(model)
        fake_quantize(other, {name: factor * scale for name, scale in scales.items()})
        engine = graph_engine(ImageGraph(other, model.mean, model.std), 1)
        return Runtime(tmp_path / "model.onnx", network.description, engine)

    expected = rounded(1)
    moved = measure_parity(network, expected, frames, 2)
    assert moved.mean > 1e-3
    for runtime in (network, rounded(3)):
        parity = measure_parity(runtime, expected, frames, 2)
        with pytest.raises(MdeError, match="differs from the fake-quantized network by"):
            check_rounding(parity, moved, runtime, expected, frames, tmp_path / "pictures")
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"parity_expected.png", "parity_found.png"}
    same = measure_parity(rounded(1), expected, frames, 2)
    check_rounding(same, moved, rounded(1), expected, frames, tmp_path / "none")
    assert not (tmp_path / "none").exists()
