"""What a sweep found: its jobs side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mde.errors import MdeError
from mde.records import read_record, without_estimates
from mde.report.cost_table import milliseconds
from mde.report.terminal import print_table, say

OWN = "own"
OVERRIDES = ".hydra/overrides.yaml"  # in a job's directory, written by Hydra before the job begins


@dataclass(frozen=True)
class SweepJob:
    """One job: its directory, the options it was started with, and its record ({} where it left none)."""

    directory: Path
    overrides: dict[str, str]
    record: dict[str, Any]

    @property
    def name(self) -> str:
        return self.directory.name

    def label(self, options: list[str]) -> str:
        """The job among the others of its sweep: its values of the `options` in which they differ."""
        return " ".join(f"{key}={self.overrides[key]}" for key in options if key in self.overrides) or self.name

    @property
    def complete(self) -> bool:
        return self.record.get("status") == "complete"

    @property
    def judged(self) -> dict[str, dict[str, Any]]:
        """The quality entries by which jobs are told apart: in a search those of validation frames."""
        return self.record.get("validation") or self.record.get("quality", {})

    @property
    def problem(self) -> str:
        """Why there is no complete result, in one line."""
        status = self.record.get("status", "no result")
        return self.record.get("error") or {
            "no result": "left no record: its process died before it began",
            "running": "its process died while it ran",
            "incomplete": "stopped before its last step",
        }.get(status, status)


@dataclass(frozen=True)
class Cost:
    """What accuracy is weighed against, for the whole sweep."""

    label: str
    engine: str | None  # of metrics.json's latency; None: multiply-adds; OWN: the one that each job deployed to

    def of(self, job: SweepJob) -> float | None:
        """Milliseconds, or multiply-adds in 10^9; None where the job does not say."""
        if not job.complete:
            return None
        if self.engine is None:
            return job.record["model"]["macs"] / 1e9
        engine = job.record["deployment"]["target"] if self.engine == OWN else self.engine
        return job.record["latency"].get(engine, {}).get("p50_ms")


def read_jobs(sweep_dir: Path) -> list[SweepJob]:
    """Every job that was begun in `sweep_dir`, in the order of its options, numbers by their value."""
    jobs = []
    for path in sweep_dir.glob(f"*/{OVERRIDES}"):
        directory = path.parent.parent
        try:
            record = read_record(directory)
        except MdeError:
            record = {}
        items = [str(item).partition("=") for item in OmegaConf.load(path)]
        overrides = {key: value for key, _, value in items if key.partition(".")[0] != "sweep"}
        jobs.append(SweepJob(directory, overrides, record))
    keys = sorted({key for job in jobs for key in job.overrides})
    return sorted(jobs, key=lambda job: [_natural(job.overrides.get(key, "")) for key in keys])


def varying(jobs: list[SweepJob]) -> list[str]:
    """The options in which the jobs differ."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def dataset_of(jobs: list[SweepJob]) -> str:
    """The set whose figures stand in the table: the first that the first complete job evaluated; "" without one."""
    return next((name for job in jobs if job.complete for name in job.judged), "")


def searched(jobs: list[SweepJob]) -> bool:
    """Whether the jobs are those of a search, of which only the chosen ones are tested."""
    return any("validation" in job.record for job in jobs)


def tested(job: SweepJob) -> float | None:
    """delta1 of the first set that a job of a search was tested on; None where it was not chosen."""
    return next((entry["delta1"] for entry in job.record["quality"].values()), None)


def on_other_frames(jobs: list[SweepJob]) -> list[int]:
    """The numbers of the complete jobs that evaluated other frames than the first, under the same name."""
    dataset = dataset_of(jobs)
    numbered = ((number, job) for number, job in enumerate(jobs, start=1) if job.complete and dataset in job.judged)
    content = {number: job.judged[dataset].get("content") for number, job in numbered}
    first = next(iter(content.values()), None)
    return [number for number, found in content.items() if found != first]


def cost_of(jobs: list[SweepJob]) -> Cost:
    """Latency in the engine that is fastest on any job, once every complete job was measured; else multiply-adds."""
    complete = [job for job in jobs if job.complete]
    if deployed(jobs):
        return Cost("median latency (ms, each in its own engine)", OWN)
    fastest = {}
    for engine in engines_of(complete):
        times = [job.record["latency"].get(engine, {}).get("p50_ms") for job in complete]
        if None not in times:
            fastest[min(times)] = engine
    if not fastest:
        return Cost("multiply-adds (10\u2079)", None)
    engine = fastest[min(fastest)]
    return Cost(f"median latency (ms, {engine})", engine)


def engines_of(jobs: list[SweepJob]) -> list[str]:
    """Where any job was measured, or built."""
    return list(dict.fromkeys(engine for job in jobs for engine in without_estimates(job.record.get("latency", {}))))


def boards_of(jobs: list[SweepJob]) -> list[str]:
    """The devices that deployments were for, beside the engine that each was measured in here."""
    names = (set(job.record["latency"]) - {job.record["deployment"]["target"]} for job in jobs if job.complete)
    return sorted(set().union(*names))


def deployed(jobs: list[SweepJob]) -> bool:
    """Whether the sweep's jobs are deployments, each to an engine of its own."""
    return all("deployment" in job.record for job in jobs if job.complete) and any(job.complete for job in jobs)


def pareto_front(points: list[tuple[float, float] | None]) -> list[bool]:
    """Of points (cost, quality), whether no other is as good in both and better in one. None is never on the front."""
    known = [point for point in points if point is not None]
    return [
        point is not None
        and not any(cost <= point[0] and quality >= point[1] and (cost, quality) != point for cost, quality in known)
        for point in points
    ]


def trade(jobs: list[SweepJob]) -> list[tuple[float, float] | None]:
    """(cost, delta1) of each job, None where either is unknown."""
    dataset, cost = dataset_of(jobs), cost_of(jobs)
    points: list[tuple[float, float] | None] = []
    for job in jobs:
        x, y = cost.of(job), job.judged.get(dataset, {}).get("delta1")
        points.append(None if x is None or y is None or not job.complete else (x, y))
    return points


def table(jobs: list[SweepJob]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of texts for each complete job in the order of `jobs`; * marks the Pareto front."""
    options, dataset, engines = varying(jobs), dataset_of(jobs), [] if deployed(jobs) else engines_of(jobs)
    headings = ["#", *options, "sparsity, reached", "params, M", "MACs, G", "file, MB", "delta1", "RMSE", "AbsRel"]
    headings += ["delta1, test"] if searched(jobs) else []
    for engine in engines:
        headings += [f"{engine}, ms", "speed-up"]
    if deployed(jobs):
        headings += ["precision", "parity", "status", "latency, ms", "speed-up"]
        headings += [f"{board}, ms" for board in boards_of(jobs)]
    headings.append("Pareto")
    rows = []
    for number, (job, on_front) in enumerate(zip(jobs, pareto_front(trade(jobs)), strict=True), start=1):
        if not job.complete:
            continue
        model, quality = job.record["model"], job.judged.get(dataset, {})
        row = [str(number), *(job.overrides.get(key, "-") for key in options)]
        row += [f"{model['sparsity']:.1%}", f"{model['nonzero_parameters'] / 1e6:.2f}", f"{model['macs'] / 1e9:.3f}"]
        row += [
            f"{model['file_bytes'] / 1e6:.1f}",
            *(digits(quality.get(key)) for key in ("delta1", "rmse", "abs_rel")),
            *([digits(tested(job))] if searched(jobs) else []),
        ]
        for engine in engines:
            entry = job.record["latency"].get(engine, {})
            speedup = entry.get("speedup_vs_reference")
            row += [digits(entry.get("p50_ms"), 2), "-" if speedup is None else f"{speedup:.2f}x"]
        if deployed(jobs):
            row += _deployment(job.record)
            row += [milliseconds(job.record["latency"].get(board)) or "-" for board in boards_of(jobs)]
        rows.append([*row, "*" if on_front else ""])
    return headings, rows


def _deployment(record: dict[str, Any]) -> list[str]:
    """Precision, parity and where it was measured, status, latency and speed-up of a deployed network."""
    entry = record["deployment"]
    parity, times = entry["parity"], record["latency"][entry["target"]]
    where = "" if parity["engine"] == entry["target"] else f" ({parity['engine']})"
    speedup = times.get("speedup_vs_reference")
    cells = [entry["precision"], f"{parity['largest']:.1e}{where}", entry["status"]]
    return [*cells, digits(times.get("p50_ms"), 2), "-" if speedup is None else f"{speedup:.2f}x"]


def show_merged(jobs: list[SweepJob], notes: list[str]) -> None:
    """The table, and a line for each failure, in the terminal."""
    headings, rows = table(jobs)
    if rows:
        print_table(headings, rows, caption(jobs))
    options = varying(jobs)
    for line in [*notes, *(f"failed: {job.label(options)}: {job.problem}" for job in jobs if not job.complete)]:
        say(line)


def caption(jobs: list[SweepJob]) -> str:
    frames = f"the validation frames of {dataset_of(jobs)}" if searched(jobs) else dataset_of(jobs)
    line = (
        f"Accuracy on {frames}. * marks the Pareto front: no other job has both a higher delta1 and a lower "
        f"{cost_of(jobs).label}."
    )
    if searched(jobs):
        line += " Only its jobs were tested, on frames that chose nothing."
    if others := on_other_frames(jobs):
        numbers = ", ".join(map(str, others))
        line += f" Not all on the same frames: # {numbers} had others of that name, whose figures do not compare."
    return line


def digits(value: float | None, places: int = 3) -> str:
    """A cell; what is not known is a dash."""
    return "-" if value is None else f"{value:.{places}f}"


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text
