"""The page of an evaluation against a depth sensor (`deploy.py data=l515`): networks on the same frames."""

from pathlib import Path
from typing import Any

from mde.atomic_file import atomic_file
from mde.report import html
from mde.report.camera_plots import breakdown_plot, frames_plot, read_frames
from mde.report.comparison_page import NARROW, background, failures
from mde.report.run_page import status
from mde.report.sweep_page import csv_text
from mde.report.sweep_table import digits
from mde.report.terminal import print_table

STAGES = {"preprocess": "pre", "infer": "infer", "postprocess": "post"}  # of a network, and their headings
CAMERA = ("capture", "align")
FIGURES = {"delta1": "delta1", "rmse": "RMSE, m", "mae": "MAE, m", "abs_rel": "AbsRel"}
CALIBRATED = "_calibrated"  # ends the name of the set whose figures are of a frozen scale and shift

# The table has more columns than the window is wide: the files' names give way.
STYLE = NARROW + ".results td:nth-child(2),.results th:nth-child(2){text-align:left;white-space:normal;min-width:9rem}"
STYLE += ".results td:nth-child(2){overflow-wrap:anywhere}"


def write_sensor_page(run_dir: Path, record: dict[str, Any]) -> Path:
    """Writes report.html and summary.csv from the record, frames.csv and pictures/, of whatever is there; returns the
    page's path."""
    rows = [_flat(candidate) for candidate in record["candidates"]]
    for name, text in (("summary.csv", csv_text(rows)), ("report.html", _page(run_dir, record))):
        with atomic_file(run_dir / name) as file:
            file.write(text.encode())
    return run_dir / "report.html"


def show_sensor(record: dict[str, Any]) -> None:
    """The table in the terminal."""
    if evaluated(record):
        problem = [f"Problem: {record['sensor']['problem']}"] if record["sensor"]["problem"] else []
        lines = [about(record["sensor"]), *problem, *notes(record)]
        print_table(headings(record), results(record), "\n".join(lines))


def evaluated(record: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The candidates with figures, by the number that they have everywhere; also of a run that broke off."""
    numbered = enumerate(record["candidates"], start=1)
    return {number: one for number, one in numbered if _looked(one) and one["status"] != "failed"}


def _looked(candidate: dict[str, Any]) -> bool:
    """Whether it was given a frame, whatever was known of that."""
    return bool(candidate.get("quality")) and candidate["stages"]["infer"]["mean_ms"] is not None


def dataset_of(record: dict[str, Any]) -> str:
    """The set whose figures stand in the table."""
    return next(name for one in evaluated(record).values() for name in one["quality"] if not name.endswith(CALIBRATED))


def about(sensor: dict[str, Any]) -> str:
    """What was seen by what, in a paragraph."""
    height, width = sensor["size"]
    numbers = [f"{key} {sensor[key]}" for key in ("serial", "firmware") if sensor[key]]  # a folder may have none
    device = f"{sensor['device']} ({', '.join(numbers)})" if numbers else sensor["device"]
    origin = ", ".join(filter(None, (device, sensor["source"], sensor["library"])))
    return (
        f"{origin}: {sensor['frames']} frames of {width} x {height} after {sensor['warmup']} of warm-up, "
        f"{sensor['lost']} lost, {sensor['skipped']} without valid depth. A count of depth is "
        f"{sensor['unit'] * 1000:g} mm. On average over frames {_percent(sensor['coverage'])} of the pixels have one."
    )


def headings(record: dict[str, Any]) -> list[str]:
    calibrated = [f"calibrated, {name}" for name in ("RMSE", "AbsRel")] if _calibrated(record) else []
    times = [*(f"{heading}, ms" for heading in STAGES.values()), "total, ms", "frames/s"]
    return ["#", "file", "engine", "precision", "input", "file, MB", "frames", *FIGURES.values(), *calibrated, *times]


def results(record: dict[str, Any]) -> list[list[str]]:
    """A row of texts under `headings` for each candidate with figures."""
    dataset, rows = dataset_of(record), []
    for number, one in evaluated(record).items():
        quality, model = one["quality"][dataset], one["model"]
        row = [str(number), one["name"], one["engine"], one["precision"]]
        row += [
            f"{model['input'][0]} x {model['input'][1]}",
            f"{model['file_bytes'] / 1e6:.1f}",
            str(quality["frames"]),
        ]
        row += [digits(quality[key]) for key in FIGURES]
        if _calibrated(record):
            frozen = one["quality"].get(dataset + CALIBRATED, {})
            row += [digits(frozen.get(key)) for key in ("rmse", "abs_rel")]
        times = [one["stages"][stage]["mean_ms"] for stage in STAGES]
        rows.append([*row, *(digits(ms, 2) for ms in (*times, sum(times))), f"{1000 / sum(times):.1f}"])
    return rows


def notes(record: dict[str, Any]) -> list[str]:
    """What the table's figures are."""
    sensor, shown = record["sensor"], evaluated(record)
    cap = next(iter(shown.values()))["breakdown"]["distance"][-1]["to"]
    frozen = " Calibrated: with one frozen scale and shift for all frames." if _calibrated(record) else ""
    camera = [digits(sensor[stage]["mean_ms"], 2) for stage in CAMERA]
    together = "one network" if len(shown) == 1 else f"{len(shown)} networks in turn on every frame"
    return [
        f"Accuracy: means over frames. Each frame's prediction is aligned to the sensor's depth, up to {cap:g} m, by "
        f"scale and shift in inverse depth; then metres are compared with metres.{frozen}",
        "Latency: means over frames of preprocessing, inference and postprocessing, their total, and the frames/s that "
        "it allows. Capture "
        f"({camera[0]} ms) and alignment ({camera[1]} ms) run beside them. The whole pipeline, {together}, ran at "
        f"{sensor['rate']:.1f} frames/s, evaluation included.",
    ]


def _page(run_dir: Path, record: dict[str, Any]) -> str:
    """The page's HTML; it holds its pictures itself."""
    body = f"<h1>Against a depth sensor: {html.text(run_dir.name)}</h1>{status(record)}"
    if "sensor" in record:
        body += f"<p>{html.text(about(record['sensor']))}</p>"
        body += html.notes(record["sensor"]["notes"])
        if record["sensor"]["problem"]:
            body += f"<p class='bad'>{html.text(record['sensor']['problem'])}</p>"
    body += failures(record)
    if evaluated(record):
        body += f"<h2>Results</h2><div class='results'>{html.wide(html.table(headings(record), results(record)))}</div>"
        body += html.notes(notes(record))
        body += _pictures(run_dir) + _over_time(run_dir, record) + _where(record)
        body += _stability(record) + _calibration(record) + _latency(record)
    return html.document(f"sensor {run_dir.name}", body + background(run_dir, record), STYLE)


def _pictures(run_dir: Path) -> str:
    sheets = sorted((run_dir / "pictures").glob("*.png"))
    shown = "".join(f"<h3>{html.text(sheet.stem)}</h3>{html.image(sheet.read_bytes(), sheet.stem)}" for sheet in sheets)
    return f"<h2>Pictures</h2>{shown}" if shown else ""


def _over_time(run_dir: Path, record: dict[str, Any]) -> str:
    path = run_dir / "frames.csv"
    frames = read_frames(path) if path.exists() else {}
    names = {number: one["name"] for number, one in evaluated(record).items() if one["name"] in frames}
    if not names:
        return ""
    note = "RMSE of each frame aligned by itself; latency: the network's three stages; coverage: pixels with a depth."
    return f"<h2>Frame by frame</h2>{html.image(frames_plot(names, frames), 'frame by frame')}{html.notes([note])}"


def _where(record: dict[str, Any]) -> str:
    """Errors by distance, edges and brightness."""
    shown = evaluated(record)
    plot = breakdown_plot({number: (one["name"], one["breakdown"]) for number, one in shown.items()})
    near, far = (row["name"] for row in next(iter(shown.values()))["breakdown"]["edges"])
    rows = []
    for number, one in shown.items():
        bins = one["breakdown"]["edges"]
        rows.append([f"{number}  {one['name']}", *(digits(row[key]) for row in bins for key in FIGURES)])
    lines = [
        "Pooled over the pixels of all frames, each frame aligned by itself. Grey: share of the pixels. Edge: "
        f"neighbours whose depths differ by more than 5 %; {near}: up to 1 % of the picture's longer side away. "
        "Brightness: luma, 0 to 255."
    ]
    names = ["file", *(f"{name}: {heading}" for name in (near, far) for heading in FIGURES.values())]
    table = html.wide(html.table(names, rows))
    return (
        f"<h2>Where it errs</h2>{html.image(plot, 'errors by distance, edges, brightness')}{html.notes(lines)}{table}"
    )


def _stability(record: dict[str, Any]) -> str:
    names = ["file", "scale drift", "shift drift, 1/m", "flicker", "sensor's flicker", "still pixels", "frames"]
    rows = []
    for number, one in evaluated(record).items():
        found = one["stability"]
        row = [f"{number}  {one['name']}", _percent(found["scale_drift"]), digits(found["shift_drift"], 4)]
        row += [_percent(found[key]) for key in ("flicker", "sensor_flicker", "still_share")]
        rows.append([*row, str(found["frames"])])
    lines = [
        "Drift: standard deviation over frames of the scale that aligns each, relative to its mean, and of the shift. "
        "Flicker: mean relative change, |ln|, of the predicted depth from a frame to the next where the sensor's depth "
        "changes by less than 1 %, both frames in metres with the first one's scale and shift; beside it the same of "
        "the sensor. Still pixels: their share of those with a depth in both frames. A dash: nothing to tell it from."
    ]
    return f"<h2>Stability</h2>{html.wide(html.table(names, rows))}{html.notes(lines)}"


def _calibration(record: dict[str, Any]) -> str:
    """What was frozen, and the figures with it beside those of frames aligned one by one."""
    shown = {number: one for number, one in evaluated(record).items() if one["calibration"]}
    if not shown:
        return ""
    dataset = dataset_of(record)
    keys = list(dict.fromkeys(key for one in shown.values() for key in one["calibration"]))
    rows = []
    for number, one in shown.items():
        frozen, aligned = one["quality"].get(dataset + CALIBRATED, {}), one["quality"][dataset]
        row = [f"{number}  {one['name']}", *(_figure(one["calibration"].get(key)) for key in keys)]
        rows.append([*row, *(f"{digits(frozen.get(key))} ({digits(aligned[key])})" for key in FIGURES)])
    line = (
        "Depth = 1 / max(scale x inverse depth + shift, 1 / cap) metres. What stands between cap and delta1 is of the "
        "frames that scale and shift were fitted to; inliers: share of the pixels within 10 % of the sensor's depth. "
        "From delta1 on: means over the table's frames, in brackets those of frames aligned one by one."
    )
    names = ["file", *(key.replace("_", " ") for key in keys), *FIGURES.values()]
    return f"<h2>Calibration</h2>{html.wide(html.table(names, rows))}{html.notes([line])}"


def _latency(record: dict[str, Any]) -> str:
    """Medians and what one frame in twenty exceeds; the means are in the first table."""
    percentiles = {"p50_ms": "p50, ms", "p95_ms": "p95, ms"}
    names = ["file", *(f"{stage}: {heading}" for stage in STAGES for heading in percentiles.values())]
    rows = []
    for number, one in evaluated(record).items():
        times = (one["stages"][stage][key] for stage in STAGES for key in percentiles)
        rows.append([f"{number}  {one['name']}", *(digits(ms, 2) for ms in times)])
    cells = (f"{stage} {', '.join(digits(record['sensor'][stage][key], 2) for key in percentiles)}" for stage in CAMERA)
    line = f"Over the frames. The camera's stages, for all files alike, p50 and p95 in ms: {'; '.join(cells)}."
    return f"<h2>Latency</h2>{html.wide(html.table(names, rows))}{html.notes([line])}"


def _calibrated(record: dict[str, Any]) -> bool:
    return any(name.endswith(CALIBRATED) for one in evaluated(record).values() for name in one["quality"])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _flat(candidate: dict[str, Any]) -> dict[str, Any]:
    """A row of summary.csv."""
    row = {key: candidate.get(key, "") for key in ("name", "file", "status", "error", "engine", "precision")}
    row |= {f"model/{key}": value for key, value in candidate.get("model", {}).items()}
    for dataset, entry in candidate.get("quality", {}).items():
        row |= {f"{dataset}/{key}": entry[key] for key in ("frames", "delta1", "rmse", "mae", "abs_rel")}
    for stage, times in candidate.get("stages", {}).items():
        row |= {f"{stage}/{key}": value for key, value in times.items()}
    for part in ("stability", "calibration"):
        row |= {f"{part}/{key}": value for key, value in (candidate.get(part) or {}).items()}
    return row
