"""`deploy.py`: from a checkpoint to a verified, measured file for one target."""

import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mde.data.sample import Frames
from mde.deploy.bundle import board_graph, check_device, write_bundle
from mde.deploy.job import PRECISIONS, Job, build, check_job, clear, described, prepare, recorded
from mde.deploy.latency import latency, profile
from mde.deploy.parity import Parity, check_parity, check_rounding, measure_parity
from mde.engines import ENGINES
from mde.engines.description import files_of, graph_hash
from mde.engines.request import Request
from mde.engines.runtime import Runtime, runtime_predictor
from mde.evaluation.quality import evaluate, evaluation_sets, health_on, ramp_predictor
from mde.models.health import lost_skips
from mde.quantization.gate import Gated
from mde.records import new_record
from mde.report.dispensable import dispensable
from mde.report.pictures import save_sheets
from mde.report.terminal import say, show_cost, show_quality
from mde.runs import save_options
from mde.speed.boards import estimated, measured, read_profile
from mde.speed.published import published_graph


def deploy(config: DictConfig) -> Path:
    """Writes the file, proves that it computes the same, evaluates and measures it; returns the run directory.

    MdeError when the target lacks the precision or a library, when parity or the gate on accuracy fails.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    torch.manual_seed(config.seed)
    check_job(config)
    if config.bundle or config.device.profile or config.device.jetpack:
        check_device(config.device, PRECISIONS[config.quantize.kind])
    if config.device.profile:
        read_profile(config.device, PRECISIONS[config.quantize.kind])  # refused at once
    with tempfile.TemporaryDirectory() as temporary:
        job = prepare(config, run_dir, Path(temporary))
        notes = [job.splits.note] if job.splits.note else []
        record = new_record("running", parent=config.checkpoint, model=described(job), notes=notes)
        save_options(run_dir, config)
        clear(run_dir)
        with recorded(run_dir, record):
            try:
                carry_out(job, record)
            except BaseException:
                clear(run_dir)
                raise
            show_quality(record)
            show_cost(record)
            parity = record["deployment"]["parity"]
            say(
                f"parity with PyTorch: {parity['largest']:.2g} of the output's range at most, {parity['frames']} frames"
            )
    return run_dir


def carry_out(job: Job, record: dict[str, Any]) -> None:
    """Builds, proves, evaluates and measures, and puts what it finds into the record."""
    config, run_dir = job.config, job.run_dir
    evaluated = evaluation_sets(job.splits, config.evaluate, config.evaluation.frames)
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
    record["health"] = health_on(job.model, evaluated[0], job.request.size)
    record["notes"] += lost_skips(record["health"]["skip_share"])
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
    elif request.precision in device.peak:  # a board of the user's own may have no figures
        record["latency"][device.name] = estimated(device, request.graph.network, request.size, request.precision)
        published = published_graph(job.model.name, job.model.options).network
        record["reference_latency"][device.name] = estimated(device, published, request.size, "fp32")
    if config.bundle:
        folder = job.run_dir / "bundle"
        write_bundle(request, source, device, frames, config.parity_frames, folder, record["model"])
        say(f"for {device.name}, JetPack {device.jetpack}: {folder}, see README.md there")


def quality(job: Job, runtime: Runtime, record: dict[str, Any], evaluated: list[Frames]) -> None:
    """Evaluates the deployed file beside the float network and the ramp, and draws both."""
    record["quality"], floats, ramp = {}, {}, {}
    for frames in evaluated:
        run = partial(evaluate, frames=frames, limit=job.config.evaluation.frames)
        record["quality"][frames.name] = run(runtime_predictor(runtime), progress=f"evaluating on {frames.name}")
        floats[frames.name] = run(runtime_predictor(job.network), progress=f"in PyTorch: {frames.name}")
        ramp[frames.name] = run(ramp_predictor)
    record["baselines"] = {"float_in_PyTorch": floats, "vertical_ramp": ramp}
    with dispensable("pictures", record["notes"]):
        save_sheets(evaluated, runtime_predictor(runtime), job.run_dir)


def deployment(job: Job, runtime: Runtime, parity: Parity, gated: Gated[Runtime] | None) -> dict[str, Any]:
    """What else the record says of the file."""
    entry: dict[str, Any] = {
        "target": job.target,
        "precision": job.request.precision,
        "file": job.file.name,
        "status": "measured" if job.runs_here else "built, not run",
        "parity": asdict(parity) | {"data": job.splits.name},
    }
    engine = ENGINES[job.target]
    if engine.library:
        name, version = engine.library(job.file)
        entry["library"] = "; ".join(filter(None, [f"{name} {version}", engine.library_note(name)]))
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
