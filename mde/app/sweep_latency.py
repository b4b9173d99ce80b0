"""The latency of a sweep's networks: measured one after the other when no job runs any more."""

import contextlib
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from mde.config import PruneRunConfig
from mde.errors import MdeError
from mde.export.rewrites import deployable
from mde.models import build_model, load_model, read_metadata
from mde.models.registry import as_published
from mde.pruning.pruner import DENSE
from mde.records import read_record, write_record
from mde.report.run_page import write_report
from mde.report.wandb_results import log_latency
from mde.report.wandb_run import WandbRun, end_wandb, wandb_logger
from mde.runs import load_options
from mde.speed.interleaved import REFERENCE, measure_latency
from mde.training.quantization_aware import FLOAT

TOGETHER = 8  # jobs whose networks are held in memory at once


def measure(run_dirs: list[Path]) -> list[str]:
    """Measures the finished networks of `run_dirs`, interleaved with the reference graph of their own network and size.

    Writes the `latency` entries into each metrics.json and renews each page; a group of which every network has its
    entries is left as it is. Returns a line for each network that could not be measured.
    """
    groups: dict[tuple[Any, ...], list[Path]] = defaultdict(list)
    problems = []
    for run_dir in run_dirs:
        model = read_record(run_dir)["model"]
        try:
            options = as_published(read_metadata(run_dir / "model.safetensors")["options"])
        except MdeError as error:
            problems.append(f"{run_dir.name}: latency not measured: {error}")
            continue
        groups[model["name"], tuple(sorted(options.items())), tuple(model["input"])].append(run_dir)
    for (name, options, size), members in groups.items():
        for start in range(0, len(members), TOGETHER):
            chunk = members[start : start + TOGETHER]
            if not all(read_record(run_dir)["latency"] for run_dir in chunk):
                problems += _measure_group(name, dict(options), size, chunk)
    return problems


def _measure_group(name: str, network: dict[str, Any], size: tuple[int, int], run_dirs: list[Path]) -> list[str]:
    graphs: dict[str, nn.Module] = {REFERENCE: build_model(name, **network)}
    first: dict[str, str] = {}  # jobs that prune one network keep a copy of it each: it is measured once
    same = {file: first.setdefault(_digest(file), str(file)) for run_dir in run_dirs for file in networks(run_dir)}
    try:
        options = max((load_options(run_dir, PruneRunConfig).measure for run_dir in run_dirs), key=lambda o: o.rounds)
        if not options.rounds:
            return []
        graphs |= {file: deployable(load_model(file)) for file in first.values()}
        entries = measure_latency(graphs, size, **options)
    except MdeError as error:
        if len(run_dirs) == 1:
            return [f"{run_dirs[0].name}: latency not measured: {error}"]
        # One bad network must not cost the others their figures.
        return [line for run_dir in run_dirs for line in _measure_group(name, network, size, [run_dir])]
    for run_dir in run_dirs:
        own, *before = (entries[same[file]] for file in networks(run_dir))
        record = read_record(run_dir) | {"latency": own, "reference_latency": entries[REFERENCE]}
        if before:
            record["before"]["latency"] = before[0]
        write_record(run_dir, record)
        write_report(run_dir)
        with wandb_run(run_dir) as logger:
            if logger is not None:
                log_latency(logger, record)
    return []


@contextlib.contextmanager
def wandb_run(run_dir: Path) -> Iterator[WandbRun | None]:
    """The W&B run that ended with the job, opened again; None where there is none."""
    if not any(run_dir.glob("wandb/*run-*-*")):
        yield None
        return
    try:
        yield wandb_logger(load_options(run_dir, PruneRunConfig), run_dir)
    finally:
        end_wandb()


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def networks(run_dir: Path) -> list[Path]:
    """The run's network, and what it was before pruning or quantization where the record speaks of that."""
    before = [run_dir / name for name in (DENSE, FLOAT)] if "before" in read_record(run_dir) else []
    return [run_dir / "model.safetensors", *(path for path in before if path.exists())]
