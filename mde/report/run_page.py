"""`report.html`: one self-contained page a run, made from the files in its directory."""

import csv
from collections import defaultdict
from pathlib import Path
from typing import Any

from mde.atomic_file import atomic_file
from mde.records import read_record
from mde.report import html
from mde.report.cost_table import cost_table
from mde.report.layer_table import layer_table
from mde.report.plots import curves

QUALITY = {  # column of metrics.json -> heading with its unit
    "frames": "frames",
    "delta1": "delta1",
    "delta2": "delta2",
    "delta3": "delta3",
    "rmse": "RMSE",
    "mae": "MAE",
    "abs_rel": "AbsRel",
    "pooled_rmse": "pooled RMSE",
    "coverage": "coverage",
    "negative_scale_frames": "negative scale",
}


def write_report(run_dir: Path) -> Path:
    """Writes the page from metrics.json, config.yaml, layers.csv, logs/ and pictures/ and returns its path.

    The page holds its pictures and styles itself: it opens offline and can be mailed."""
    record = read_record(run_dir)
    parts = [
        f"<h1>{html.text(record['model'].get('name', 'run'))}: {html.text(run_dir.name)}</h1>",
        status(record),
        _section("Accuracy", quality_table(record)),
        _section("Size and speed", _cost(record)),
        _section("Deployment", _deployment(record.get("deployment"))),
        _section("Prediction", _prediction(record.get("prediction"))),
        _section("Slowest layers", _layers(run_dir, record.get("deployment"))),
        _section("Pictures", _pictures(run_dir)),
        _section("Training", _curves(read_logs(run_dir))),
        _section("Network", _pairs(record["model"])),
        _section("Inside the network", _health(record.get("health"))),
        _section("Environment", _pairs(record["environment"])),
        _section("Configuration", _config(run_dir)),
    ]
    path = run_dir / "report.html"
    with atomic_file(path) as file:
        file.write(html.document(run_dir.name, "".join(parts)).encode())
    return path


def quality_table(record: dict[str, Any]) -> str:
    """Datasets as rows, each followed by its baselines in grey; empty where nothing was evaluated."""
    rows = [_row(f"{name}: validation", entry, "") for name, entry in record.get("validation", {}).items()]
    for dataset, entry in record["quality"].items():
        rows.append(_row(dataset, entry, ""))
        if "before" in record:
            rows.append(_row(f"{dataset}: before", record["before"]["quality"][dataset], ""))
        for name, baselines in record.get("baselines", {}).items():
            if dataset in baselines:
                rows.append(_row(f"{dataset}: {name.replace('_', ' ')}", baselines[dataset], " class='baseline'"))
    if not rows:
        return ""
    head = "".join(f"<th>{heading}</th>" for heading in QUALITY.values())
    entries = [*record.get("validation", {}).values(), *record["quality"].values()]
    protocols = sorted({f"{entry['protocol']}, alignment {entry['alignment']}" for entry in entries})
    unit = "counts of the depth image" if "raw" in protocols[0] else "metres"
    note = f"Protocol: {'; '.join(protocols)}. RMSE and MAE in {unit}, means over frames."
    notes = html.notes([note, *record.get("notes", [])])
    return f"<table><tr><th>dataset</th>{head}</tr>{''.join(rows)}</table>{notes}"


def read_logs(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Every logged series as (step, value), sorted by step; where a resumed run repeats a step, its value counts."""
    series: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted(run_dir.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name[8:])):
        whole = path.read_text().rpartition("\n")[0]  # a full disk cuts the last row
        for row in csv.DictReader(whole.splitlines()):
            for key, value in row.items():
                if value and key not in ("step", "epoch"):
                    series[key][int(row["step"])] = float(value)
    return {key: sorted(values.items()) for key, values in sorted(series.items())}


def _row(name: str, entry: dict[str, Any], attributes: str) -> str:
    cells = "".join(f"<td>{_number(entry.get(column))}</td>" for column in QUALITY)
    return f"<tr{attributes}><td>{html.text(name)}</td>{cells}</tr>"


def _cost(record: dict[str, Any]) -> str:
    if not record["model"].get("file_bytes"):
        return ""
    head, *rows = cost_table(record)
    return html.table(head, rows) + html.notes(_cost_notes(record["latency"]))


def _cost_notes(latency: dict[str, dict[str, Any]]) -> list[str]:
    """How the times came about."""
    notes = []
    entry = next(iter(latency.values()), {})
    if "runs" in entry:  # an engine that was built and cannot run here has none
        notes.append(
            f"One image, {entry['precision']}, {entry['threads']} threads, medians of {entry['runs']} calls taken in "
            "turn; the speed-up is the median ratio of the published graph's call to that of the same round, in the "
            "same engine. Zeros in weights save no time in these engines; channels that are gone do."
        )
    for name, entry in latency.items():
        if entry["status"] == "estimate":
            notes.append(
                f"{name}, {entry['precision']} (published graph: fp32): an estimate, no measurement. It is a lower "
                "bound, every layer at the peak rate that the data sheet gives for arithmetic or for memory; a board "
                "takes longer. device.profile= puts a measurement in its place."
            )
        elif "board" in entry:
            notes.append(
                f"{name}, {entry['precision']}: measured on {entry['board']}{_core(entry)} in {entry['engine']} "
                f"{entry['engine_version']}, the median of {entry['runs']} calls."
            )
    return notes


def _core(entry: dict[str, Any]) -> str:
    return "" if entry.get("dla") is None else f", accelerator (DLA) {entry['dla']}"


def _deployment(entry: dict[str, Any] | None) -> str:
    """What was deployed, and how far it is from PyTorch."""
    if entry is None:
        return ""
    parity, quantized = entry["parity"], entry.get("quantization")
    lines = {
        "file": f"{entry['file']} for {entry['target']}, {entry['precision']}, {entry['status']}",
        "parity": f"at most {parity['largest']:.2g}, on average {parity['mean']:.2g} of the output's range "
        f"from PyTorch, {parity['frames']} frames of {parity['data']}, in {parity['engine']}",
    }
    if "trained_scales" in entry:
        lines["quantization"] = f"as trained (quantize=qat), {entry['trained_scales']} convolutions in INT8"
        lines["parity"] += ", where it is fake-quantized"
    if quantized:
        lines["calibration"] = f"{quantized['calibration_frames']} training frames"
        lines["gate"] = (
            f"delta1 fell by {quantized['drop']:.4f} on validation frames, {quantized['max_drop']:g} is allowed"
        )
        lines["left in float"] = ", ".join(quantized["float_layers"]) or "no layer"
    if "library" in entry:
        lines["library"] = entry["library"]
    return _pairs(lines)


def _prediction(entry: dict[str, Any] | None) -> str:
    """What `deploy.py source=` predicted of what, and what it could not read."""
    if entry is None or "frames" not in entry:
        return ""
    lines = {
        "source": entry["source"],
        "network": entry["network"],
        "frames": f"{entry['frames']} in {entry['seconds']:.1f} s, with reading and writing",
        "parity": _prediction_parity(entry),
    }
    if "float_layers" in entry:
        lines["left in float"] = ", ".join(entry["float_layers"]) or "no layer"
    return _pairs(lines | {f"left out: {name}": reason for name, reason in entry["failed"].items()})


def _prediction_parity(entry: dict[str, Any]) -> str:
    if parity := entry["parity"]:
        return (
            f"at most {parity['largest']:.2g} of the output's range from {entry['compared_with']}, "
            f"first {parity['frames']} frames"
        )
    reason = "the file came without its network" if entry["compared_with"] is None else "nothing was predicted"
    return f"not compared with PyTorch: {reason}"


def _health(entry: dict[str, Any] | None) -> str:
    """What half precision has to hold, and whether the skips are heard."""
    if entry is None:
        return ""
    shares = {f"{name}: the skip's share of the sum": share for name, share in entry["skip_share"].items()}
    return _pairs({f"largest magnitude, in {entry['largest_in']}": entry["largest"]} | shares)


def _layers(run_dir: Path, entry: dict[str, Any] | None) -> str:
    """Of a deployment: another run in the same directory has not timed any."""
    return layer_table(run_dir, entry["target"]) if entry else ""


def status(record: dict[str, Any]) -> str:
    """How the run ended, why, and the command that began it."""
    reason = f" ({record['error']})" if record.get("error") else ""
    line = f"{record['status']}{reason}; command: {record['environment']['command']}"
    style = "note" if record["status"] == "complete" else "bad"
    return f"<p class='{style}'>{html.text(line)}</p>"


def _pictures(run_dir: Path) -> str:
    sheets = sorted((run_dir / "pictures").glob("*.png"))
    final = [sheet for sheet in sheets if not sheet.name.startswith("step_")]
    steps = [sheet for sheet in sheets if sheet.name.startswith("step_")]
    shown = "".join(f"<h3>{html.text(sheet.stem)}</h3>{_image(sheet)}" for sheet in final)
    # While training: first and last are enough to see what was learned.
    return shown + "".join(
        f"<h3>validation, {html.text(sheet.stem)}</h3>{_image(sheet)}"
        for sheet in dict.fromkeys([*steps[:1], *steps[-1:]])
    )


def _image(path: Path) -> str:
    return html.image(path.read_bytes(), path.stem)


def _curves(series: dict[str, list[tuple[int, float]]]) -> str:
    return html.image(curves(series), "training curves") if series else ""


def _config(run_dir: Path) -> str:
    path = run_dir / "config.yaml"
    return f"<pre>{html.text(path.read_text())}</pre>" if path.exists() else ""


def _pairs(values: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.text(key)}</td><td class='text'>{html.text(_number(value))}</td></tr>"
        for key, value in values.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _section(title: str, body: str) -> str:
    return f"<h2>{html.text(title)}</h2>{body}" if body else ""


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) >= 100 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
