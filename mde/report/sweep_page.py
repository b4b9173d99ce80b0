"""The page of a sweep, and the files for other programs beside it."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from matplotlib.axes import Axes
from PIL import Image

from mde.atomic_file import atomic_file
from mde.names import utf8
from mde.report import html
from mde.report.plots import blank, png
from mde.report.sweep_table import SweepJob, caption, cost_of, dataset_of, pareto_front, table, trade, varying

PREDICTIONS = "predictions"  # in a job's directory: a few frames as image, truth and prediction


def write_merged(sweep_dir: Path, jobs: list[SweepJob], notes: list[str]) -> Path:
    """Writes report.html, summary.json and summary.csv of the sweep and returns the page's path."""
    rows = _summary(jobs)
    content = json.dumps({"schema": 1, "sweep": sweep_dir.name, "notes": notes, "jobs": rows}, indent=1)
    flat = [{key: value for key, value in row.items() if key != "overrides"} | row["overrides"] for row in rows]
    for name, text in (
        ("summary.json", content),
        ("summary.csv", csv_text(flat)),
        ("report.html", merged_page(sweep_dir, jobs, notes)),
    ):
        with atomic_file(sweep_dir / name) as file:
            file.write(text.encode())
    return sweep_dir / "report.html"


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """A column for every key that any row has."""
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return utf8(lines.getvalue())


def plot(jobs: list[SweepJob]) -> bytes:
    """PNG: accuracy against cost with the Pareto front, and accuracy against sparsity; numbers are the table's."""
    points, cost = trade(jobs), cost_of(jobs)
    figure = blank(10.5, 4.2)
    left, right = figure.subplots(1, 2, sharey=True)
    draw_front(left, points)
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
    left.set_xlabel(cost.label)
    right.set_xlabel("sparsity reached")
    left.set_ylabel(f"delta1 ({dataset_of(jobs)})")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    return png(figure)


def draw_front(axis: Axes, points: list[tuple[float, float] | None]) -> None:
    """Rings around the points (cost, accuracy) of the Pareto front, and a line through them."""
    front = sorted(point for point, on in zip(points, pareto_front(points), strict=True) if on and point)
    costs, values = zip(*front, strict=True)
    axis.plot(costs, values, color="0.6", linewidth=1.2, zorder=1, label="Pareto front")
    axis.scatter(costs, values, s=110, facecolors="none", edgecolors="0.3", zorder=3)


def picture_grid(jobs: list[SweepJob]) -> bytes:
    """PNG: frames as rows; image, truth and the prediction of every complete job as columns."""
    shown = [job for job in jobs if job.complete and (job.directory / PREDICTIONS).is_dir()]
    first, options = shown[0].directory / PREDICTIONS, varying(jobs)
    columns = [("image", first, "image"), ("truth", first, "truth")]
    columns += [(job.label(options).replace(" ", "\n"), job.directory / PREDICTIONS, "prediction") for job in shown]
    frames = len(list(first.glob("*_image.png")))
    figure = blank(1.6 * len(columns), 1.25 * frames + 0.4)
    axes = figure.subplots(frames, len(columns), squeeze=False)
    for frame, row in enumerate(axes):
        for axis, (title, folder, name) in zip(row, columns, strict=True):
            path = folder / f"{frame}_{name}.png"
            if path.exists():  # a job may have evaluated fewer frames
                axis.imshow(Image.open(path), aspect="auto")
            axis.set_axis_off()
            if frame == 0:
                axis.set_title(title, fontsize=7)
    return png(figure)


def _summary(jobs: list[SweepJob]) -> list[dict[str, Any]]:
    rows = []
    for job, on_front in zip(jobs, pareto_front(trade(jobs)), strict=True):
        row: dict[str, Any] = {"job": job.name, "status": job.record.get("status", "no result"), "pareto": on_front}
        row |= {"error": "" if job.complete else job.problem, "overrides": job.overrides}
        if job.complete:
            model = job.record["model"]
            counted = ("sparsity", "parameters", "nonzero_parameters", "macs", "file_bytes")
            row |= {f"model/{key}": model[key] for key in counted}
            for dataset, entry in job.record.get("validation", {}).items():
                row |= {f"validation/{dataset}/{key}": entry.get(key) for key in ("delta1", "rmse", "mae", "abs_rel")}
            for dataset, entry in job.record["quality"].items():
                row |= {f"{dataset}/{key}": entry.get(key) for key in ("delta1", "rmse", "mae", "abs_rel")}
            for engine, entry in job.record["latency"].items():
                if entry.get("status") == "estimate":
                    row[f"{engine}/estimate_ms"] = entry["p50_ms"]
                else:
                    row |= {f"{engine}/{key}": entry.get(key) for key in ("p50_ms", "speedup_vs_reference")}
        rows.append(row)
    return rows


def merged_page(sweep_dir: Path, jobs: list[SweepJob], notes: list[str]) -> str:
    """The page's HTML; it holds its pictures itself."""
    headings, rows = table(jobs)
    failed = [job for job in jobs if not job.complete]
    common = {key: value for key, value in jobs[0].overrides.items() if key not in varying(jobs)}
    body = f"<h1>Sweep {html.text(sweep_dir.name)}</h1>"
    body += f"<p class='{'bad' if failed else 'note'}'>{len(rows)} of {len(jobs)} jobs complete.</p>"
    if common:
        shared = " ".join(f"{key}={value}" for key, value in common.items())
        body += f"<p class='note'>Common to all: <code>{html.text(shared)}</code></p>"
    if rows:
        linked = [[html.Html(_link(jobs[int(number) - 1], number)), *cells] for number, *cells in rows]
        about = (
            f"{caption(jobs)} Numbers lead to the jobs' own pages. params: those that are not zero, in 10\u2076; "
            "MACs: multiply-adds of one image, in 10\u2079."
        )
        body += f"<h2>Results</h2>{html.wide(html.table(headings, linked))}{html.notes([about])}"
    if any(trade(jobs)):
        body += f"<h2>Trade</h2>{html.image(plot(jobs), 'accuracy against cost and sparsity')}"
    if any(job.complete and (job.directory / PREDICTIONS).is_dir() for job in jobs):
        body += f"<h2>Pictures</h2>{html.image(picture_grid(jobs), 'predictions of every job')}"
    if failed:
        options = varying(jobs)
        items = "".join(
            f"<li>{_link(job, job.label(options))}: <span class='bad'>{html.text(job.problem)}</span></li>"
            for job in failed
        )
        body += f"<h2>Failures</h2><ul>{items}</ul>"
    return html.document(f"sweep {sweep_dir.name}", body + html.notes(notes))


def _link(job: SweepJob, text: str) -> str:
    if not (job.directory / "report.html").exists():
        return html.text(text)
    return f"<a href='{quote(job.name)}/report.html'>{html.text(text)}</a>"
