"""What a sweep found: its jobs side by side, as a table, two plots, one page, and files for other programs."""

import base64
import csv
import html
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.report.page import STYLE
from mde.report.record import read_record

OVERRIDES = ".hydra/overrides.yaml"  # in a job's directory, written by Hydra before the job begins
WIDE = ".wide{overflow-x:auto;font-size:13px}.wide td,.wide th{padding:.25rem .5rem}"


@dataclass(frozen=True)
class Job:
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
    engine: str | None  # of metrics.json's latency; None: multiply-adds

    def of(self, job: Job) -> float | None:
        """Milliseconds, or multiply-adds in 10^9; None where the job does not say."""
        if not job.complete:
            return None
        if self.engine is None:
            return job.record["model"]["macs"] / 1e9
        return job.record["latency"].get(self.engine, {}).get("p50_ms")


def read_jobs(sweep_dir: Path) -> list[Job]:
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
        jobs.append(Job(directory, overrides, record))
    keys = sorted({key for job in jobs for key in job.overrides})
    return sorted(jobs, key=lambda job: [_natural(job.overrides.get(key, "")) for key in keys])


def varying(jobs: list[Job]) -> list[str]:
    """The options in which the jobs differ."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def dataset_of(jobs: list[Job]) -> str | None:
    """The set whose figures stand in the table: the first that the first complete job evaluated."""
    return next((name for job in jobs if job.complete for name in job.record["quality"]), None)


def cost_of(jobs: list[Job]) -> Cost:
    """Latency in the engine that is fastest on any job, once every complete job was measured; else multiply-adds."""
    complete = [job for job in jobs if job.complete]
    fastest = {}
    for engine in engines_of(complete):
        times = [job.record["latency"].get(engine, {}).get("p50_ms") for job in complete]
        if None not in times:
            fastest[min(times)] = engine
    if not fastest:
        return Cost("multiply-adds (10\u2079)", None)
    engine = fastest[min(fastest)]
    return Cost(f"median latency (ms, {engine})", engine)


def engines_of(jobs: list[Job]) -> list[str]:
    return list(dict.fromkeys(engine for job in jobs for engine in job.record.get("latency", {})))


def pareto_front(points: list[tuple[float, float] | None]) -> list[bool]:
    """Of points (cost, quality), whether no other is as good in both and better in one. None is never on the front."""
    known = [point for point in points if point is not None]
    return [
        point is not None
        and not any(cost <= point[0] and quality >= point[1] and (cost, quality) != point for cost, quality in known)
        for point in points
    ]


def trade(jobs: list[Job]) -> list[tuple[float, float] | None]:
    """(cost, delta1) of each job, None where either is unknown."""
    dataset, cost = dataset_of(jobs), cost_of(jobs)
    points: list[tuple[float, float] | None] = []
    for job in jobs:
        x, y = cost.of(job), job.record.get("quality", {}).get(dataset, {}).get("delta1")
        points.append(None if x is None or y is None or not job.complete else (x, y))
    return points


def table(jobs: list[Job]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of texts for each complete job in the order of `jobs`; * marks the Pareto front."""
    options, dataset, engines = varying(jobs), dataset_of(jobs), engines_of(jobs)
    headings = ["#", *options, "sparsity, reached", "params, M", "MACs, G", "file, MB", "delta1", "RMSE", "AbsRel"]
    for engine in engines:
        headings += [f"{engine}, ms", "speed-up"]
    headings.append("Pareto")
    rows = []
    for number, (job, on_front) in enumerate(zip(jobs, pareto_front(trade(jobs)), strict=True), start=1):
        if not job.complete:
            continue
        model, quality = job.record["model"], job.record["quality"].get(dataset, {})
        row = [str(number), *(job.overrides.get(key, "-") for key in options)]
        row += [f"{model['sparsity']:.1%}", f"{model['nonzero_parameters'] / 1e6:.2f}", f"{model['macs'] / 1e9:.3f}"]
        row += [
            f"{model['file_bytes'] / 1e6:.1f}",
            *(_digits(quality.get(key)) for key in ("delta1", "rmse", "abs_rel")),
        ]
        for engine in engines:
            entry = job.record["latency"].get(engine, {})
            speedup = entry.get("speedup_vs_reference")
            row += [_digits(entry.get("p50_ms"), 2), "-" if speedup is None else f"{speedup:.2f}x"]
        rows.append([*row, "*" if on_front else ""])
    return headings, rows


def plot(jobs: list[Job]) -> bytes:
    """PNG: accuracy against cost with the Pareto front, and accuracy against sparsity; numbers are the table's."""
    points, cost = trade(jobs), cost_of(jobs)
    front = sorted(point for point, on in zip(points, pareto_front(points), strict=True) if on and point)
    figure = Figure(figsize=(10.5, 4.2), layout="constrained", dpi=100)
    left, right = figure.subplots(1, 2, sharey=True)
    left.plot(*zip(*front, strict=True), color="0.6", linewidth=1.2, zorder=1, label="Pareto front")
    names = [" ".join(job.overrides.get(key, "-") for key in varying(jobs) if key != "sparsity") for job in jobs]
    series = list(dict.fromkeys(names))
    for number, (job, name, point) in enumerate(zip(jobs, names, points, strict=True), start=1):
        if point is None:
            continue
        color = f"C{series.index(name) % 10}"
        label = name if name and names.index(name) == number - 1 and len(series) <= 10 else None
        for axis, x in ((left, point[0]), (right, job.record["model"]["sparsity"])):
            axis.scatter(x, point[1], color=color, s=36, zorder=2, label=label)
            axis.annotate(str(number), (x, point[1]), textcoords="offset points", xytext=(5, 5), fontsize=8)
    left.scatter(*zip(*front, strict=True), s=110, facecolors="none", edgecolors="0.3", zorder=3)
    left.set_xlabel(cost.label)
    right.set_xlabel("sparsity reached")
    left.set_ylabel(f"delta1 ({dataset_of(jobs)})")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def write_merged(sweep_dir: Path, jobs: list[Job], notes: list[str]) -> Path:
    """Writes report.html, summary.json and summary.csv of the sweep and returns the page's path."""
    rows = _summary(jobs)
    content = json.dumps({"schema": 1, "sweep": sweep_dir.name, "notes": notes, "jobs": rows}, indent=1)
    flat = [{key: value for key, value in row.items() if key != "overrides"} | row["overrides"] for row in rows]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(dict.fromkeys(key for row in flat for key in row)))
    writer.writeheader()
    writer.writerows(flat)
    for name, text in (
        ("summary.json", content),
        ("summary.csv", lines.getvalue()),
        ("report.html", _page(sweep_dir, jobs, notes)),
    ):
        with atomic_file(sweep_dir / name) as file:
            file.write(text.encode())
    return sweep_dir / "report.html"


def show_merged(jobs: list[Job], notes: list[str]) -> None:
    """The table, and a line for each failure, in the terminal."""
    headings, rows = table(jobs)
    shown = Table(title=_caption(jobs), box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for heading in headings:
        shown.add_column(heading.replace(", ", "\n"), justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(cell) for cell in row))
    console = Console()
    # A log file counts as 80 columns, in which nothing could be read: rather let a narrow terminal wrap.
    console.width = max(console.width, console.measure(shown, options=console.options.update(max_width=1000)).maximum)
    if rows:
        console.print(shown)
    options = varying(jobs)
    for line in [*notes, *(f"failed: {job.label(options)}: {job.problem}" for job in jobs if not job.complete)]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _caption(jobs: list[Job]) -> str:
    return (
        f"Accuracy on {dataset_of(jobs)}. * marks the Pareto front: no other job has both a higher delta1 and a lower "
        f"{cost_of(jobs).label}."
    )


def _summary(jobs: list[Job]) -> list[dict[str, Any]]:
    rows = []
    for job, on_front in zip(jobs, pareto_front(trade(jobs)), strict=True):
        row: dict[str, Any] = {"job": job.name, "status": job.record.get("status", "no result"), "pareto": on_front}
        row |= {"error": "" if job.complete else job.problem, "overrides": job.overrides}
        if job.complete:
            model = job.record["model"]
            counted = ("sparsity", "parameters", "nonzero_parameters", "macs", "file_bytes")
            row |= {f"model/{key}": model[key] for key in counted}
            for dataset, entry in job.record["quality"].items():
                row |= {f"{dataset}/{key}": entry.get(key) for key in ("delta1", "rmse", "mae", "abs_rel")}
            for engine, entry in job.record["latency"].items():
                row |= {f"{engine}/{key}": entry.get(key) for key in ("p50_ms", "speedup_vs_reference")}
        rows.append(row)
    return rows


def _page(sweep_dir: Path, jobs: list[Job], notes: list[str]) -> str:
    headings, rows = table(jobs)
    failed = [job for job in jobs if not job.complete]
    common = {key: value for key, value in jobs[0].overrides.items() if key not in varying(jobs)}
    body = f"<h1>Sweep {_text(sweep_dir.name)}</h1>"
    body += f"<p class='{'bad' if failed else 'note'}'>{len(rows)} of {len(jobs)} jobs complete.</p>"
    if common:
        shared = " ".join(f"{key}={value}" for key, value in common.items())
        body += f"<p class='note'>Common to all: <code>{_text(shared)}</code></p>"
    if rows:
        head = "".join(f"<th>{_text(heading)}</th>" for heading in headings)
        body += f"<h2>Results</h2><div class='wide'><table><tr>{head}</tr>"
        for number, *cells in rows:
            body += f"<tr><td>{_link(jobs[int(number) - 1], number)}</td>"
            body += "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"
        body += (
            f"</table></div><p class='note'>{_text(_caption(jobs))} Numbers lead to the jobs' own pages. params: those "
            "that are not zero, in 10\u2076; MACs: multiply-adds of one image, in 10\u2079.</p>"
        )
    if any(trade(jobs)):
        data = base64.b64encode(plot(jobs)).decode()
        body += f"<h2>Trade</h2><img alt='accuracy against cost and sparsity' src='data:image/png;base64,{data}'>"
    if failed:
        options = varying(jobs)
        items = "".join(
            f"<li>{_link(job, job.label(options))}: <span class='bad'>{_text(job.problem)}</span></li>"
            for job in failed
        )
        body += f"<h2>Failures</h2><ul>{items}</ul>"
    body += "".join(f"<p class='note'>{_text(note)}</p>" for note in notes)
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>mde: sweep {_text(sweep_dir.name)}</title><style>{STYLE}{WIDE}</style><body>{body}</body></html>"
    )


def _link(job: Job, text: str) -> str:
    if not (job.directory / "report.html").exists():
        return _text(text)
    return f"<a href='{quote(job.name)}/report.html'>{_text(text)}</a>"


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _digits(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _text(value: Any) -> str:
    return html.escape(str(value))
