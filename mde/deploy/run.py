"""`deploy.py`: from a checkpoint to a verified, measured file for one target."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mde.benchmark import interleave, latency_entry
from mde.data.datamodule import parts_of
from mde.data.sample import Frames, Splits
from mde.data.transforms import normalise, resize_image
from mde.deploy.board import estimated, measured, read_profile
from mde.deploy.bundle import board_graph, check_device, write_bundle
from mde.deploy.description import description_file, graph_hash, write_description
from mde.deploy.parity import Parity, check_parity, check_rounding, measure_parity
from mde.deploy.quantization.fake import load_fake_quantized, read_scales
from mde.deploy.quantization.gate import Gated, quantize_within
from mde.deploy.quantization.sensitivity import layer_sensitivity
from mde.deploy.reference import open_published, published_graph
from mde.deploy.runtime import Runtime, load_runtime, runtime_predictor
from mde.deploy.targets import PRECISIONS, TARGETS, Request, typed_onnx, write_target
from mde.engine_memory import peak_memory
from mde.engines import engine_version, graph_engine
from mde.errors import MdeError
from mde.evaluation import evaluate, evaluation_sets, frame_limit, ramp_predictor, spread
from mde.export import ImageGraph, deployable
from mde.jetson.cudart import present_device
from mde.models import build_model, read_metadata, save_model, trained_size
from mde.models.checkpoints import RESERVED
from mde.models.network import DepthNetwork, check_size
from mde.profile import PROFILERS, layer_times
from mde.report.layers import write_layers
from mde.report.page import write_report
from mde.report.pictures import picture_sheet, save_predictions
from mde.report.record import describe_model, new_record, write_record
from mde.report.terminal import say, show_cost, show_quality

WARMUP, ROUNDS = 5, 40
CAMERA = (480, 640)  # height, width of the image in whose time pre- and post-processing are measured


@dataclass(frozen=True)
class Job:
    """What one deployment works with."""

    config: DictConfig
    run_dir: Path
    model: DepthNetwork
    network: Runtime  # in PyTorch, FP32
    expected: Runtime  # in PyTorch, what the file should compute: `network`, or its fake-quantized form (quantize=qat)
    splits: Splits
    request: Request

    @property
    def target(self) -> str:
        return self.config.target.name

    @property
    def file(self) -> Path:
        return self.run_dir / f"model{TARGETS[self.target][0]}"

    @property
    def runs_here(self) -> bool:
        """TensorRT builds without a GPU, and runs only on one."""
        return self.target != "tensorrt" or present_device()["device"] is not None


def deploy(config: DictConfig) -> Path:
    """Writes the file, proves that it computes the same, evaluates and measures it; returns the run directory.

    MdeError when the target lacks the precision or a library, when parity or the gate on accuracy fails.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    torch.manual_seed(config.seed)
    check_names(config)
    if config.bundle or config.device.profile or config.device.jetpack:
        check_device(config.device, PRECISIONS[config.quantize.kind])
    if config.device.profile:
        read_profile(config.device, PRECISIONS[config.quantize.kind])  # refused at once
    with tempfile.TemporaryDirectory() as temporary:
        job = prepare(config, run_dir, Path(temporary))
        record = new_record("running", parent=config.checkpoint, model=described(job))
        OmegaConf.save(config, run_dir / "config.yaml")
        with recorded(run_dir, record):
            carry_out(job, record)
            show_quality(record)
            show_cost(record)
            parity = record["deployment"]["parity"]
            say(
                f"parity with PyTorch: {parity['largest']:.2g} of the output's range at most, {parity['frames']} frames"
            )
    return run_dir


@contextmanager
def recorded(run_dir: Path, record: dict[str, Any]) -> Iterator[None]:
    """Keeps `record` as the run's, with how the block ended, and makes its report."""
    write_record(run_dir, record)
    try:
        yield
        record["status"] = "complete"
    except BaseException as error:  # Ctrl-C too: no record may go on saying "running"
        reason = str(error) if isinstance(error, MdeError) else f"{type(error).__name__}: {error}".rstrip(": ")
        record |= {"status": "failed", "error": reason}
        raise
    finally:
        write_record(run_dir, record)
        say(f"report: {write_report(run_dir)}")


def check_names(config: DictConfig) -> None:
    """MdeError for a target or a precision that there is not, or nothing to deploy."""
    if config.checkpoint is None:
        raise MdeError("nothing to deploy: give checkpoint=PATH, or compare=[FILE,FILE,...] for files that exist")
    if config.target.name not in TARGETS:
        raise MdeError(f"target.name={config.target.name}: unknown; choose from {', '.join(TARGETS)}")
    if config.quantize.kind not in PRECISIONS:
        raise MdeError(f"quantize.kind={config.quantize.kind}: unknown; choose from {', '.join(PRECISIONS)}")


def carry_out(job: Job, record: dict[str, Any]) -> None:
    """Builds, proves, evaluates and measures, and puts what it finds into the record."""
    config, run_dir = job.config, job.run_dir
    evaluated = evaluation_sets(job.splits, config.evaluate)
    say(f"{job.target}, {job.request.precision}, {job.request.size[0]} x {job.request.size[1]}")
    runtime, gated = build(job)
    parity = measure_parity(runtime, job.expected, evaluated[0], config.parity_frames)
    check_parity(parity, runtime, job.expected, evaluated[0], run_dir / "pictures")
    if job.request.scales:
        moved = measure_parity(job.network, job.expected, evaluated[0], config.parity_frames)
        check_rounding(parity, moved, runtime, job.expected, evaluated[0], run_dir / "pictures")
    quality(job, runtime, record, evaluated)
    record["model"]["file_bytes"] = sum(path.stat().st_size for path in files_of(job.file))
    record["deployment"] = deployment(job, runtime, parity, gated)
    record["latency"], record["reference_latency"] = latency(job, runtime)
    profile(job, runtime)
    if config.device.jetpack is not None:
        request = replace(job.request, exclude=gated.excluded if gated else ())
        for_board(job, request, record, evaluated[0])


def for_board(job: Job, request: Request, record: dict[str, Any], frames: Frames) -> None:
    """Puts the latency on config.device into the record, and writes the bundle if asked to."""
    config, device = job.config, job.config.device
    if config.bundle or device.profile:
        request, source = board_graph(request, device)
    if device.profile:
        record["latency"][device.name] = measured(device, request.precision, graph_hash(source))
    else:
        record["latency"][device.name] = estimated(device, request.graph.network, request.size, request.precision)
        published = published_graph(job.model.name, job.model.options).network
        record["reference_latency"][device.name] = estimated(device, published, request.size, "fp32")
    if config.bundle:
        folder = job.run_dir / "bundle"
        write_bundle(request, source, device, frames, config.parity_frames, folder, record["model"])
        say(f"for {device.name}, JetPack {device.jetpack}: {folder}, see README.md there")


def prepare(config: DictConfig, run_dir: Path, folder: Path) -> Job:
    """Opens checkpoint and data, and leaves the network as model.safetensors in the run directory."""
    size = check_size(config.size or trained_size(config.checkpoint))
    config.size = list(size)  # synthetic frames are rendered at it
    model = build_model(config.model.name, weights=config.checkpoint, encoder=config.model.encoder)
    splits: Splits = instantiate(config.data)
    scales = read_scales(Path(config.checkpoint)) if config.quantize.kind == "qat" else None
    file, about = run_dir / "model.safetensors", provenance(config.checkpoint)
    save_model(model, file, **about | {"parent": config.checkpoint, "input": list(size)})
    network = expected = load_runtime(file, threads=config.threads)
    if scales:
        graph = ImageGraph(deployable(load_fake_quantized(file)), model.mean, model.std)
        expected = Runtime(file, network.description, graph_engine(graph, config.threads))
    target = config.target
    request = Request(
        model.name,
        ImageGraph(deployable(model), model.mean, model.std, target.layout, target.dtype).eval(),
        size,
        PRECISIONS[config.quantize.kind],
        folder,
        opset=target.opset,
        scales=scales,
        library=target.library,
    )
    if request.precision == "int8" and not scales:
        request = replace(request, calibration=calibration(network, splits, config.quantize.frames))
    return Job(config, run_dir, model, network, expected, splits, request)


def calibration(network: Runtime, splits: Splits, count: int) -> list[np.ndarray]:
    """`count` training images, spread evenly over the scenes, whole: uint8 (1, H, W, 3)."""
    count = min(count, frame_limit() or count)
    images = []
    for part in parts_of(splits.train):
        share = -(-count // len(parts_of(splits.train)))
        for index in spread(len(part), share):
            images.append(network.preprocess(part[index].image.permute(1, 2, 0).numpy()))
    return images


def build(job: Job) -> tuple[Runtime, Gated[Runtime] | None]:
    """The target's file, described, and opened; INT8 that was not trained with as many layers as accuracy allows."""
    if job.request.precision != "int8" or job.request.scales:
        return _written(job, ()), None
    validation, config = job.splits.validation, job.config.quantize
    limit = min(config.gate_frames, frame_limit() or config.gate_frames)

    def delta1(runtime: Runtime) -> float:
        return evaluate(runtime_predictor(runtime), validation, limit=limit)["delta1"]

    before = delta1(job.network)
    gated = quantize_within(
        lambda exclude: _written(job, exclude), delta1, partial(sensitivity, job), before, config.max_drop
    )
    say(f"INT8: delta1 {gated.delta1:.3f} on {limit} validation frames, float {before:.3f}")
    if gated.excluded:
        say(f"left in float to hold quantize.max_drop={config.max_drop:g}: {', '.join(gated.excluded)}")
    return gated.network, gated


def sensitivity(job: Job) -> dict[str, float]:
    """Each layer's, on a few calibration images."""
    images = []
    for image in job.request.calibration[:: max(1, len(job.request.calibration) // 2)][:2]:
        planes = torch.from_numpy(image)[0].permute(2, 0, 1)
        images.append(normalise(resize_image(planes, job.request.size), job.model.mean, job.model.std))
    return layer_sensitivity(deployable(job.model), torch.stack(images))


def _written(job: Job, exclude: Sequence[str]) -> Runtime:
    """Writes and opens the file. Where TensorRT cannot run, ONNX Runtime opens the same graph."""
    request = replace(job.request, exclude=exclude)
    if job.target == "pytorch":
        return job.network
    write_target(job.target, request, job.file)
    if job.runs_here:
        return load_runtime(job.file, threads=job.config.threads)
    stand_in = typed_onnx(request)
    write_description(stand_in, request.describe("onnxruntime"))
    return load_runtime(stand_in, threads=job.config.threads)


def quality(job: Job, runtime: Runtime, record: dict[str, Any], evaluated: list[Frames]) -> None:
    """Evaluates the deployed file beside the float network and the ramp, and draws both."""
    limit = frame_limit()
    record["quality"], floats, ramp = {}, {}, {}
    for frames in evaluated:
        run = partial(evaluate, frames=frames, limit=limit)
        record["quality"][frames.name] = run(runtime_predictor(runtime), progress=f"evaluating on {frames.name}")
        floats[frames.name] = run(runtime_predictor(job.network), progress=f"in PyTorch: {frames.name}")
        ramp[frames.name] = run(ramp_predictor)
        sheet = picture_sheet([frames[i] for i in spread(len(frames), 6)], runtime_predictor(runtime), frames.cap)
        (job.run_dir / "pictures").mkdir(exist_ok=True)
        sheet.save(job.run_dir / "pictures" / f"{frames.name}.png")
    record["baselines"] = {"float_in_PyTorch": floats, "vertical_ramp": ramp}
    first = evaluated[0]
    shown = [first[index] for index in spread(len(first), 3)]
    save_predictions(shown, runtime_predictor(runtime), first.cap, job.run_dir / "predictions")


def deployment(job: Job, runtime: Runtime, parity: Parity, gated: Gated[Runtime] | None) -> dict[str, Any]:
    """What else the record says of the file."""
    entry: dict[str, Any] = {
        "target": job.target,
        "precision": job.request.precision,
        "file": job.file.name,
        "status": "measured" if job.runs_here else "built, not run",
        "parity": asdict(parity) | {"data": job.splits.name},
    }
    if job.target == "tensorrt":
        entry["library"] = library(job)
        if entry["library"].startswith("tensorrt_rtx"):
            entry["library"] += "; an RTX engine does not run on a Jetson, where the bundle builds its own"
    if job.request.scales:
        entry["trained_scales"] = len(job.request.scales)
    if gated is not None:
        entry["quantization"] = {
            "calibration_frames": len(job.request.calibration),
            "drop": gated.drop,
            "max_drop": job.config.quantize.max_drop,
            "float_layers": list(gated.excluded),
        }
    return entry


def latency(job: Job, runtime: Runtime) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of metrics.json for the file and for the published graph in the same engine, FP32."""
    common = {"threads": job.config.threads, "warmup": WARMUP}
    if not job.runs_here:
        entry = {"status": "built_not_run", "precision": job.request.precision} | common
        return {job.target: entry}, {}
    graph = published_graph(job.model.name, job.model.options, job.config.target.layout, job.config.target.dtype)
    reference = open_published(job.target, replace(job.request, graph=graph), job.config.threads)
    image = runtime.preprocess(camera_image())
    calls = {"reference": partial(reference, image), "model": partial(runtime.infer, image)}
    times = interleave(calls, WARMUP, rounds())
    common |= {"engine_version": library(job)}
    entry = latency_entry(times["model"], times["reference"]) | common | {"precision": job.request.precision}
    entry |= time_around(runtime)
    entry["peak_rss_mb"] = peak_memory(job.target, job.file, image, job.config.threads)
    return {job.target: entry}, {job.target: latency_entry(times["reference"], times["reference"]) | common}


def library(job: Job) -> str:
    """What runs the file, with its version."""
    if job.target != "tensorrt":
        return engine_version(job.target)
    built = json.loads(description_file(job.file).read_text())
    return f"{built['library']} {built['library_version']}"


def rounds() -> int:
    return min(ROUNDS, frame_limit() or ROUNDS)


def camera_image() -> np.ndarray:
    """What is timed does not depend on what is seen."""
    return np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), dtype=np.uint8)


def time_around(runtime: Runtime) -> dict[str, float]:
    """Median milliseconds of what comes before and after the engine, for an image of CAMERA's size."""
    rgb = camera_image()
    output = runtime.infer(runtime.preprocess(rgb))
    calls = {
        "preprocess_ms": partial(runtime.preprocess, rgb),
        "postprocess_ms": partial(runtime.postprocess, output, CAMERA),
    }
    return {name: float(np.median(values)) for name, values in interleave(calls, WARMUP, rounds()).items()}


def profile(job: Job, runtime: Runtime) -> None:
    """Writes layers.csv where the engine gives the times of its layers."""
    if job.runs_here and job.target in PROFILERS:
        image = runtime.preprocess(camera_image())
        write_layers(job.run_dir, layer_times(job.target, job.file, image, rounds(), job.config.threads))


def described(job: Job) -> dict[str, Any]:
    """The `model` entry of the record."""
    file = job.run_dir / "model.safetensors"
    return describe_model(job.model, job.request.size, file) | {"trained_on": read_metadata(file).get("trained_on")}


def provenance(checkpoint: str) -> dict[str, Any]:
    """What `checkpoint` says of its training, to be handed on."""
    if Path(checkpoint).suffix != ".safetensors":
        return {"trained_on": checkpoint}
    return {name: entry for name, entry in read_metadata(checkpoint).items() if name not in RESERVED}


def files_of(path: Path) -> list[Path]:
    """The file, and OpenVINO's weights beside it."""
    return [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]
