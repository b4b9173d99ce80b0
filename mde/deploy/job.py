"""What one deployment works with: network, frames, and the file that is made of them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from mde.builders import built
from mde.data.datamodule import parts_of
from mde.data.sample import Splits
from mde.data.transforms import normalise, resize_image
from mde.engines import ENGINES, check_target, write_target
from mde.engines.pytorch import graph_engine
from mde.engines.request import Request, typed_onnx
from mde.engines.runtime import Runtime, load_runtime, runtime_predictor
from mde.errors import MdeError
from mde.evaluation.quality import evaluate, spread
from mde.export import ImageGraph, deployable
from mde.models import build_model, load_model, read_metadata, save_model, trained_size
from mde.models.checkpoints import provenance
from mde.models.network import DepthNetwork, check_size
from mde.models.shipped import located
from mde.quantization.fake import fake_quantize, read_scales
from mde.quantization.gate import Gated, quantize_within
from mde.quantization.layer_sensitivity import layer_sensitivity
from mde.records import describe_model, write_record
from mde.report.dispensable import dispensable
from mde.report.run_page import write_report
from mde.report.terminal import say

# Of each quantize.kind.
PRECISIONS = {"none": "fp32", "float16": "fp16", "int8": "int8", "dynamic": "dynamic", "qat": "int8"}


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
        return self.run_dir / f"model{ENGINES[self.target].suffix}"

    @property
    def runs_here(self) -> bool:
        """Not where the target only builds: TensorRT without a GPU."""
        return ENGINES[self.target].runs_here()


@contextmanager
def recorded(
    run_dir: Path, record: dict[str, Any], write_page: Callable[[Path], Path] = write_report
) -> Iterator[None]:
    """Keeps `record` as the run's, with how the block ended, and makes its page."""
    write_record(run_dir, record)
    try:
        yield
        record["status"] = "complete"
    except BaseException as error:  # Ctrl-C too: no record may go on saying "running"
        reason = str(error) if isinstance(error, MdeError) else f"{type(error).__name__}: {error}".rstrip(": ")
        record |= {"status": "failed", "error": reason}
        raise
    finally:
        with dispensable("the record's last state") if record["status"] == "failed" else nullcontext():
            write_record(run_dir, record)
        with dispensable("report.html"):
            say(f"report: {write_page(run_dir)}")


def check_job(config: DictConfig) -> None:
    """MdeError for a target or a precision that there is not, a number out of range, or nothing to deploy."""
    target, kind = config.target, config.quantize.kind
    if config.checkpoint is None:
        raise MdeError("nothing to deploy: give checkpoint=PATH, or compare=[FILE,FILE,...] for files that exist")
    if kind not in PRECISIONS:
        raise MdeError(f"quantize.kind={kind}: unknown; choose from {', '.join(PRECISIONS)}")
    check_target(target.name, PRECISIONS[kind])
    if kind == "qat" and not ENGINES[target.name].takes_trained_scales:
        others = [n for n, engine in ENGINES.items() if "int8" in engine.writers and engine.takes_trained_scales]
        raise MdeError(f"target={target.name}: not with quantize=qat; choose one of {', '.join(others)}")
    if PRECISIONS[kind] == "int8" and target.opset < 13:
        raise MdeError(f"target.opset={target.opset}: has no scale per channel, which int8 needs; choose 13 or more")
    for option in ("threads", "parity_frames", "quantize.frames", "quantize.gate_frames", "measure.rounds"):
        if OmegaConf.select(config, option) < 1:
            raise MdeError(f"{option}={OmegaConf.select(config, option)}: must be at least 1")


def prepare(config: DictConfig, run_dir: Path, folder: Path) -> Job:
    """Opens checkpoint and data, and leaves the network as model.safetensors in the run directory."""
    size = check_size(config.size or trained_size(config.checkpoint, config.model.name))
    config.size = list(size)  # synthetic frames are rendered at it
    model = build_model(**config.model, weights=config.checkpoint)
    splits: Splits = built("data", config.data)
    file, about = run_dir / "model.safetensors", provenance(config.checkpoint)
    if config.quantize.kind == "qat":
        read_scales(Path(located(config.checkpoint)))  # an error that names the file that was given
    save_model(model, file, **about | {"parent": config.checkpoint, "input": list(size)})
    model = load_model(file)
    scales = read_scales(file) if config.quantize.kind == "qat" else None
    network = expected = load_runtime(file, threads=config.threads)
    if scales:
        rounded = deployable(model, same_kernels=True)
        fake_quantize(rounded, scales)
        graph = ImageGraph(rounded, model.mean, model.std)
        expected = Runtime(file, network.description, graph_engine(graph, config.threads))
    target = config.target
    request = Request(
        model.name,
        ImageGraph(
            deployable(model, same_kernels=bool(scales)), model.mean, model.std, target.layout, target.dtype
        ).eval(),
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
    images = []
    for part in parts_of(splits.train):
        share = -(-count // len(parts_of(splits.train)))
        for index in spread(len(part), share):
            images.append(network.preprocess(part[index].image.permute(1, 2, 0).numpy()))
    return images


def build(job: Job) -> tuple[Runtime, Gated[Runtime] | None]:
    """The target's file, described, and opened; INT8 that was not trained with as many layers as accuracy allows."""
    precision = job.request.precision
    if precision not in ("int8", "dynamic") or job.request.scales:
        return written(job, ()), None
    parts, config = parts_of(job.splits.validation), job.config.quantize
    limit = config.gate_frames

    def delta1(runtime: Runtime) -> np.ndarray:
        predict = runtime_predictor(runtime)
        return np.array([evaluate(predict, part, limit=-(-limit // len(parts)))["delta1"] for part in parts])

    def change(runtime: Runtime) -> float:
        """Of the part that suffers most: a dataset must not hide behind another one."""
        return float((delta1(runtime) - before).min())

    before = delta1(job.network)
    layers = partial(sensitivity, job) if precision == "int8" else dict  # dynamic: all or nothing
    gated = quantize_within(lambda exclude: written(job, exclude), change, layers, 0.0, config.max_drop)
    say(f"{precision}: delta1 {before.mean():.3f} in float falls by {gated.drop:.4f}, about {limit} validation frames")
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


def written(job: Job, exclude: Sequence[str]) -> Runtime:
    """Writes and opens the file; where it does not run, what stands in for it."""
    request, engine = replace(job.request, exclude=exclude), ENGINES[job.target]
    if engine.run_graph:  # PyTorch runs the network's own file, which is open already
        return job.network
    write_target(job.target, request, job.file)
    if job.runs_here:
        return load_runtime(job.file, threads=job.config.threads)
    if engine.stand_in is None:
        raise MdeError(f"target={job.target}: {job.file.name} is written, but does not run on this machine")
    opened = engine.stand_in(typed_onnx(request), job.config.threads)
    return Runtime(opened.path, request.describe(opened.name), opened)


def described(job: Job) -> dict[str, Any]:
    """The `model` entry of the record."""
    file = job.run_dir / "model.safetensors"
    return describe_model(job.model, job.request.size, file) | {"trained_on": read_metadata(file).get("trained_on")}


def clear(run_dir: Path) -> None:
    """Removes what a deployment left that failed, or was killed in a sweep: a file there is a valid one. The
    network itself, model.safetensors, stays: it may be the checkpoint.
    """
    for path in [*run_dir.glob("model.*"), run_dir / "layers.csv"]:
        if path.suffix != ".safetensors":
            path.unlink(missing_ok=True)
    shutil.rmtree(run_dir / "bundle", ignore_errors=True)
