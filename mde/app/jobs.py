"""One job of a multirun: where it writes, when it is skipped, and how it fails without stopping the others."""

import hashlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from mde.errors import MdeError
from mde.names import plain
from mde.runs import claim, status

LONGEST_NAME = 100  # characters of a job's directory


def in_sweep() -> bool:
    """Whether this process runs a job of a multirun; then the sweep's end measures latency, not the job."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_name() -> str | None:
    """The sweep directory's name, which its runs share as their group in W&B; None in a single run."""
    return Path(HydraConfig.get().sweep.dir).name if in_sweep() else None


def job_name(overrides: Sequence[str]) -> str:
    """The directory of a job: a function of the set of its overrides, whatever its number in the sweep.

    Only characters that Hydra reads without quotes, so that `resume=<directory>` can be typed. Where the name had to
    be shortened or characters replaced, a hash of the overrides keeps it unique.
    """
    chosen = {item for item in overrides if not item.startswith(("sweep.", "sweep="))}
    own = sorted(
        chosen, key=lambda item: ("/" in item, "." in item.partition("=")[0], item)
    )  # details, shortened, last
    exact = [item.replace("=", "-", 1) for item in own]
    ends = [re.sub(r"(?<=[-,\[])[^,\]]*/(?=[^/,\]]+/[^/,\]]+)", "", item) for item in exact]  # of paths
    clean = [re.sub(r"[^\w.-]+", "_", item, flags=re.ASCII) for item in ends]
    name = "+".join(clean) or "defaults"
    if clean == exact and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256("\n".join(own).encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}_{digest}"


def run_job(task: Callable[[DictConfig], Any], config: DictConfig, describe: Callable[[Exception], str | None]) -> None:
    """Runs `task` in this job's directory unless a complete result is there; a checkpoint there is continued.

    describe  an error -> its one line, or None for one that nobody foresaw, whose traceback is printed

    An error ends in the record (status "failed", error: one line) and in nothing else: Hydra would stop the sweep.
    Where another process runs the same job, its record is left alone.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        lock = claim(run_dir, "hydra.sweep.dir")
    except MdeError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        return
    with lock:
        if status(run_dir) == "complete":
            print(f"{run_dir.name}: complete already, skipped")
            return
        try:
            task(config)
        except Exception as error:
            line = describe(error)
            if line is None:
                traceback.print_exc()
                line = f"{type(error).__name__}: {' '.join(str(error).split())}"
            print(f"error: {run_dir.name}: {plain(line)}", file=sys.stderr)
            record_failure(run_dir, line)


def objectives(cost: str) -> tuple[float, float] | None:
    """(delta1 of the first validation set, cost) of this job, what `sweep=optuna` optimises; None without a result.

    cost  macs: multiply-adds | latency_ms: median of the engine that is fastest on this network, measured here and now
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if status(run_dir) != "complete":
        return None
    from mde.records import read_record, without_estimates

    if cost == "latency_ms":
        from mde.app.sweep_latency import measure

        for problem in measure([run_dir]):
            print(problem, file=sys.stderr)
    record = read_record(run_dir)
    delta1 = next((entry["delta1"] for entry in record.get("validation", {}).values()), None)
    times = [entry["p50_ms"] for entry in without_estimates(record["latency"]).values() if "p50_ms" in entry]
    value = record["model"]["macs"] if cost == "macs" else min(times, default=None)
    return None if delta1 is None or value is None else (delta1, value)


def record_failure(run_dir: Path, line: str) -> None:
    """Marks the run's record as failed, beside whatever the run had written before, and renews its page; on a full disk
    neither, and the sweep goes on.
    """
    from mde.records import new_record, read_record, write_record
    from mde.report.dispensable import dispensable
    from mde.report.run_page import write_report

    try:
        record = read_record(run_dir)
    except MdeError:
        record = new_record("failed")
    with dispensable(f"{run_dir.name}: the record of its failure"):
        write_record(run_dir, record | {"status": "failed", "error": line})
        write_report(run_dir)
