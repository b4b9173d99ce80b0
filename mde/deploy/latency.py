"""How long a deployed file takes, beside the published graph in the same engine, and where."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mde.deploy.job import Job
from mde.engines import ENGINES, layer_times
from mde.engines.runtime import Runtime
from mde.report.layer_table import write_layers
from mde.speed.interleaved import interleave, latency_entry
from mde.speed.memory import peak_memory
from mde.speed.published import open_published, published_graph

WARMUP = 5
CAMERA = (480, 640)  # height, width of the image in whose time pre- and post-processing are measured


def latency(job: Job, runtime: Runtime) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries of metrics.json for the file and for the published graph in the same engine, FP32."""
    common = {"threads": job.config.threads, "warmup": WARMUP}
    if not job.runs_here:
        entry = {"status": "built_not_run", "precision": job.request.precision} | common
        return {job.target: entry}, {}
    about = runtime.description  # PyTorch takes its own layout, whatever the target's
    graph = published_graph(job.model.name, job.model.options, about.layout, about.dtype)
    reference = open_published(job.target, replace(job.request, graph=graph), job.config.threads)
    image = runtime.preprocess(camera_image())
    calls = {"reference": partial(reference, image), "model": partial(runtime.infer, image)}
    times = interleave(calls, WARMUP, job.config.measure.rounds)
    common |= {"engine_version": library(job.target, job.file)}
    entry = latency_entry(times["model"], times["reference"]) | common | {"precision": job.request.precision}
    entry |= time_around(runtime, job.config.measure.rounds)
    if job.config.measure.memory:
        entry["peak_rss_mb"] = peak_memory(job.target, job.file, image, job.config.threads)
    return {job.target: entry}, {job.target: latency_entry(times["reference"], times["reference"]) | common}


def time_around(runtime: Runtime, rounds: int) -> dict[str, float]:
    """Median milliseconds of what comes before and after the engine, for an image of CAMERA's size."""
    rgb = camera_image()
    output = runtime.infer(runtime.preprocess(rgb))
    calls = {
        "preprocess_ms": partial(runtime.preprocess, rgb),
        "postprocess_ms": partial(runtime.postprocess, output, CAMERA),
    }
    return {name: float(np.median(values)) for name, values in interleave(calls, WARMUP, rounds).items()}


def profile(job: Job, runtime: Runtime) -> None:
    """Writes layers.csv where the engine gives the times of its layers."""
    if job.runs_here and ENGINES[job.target].profiler:
        image = runtime.preprocess(camera_image())
        write_layers(
            job.run_dir, layer_times(job.target, job.file, image, job.config.measure.rounds, job.config.threads)
        )


def library(engine: str, path: Path) -> str:
    """The version of what runs the file, after the library's name where there are several."""
    of_file = ENGINES[engine].library
    return " ".join(of_file(path)) if of_file else ENGINES[engine].version


def camera_image() -> np.ndarray:
    """What is timed does not depend on what is seen."""
    return np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), dtype=np.uint8)
