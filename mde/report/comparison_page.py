"""The page of `deploy.py compare=[...]`: files side by side."""

import os
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mde.atomic_file import atomic_file
from mde.report import html
from mde.report.plots import blank, png
from mde.report.run_page import status
from mde.report.sweep_page import csv_text, draw_front
from mde.report.sweep_table import pareto_front
from mde.report.terminal import print_table

# (set, frame, scene) -> delta1 by candidate, and by the baseline that knows nothing.
PerFrame = dict[tuple[str, str, str], dict[str, float]]
IN_DEPTH = ", fitted in depth"  # after the name of a candidate that predicts depth
NARROW = "body{max-width:76rem}.wide td{white-space:nowrap;padding:.25rem .4rem}.wide th{padding:.25rem .4rem}"
NARROW += ".wide img{max-width:none}"
HEADINGS = ["#", "file", "engine", "precision", "input", "file, MB", "delta1", "RMSE", "MAE"]
HEADINGS += ["p50, ms", "p95, ms", "p99, ms", "frames/s", "memory, MB", "speed-up", "against", "Pareto"]


def comparison_table(record: dict[str, Any]) -> list[list[str]]:
    """A row of texts under HEADINGS for each complete candidate, numbered as they were given."""
    candidates, dataset = record["candidates"], dataset_of(record)
    numbers = {candidate["name"]: f"# {number}" for number, candidate in enumerate(candidates, start=1)}
    rows = []
    for number, (candidate, on_front) in enumerate(zip(candidates, pareto_front(trade(record)), strict=True), start=1):
        if candidate["status"] != "complete":
            continue
        quality, times = candidate["quality"][dataset], candidate["latency"][candidate["engine"]]
        model = candidate["model"]
        row = [str(number), candidate["name"], candidate["engine"], candidate["precision"]]
        row += [f"{model['input'][0]} x {model['input'][1]}", f"{model['file_bytes'] / 1e6:.1f}"]
        row += [f"{quality[key]:.3f}" for key in ("delta1", "rmse", "mae")]
        row += [f"{times[key]:.2f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
        row += [
            f"{times['fps']:.1f}",
            "-" if times["peak_rss_mb"] is None else f"{times['peak_rss_mb']:.0f}",
            f"{times['speedup_vs_reference']:.2f}x",
        ]
        rows.append([*row, numbers.get(times["baseline"], "published"), "*" if on_front else ""])
    return rows


def dataset_of(record: dict[str, Any]) -> str | None:
    """The set whose figures stand in the table."""
    return next((name for candidate in complete(record) for name in candidate["quality"]), None)


def complete(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [candidate for candidate in record["candidates"] if candidate["status"] == "complete"]


def trade(record: dict[str, Any]) -> list[tuple[float, float] | None]:
    """(median latency, delta1) of each candidate, None of one that failed."""
    dataset = dataset_of(record)
    return [
        (candidate["latency"][candidate["engine"]]["p50_ms"], candidate["quality"][dataset]["delta1"])
        if candidate["status"] == "complete"
        else None
        for candidate in record["candidates"]
    ]


def notes(record: dict[str, Any]) -> list[str]:
    """What the table's figures are."""
    done, dataset = complete(record), dataset_of(record)
    first = done[0]["latency"][done[0]["engine"]]
    ramp = record["baselines"]["vertical_ramp"][dataset]["delta1"]
    names = {candidate["name"] for candidate in done}
    published = dict.fromkeys(candidate["latency"][candidate["engine"]]["baseline"] for candidate in done)
    lines = [
        f"Accuracy on {dataset}, {done[0]['quality'][dataset]['frames']} frames, RMSE and MAE in metres. A vertical "
        f"ramp, which ignores the image, has delta1 {ramp:.3f}.",
        f"Latency of one image, {first['threads']} threads, {first['runs']} calls of each in turn in one process. "
        "Speed-up: the median ratio of the baseline's call to that of the same round. Memory: the most that a process "
        "holds which only opens and runs the file.",
        "* marks the Pareto front: no other file has both a higher delta1 and a lower median latency.",
    ]
    lines += [
        f"{candidate['name']} predicts depth. Its figures are fitted in inverse depth, as all others are; fitted in "
        f"depth its delta1 is {candidate['quality_in_depth'][dataset]['delta1']:.3f}."
        for candidate in done
        if "quality_in_depth" in candidate
    ]
    return lines + [f"Baseline: {baseline}." for baseline in published if baseline not in names]


def show_comparison(record: dict[str, Any]) -> None:
    """The table in the terminal."""
    if complete(record):
        print_table(HEADINGS, comparison_table(record), "\n".join(notes(record)))


def plot(record: dict[str, Any]) -> bytes:
    """PNG: delta1 against latency, numbers as in the table."""
    points = trade(record)
    names = {
        number: "\n     ".join(textwrap.wrap(f"{number}  {each['name']}, {each['engine']}, {each['precision']}", 44))
        for number, each in enumerate(record["candidates"], start=1)
        if each["status"] == "complete"
    }
    lines = 1 + sum(name.count("\n") + 1 for name in names.values())
    figure = blank(10.5, max(4.2, 0.19 * lines))  # inches: the legend's
    axis = figure.subplots()
    draw_front(axis, points)
    for number, point in enumerate(points, start=1):
        if point is None:
            continue
        axis.scatter(*point, color=f"C{(number - 1) % 10}", s=36, zorder=2, label=names[number])
        axis.annotate(str(number), point, textcoords="offset points", xytext=(6, 6), fontsize=9)
    axis.margins(0.12)
    axis.set_xlabel("median latency (ms, each in its own engine)")
    axis.set_ylabel(f"delta1 ({dataset_of(record)})")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    return png(figure)


def write_comparison(run_dir: Path, record: dict[str, Any]) -> Path:
    """Writes report.html and summary.csv from the record, of whatever is in it, and returns the page's path."""
    rows = [_flat(candidate) for candidate in record["candidates"]]
    for name, text in (("summary.csv", csv_text(rows)), ("report.html", comparison_page(run_dir, record))):
        with atomic_file(run_dir / name) as file:
            file.write(text.encode())
    return run_dir / "report.html"


def write_frames(run_dir: Path, per_frame: PerFrame) -> None:
    """frames.csv, a row for each frame, with which a difference between two files gets an error bar."""
    rows = [
        dict(zip(("set", "frame", "scene"), key, strict=True)) | {name: f"{value:.5f}" for name, value in found.items()}
        for key, found in per_frame.items()
    ]
    with atomic_file(run_dir / "frames.csv") as file:
        file.write(csv_text(rows).encode())


def _flat(candidate: dict[str, Any]) -> dict[str, Any]:
    row = {key: candidate.get(key, "") for key in ("name", "file", "status", "error", "engine", "precision")}
    if candidate["status"] == "complete":
        row |= {f"model/{key}": value for key, value in candidate["model"].items()}
        for dataset, entry in candidate["quality"].items():
            row |= {f"{dataset}/{key}": entry[key] for key in ("delta1", "rmse", "mae", "abs_rel")}
        row |= {f"latency/{key}": value for key, value in candidate["latency"][candidate["engine"]].items()}
    return row


def comparison_page(run_dir: Path, record: dict[str, Any]) -> str:
    """The page's HTML; it holds its pictures itself."""
    done = complete(record)
    body = f"<h1>Comparison {html.text(run_dir.name)}</h1>{status(record)}"
    body += html.notes([f"{len(done)} of {len(record['candidates'])} files compared"])
    body += failures(record)
    if done:
        body += f"<h2>Results</h2>{html.wide(html.table(HEADINGS, comparison_table(record)))}"
        body += html.notes(notes(record)) + _other_sets(record)
        body += f"<h2>Trade</h2>{html.image(plot(record), 'delta1 against latency')}"
        body += _pictures(run_dir, record)
        body += _origins(run_dir, record)
    body += background(run_dir, record)
    return html.document(f"comparison {run_dir.name}", body, NARROW)


def failures(record: dict[str, Any]) -> str:
    """The candidates that did not come to their end, and why."""
    others = [candidate for candidate in record["candidates"] if candidate["status"] != "complete"]
    reasons = [(html.text(other["name"]), html.text(other.get("error", other["status"]))) for other in others]
    lines = "".join(f"<li>{name}: <span class='bad'>{reason}</span></li>" for name, reason in reasons)
    return f"<h2>Failures</h2><ul>{lines}</ul>" if others else ""


def background(run_dir: Path, record: dict[str, Any]) -> str:
    """Machine, software and configuration."""
    about = "\n".join(f"{key}: {value}" for key, value in record["environment"].items())
    shown = f"<h2>Environment</h2><pre>{html.text(about)}</pre>"
    if (run_dir / "config.yaml").exists():
        shown += f"<h2>Configuration</h2><pre>{html.text((run_dir / 'config.yaml').read_text())}</pre>"
    return shown


def _pictures(run_dir: Path, record: dict[str, Any]) -> str:
    """The sheet that this run drew: an earlier one may have left others in the directory."""
    if "sheet" not in record:
        return ""
    about = (
        "Predictions aligned to the truth and on its colour scale. Error: |ln(prediction / truth)|, dark where nothing "
        "is known; a factor 1.25 is half bright."
    )
    sheet = run_dir / record["sheet"]
    return f"<h2>Pictures</h2>{html.notes([about])}{html.wide(html.image(sheet.read_bytes(), sheet.stem))}"


def _origins(run_dir: Path, record: dict[str, Any]) -> str:
    """Links to the reports of the runs that made the files, where they are."""
    links = []
    for candidate in complete(record):
        report = Path(candidate["file"]).with_name("report.html")
        if report.exists():
            address = quote(os.path.relpath(report.resolve(), run_dir.resolve()))
            links.append(f"<li><a href='{address}'>{html.text(candidate['name'])}</a></li>")
    return f"<h2>How they were made</h2><ul>{''.join(links)}</ul>" if links else ""


def _other_sets(record: dict[str, Any]) -> str:
    """The sets beside the table's, three figures each."""
    done = complete(record)
    others = list(done[0]["quality"])[1:]
    if not others:
        return ""
    headings = ["file", *(f"{name}, {key}" for name in others for key in ("delta1", "RMSE", "MAE"))]
    rows = []
    for entry in done:
        figures = (entry["quality"][name][key] for name in others for key in ("delta1", "rmse", "mae"))
        rows.append([entry["name"], *(f"{figure:.3f}" for figure in figures)])
    return f"<h2>Other sets</h2>{html.wide(html.table(headings, rows))}"
