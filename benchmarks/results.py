"""`make results`: remakes, from the shipped files, every table and figure of docs/results.md that is about them.

    python benchmarks/results.py            # what is not there yet: hours on two cores; can be stopped
    python benchmarks/results.py --write    # only the documents, from what there is

Each step is a command in a run directory under outputs/results, left out when that is complete. The documents' parts
between `<!-- results: NAME -->` and `<!-- end -->` are rewritten, and the pictures in docs/images.
"""

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mde.report.merged import Job, read_jobs
from mde.report.merged_page import draw_front, picture_grid
from mde.report.record import read_record

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path("weights")
SHARED = os.environ.get("MDE_SHARED", "../shared")
NYU = f"data=folder data.root={SHARED}/data/nyu"
ZERO_SHOT = ("redkitchen", "desk_lidar", "office", "kitti", "classroom", "tabletop", "mixed_rgbd", "redwood", "sun3d")
# Zero-shot, indoors, and without a say in any choice (redkitchen had one).
OTHER_INDOOR = tuple(name for name in ZERO_SHOT if name not in ("kitti", "redkitchen"))
EVALUATE = f"evaluate=[{','.join(f'{SHARED}/data/{name}' for name in ZERO_SHOT)}]"
PEER = f"{SHARED}/peers/fast_depth_224.tflite"
FASTDEPTH = "FastDepth INT8 (peer)"
SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml", "litert": ".tflite"}
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
# Name in the tables: file in weights/, without its ending.
NETWORKS = {
    "dense": "midas_small",
    "channel 0.5": "midas_small_half",
    "channel 0.75": "midas_small_quarter",
    "channel 0.9": "midas_small_tenth",
}
FREE = {"free": "midas_small_free"}
# Pruned without training after, for the Pareto figure: zeros, which no engine here is faster for.
ZEROED = {"single weights 0.5": "prune=fine_grained sparsity=0.5", "2:4": "prune=two_four sparsity=0.5"}
# (network, engine, precision) of the Pareto figure.
POINTS = [
    *((network, engine, "int8") for network in NETWORKS for engine in SUFFIX),
    *((network, "litert", "fp32") for network in NETWORKS),
    *(("dense", "onnxruntime", "fp32"), ("dense", "openvino", "fp32"), ("dense", "openvino", "float16")),
    *((network, "onnxruntime", "fp32") for network in (*FREE, *ZEROED)),
]


def state() -> str:
    """Of everything that the steps are made from: another one begins anew."""
    digest = hashlib.sha256(repr([NETWORKS, FREE, ZEROED, POINTS]).encode())
    for path in sorted((ROOT / WEIGHTS).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


OUT = Path("outputs/results") / state()


@dataclass(frozen=True)
class Step:
    """A command, and the run directory (of a sweep: its folder) that it fills."""

    folder: str
    command: str
    sweep: bool = False

    @property
    def path(self) -> Path:
        return OUT / self.folder

    @property
    def complete(self) -> bool:
        if self.sweep:
            jobs = read_jobs(self.path) if self.path.is_dir() else []
            return (self.path / "summary.json").exists() and all(job.complete for job in jobs)
        return (self.path / "metrics.json").exists() and read_record(self.path)["status"] == "complete"

    def run(self) -> None:
        folder = f"hydra.{'sweep' if self.sweep else 'run'}.dir={self.path}"
        print(f"$ python {self.command} {folder}", flush=True)
        subprocess.run([sys.executable, *self.command.split(" "), folder], check=True)


def deployed(network: str, engine: str, precision: str) -> Step:
    quantize = "none" if precision == "fp32" else precision
    checkpoint = (NETWORKS | FREE).get(network)
    source = WEIGHTS / f"{checkpoint}.safetensors" if checkpoint else OUT / f"zeroed/{slug(network)}/model.safetensors"
    command = f"deploy.py checkpoint={source} target={engine} quantize={quantize} {NYU}"
    return Step(f"deployed/{slug(network)}-{engine}-{precision}", command)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def candidates() -> dict[tuple[str, str, str], Step]:
    """Each of POINTS -> its deployment."""
    return {point: deployed(*point) for point in POINTS}


def files() -> dict[str, tuple[str, str, str]]:
    """Path of every deployed file -> what it is."""
    return {str(step.path / f"model{SUFFIX[point[1]]}"): point for point, step in candidates().items()}


def steps() -> list[Step]:
    # In a run directory, whose figures a sweep takes instead of measuring the dense network in each of its jobs.
    dense = Step("dense", f"deploy.py target=pytorch {NYU}")
    checkpoint = f"checkpoint={dense.path}/model.safetensors"
    zeroed = [
        Step(f"zeroed/{slug(name)}", f"prune.py {checkpoint} {how} recovery=none {NYU}") for name, how in ZEROED.items()
    ]
    compared = ",".join([*files(), PEER])
    table = "prune.py experiment=paper_table"
    recording = OUT / "room.db3"
    sensor = ",".join(str(deployed(*point).path / f"model{SUFFIX[point[1]]}") for point in SENSOR)
    return [
        dense,
        *zeroed,
        *candidates().values(),
        Step("photos", "deploy.py source=docs/photos"),
        Step("compare", f"deploy.py compare=[{compared}] {NYU} {EVALUATE}"),
        Step("table1", f"{table}1 {checkpoint} {NYU}", sweep=True),
        Step("table2", f"{table}2 {checkpoint} {NYU}", sweep=True),
        Step("figure2", f"{table}1 {checkpoint} sparsity=0.02,0.06,0.10,0.20", sweep=True),
        Step("figure3", f"{table}2 {checkpoint} sparsity=0.10,0.50,0.70,0.90", sweep=True),
        Step("figure4", f"deploy.py compare=[{sensor}] data=l515 data.source={recording} calibrate=20"),
    ]


SENSOR = [("dense", "litert", "fp32"), ("dense", "litert", "int8"), ("channel 0.9", "litert", "int8")]


def record_room(path: Path) -> None:
    """Rendered scenes, played through the emulated L515."""
    if not path.exists():
        whole = path.with_name(f"part_of_{path.name}")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "mde.sensors.emulator", str(whole), "--frames", "100"], check=True)
        whole.rename(path)


class Figures:
    """What the comparison found, by (network, engine, precision); FastDepth under its own name."""

    def __init__(self, record: Mapping[str, Any]):
        points = files()
        self.of: dict[Any, dict[str, Any]] = {
            points.get(entry["file"], FASTDEPTH): entry
            for entry in record["candidates"]
            if entry["status"] == "complete"
        }
        self.ramp = record["baselines"]["vertical_ramp"]

    def quality(self, point: Any, dataset: str, metric: str = "delta1") -> float:
        return self.of[point]["quality"][dataset][metric]

    def other_indoor(self, point: Any) -> float:
        return sum(self.quality(point, name) for name in OTHER_INDOOR) / len(OTHER_INDOOR)

    def latency(self, point: Any) -> dict[str, Any]:
        entry = self.of[point]
        return entry["latency"][entry["engine"]]

    def speed_up(self, point: Any) -> float | None:
        """Against the point's own published graph; None where that could not be run, or is not known (of the peer)."""
        times = self.latency(point)
        return times["speedup_vs_reference"] if times["baseline"].startswith("published") else None


def rows(heading: str, *lines: str) -> str:
    columns = heading.count("|") - 1
    return "\n".join([heading, "| --- |" + " ---: |" * (columns - 1), *lines])


def targets(figures: Figures) -> str:
    """The issue's three targets, each with what was found."""
    dense, peer = ("dense", "litert", "fp32"), FASTDEPTH
    inside = [point for point in figures.of if point != peer and point[0] in NETWORKS]
    good = [p for p in inside if figures.quality(p, "nyu") >= figures.quality(dense, "nyu") - 0.02]
    fastest = max(good, key=lambda point: figures.speed_up(point) or 0)
    quicker = [p for p in inside if figures.latency(p)["p50_ms"] < figures.latency(peer)["p50_ms"]]
    best = max(quicker, key=lambda point: figures.quality(point, "nyu"), default=None)

    def line(target: str, found: str, reached: bool) -> str:
        return f"| {target} | {found} | {'yes' if reached else 'no'} |"

    ours, theirs = figures.quality(dense, "nyu"), figures.quality(peer, "nyu")
    lines = [
        line(
            "dense: delta1 on NYU at or above FastDepth INT8's", f"{ours:.3f}, FastDepth {theirs:.3f}", ours >= theirs
        ),
        line(
            f"dense: mean delta1 of the {len(OTHER_INDOOR)} other indoor sets, zero-shot, above FastDepth's",
            f"{figures.other_indoor(dense):.3f}, FastDepth {figures.other_indoor(peer):.3f}",
            figures.other_indoor(dense) > figures.other_indoor(peer),
        ),
    ]
    speed, cost = figures.speed_up(fastest) or 0, ours - figures.quality(fastest, "nyu")
    lines.append(
        line(
            "10x as fast as the published graph (FP32, same engine), within 2 points of our dense delta1",
            f"{named(fastest)}: {speed:.1f}x, {100 * cost:.1f} points below",
            speed >= 10,
        )
    )
    if best is None:
        lines.append(line("faster and more accurate on NYU than FastDepth INT8", "none is faster", False))
    else:
        found = f"{named(best)}: {figures.latency(best)['p50_ms']:.2f} ms, {figures.quality(best, 'nyu'):.3f}"
        found += f"; FastDepth {figures.latency(peer)['p50_ms']:.2f} ms, {theirs:.3f}"
        lines.append(
            line("faster and more accurate on NYU than FastDepth INT8", found, figures.quality(best, "nyu") > theirs)
        )
    return rows("| target | found | reached |", *lines)


def times_faster(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def named(point: Any) -> str:
    if point == FASTDEPTH:
        return FASTDEPTH
    network, engine, precision = point
    return f"{network}, {precision.upper()}, {ENGINES[engine]}"


def speed(figures: Figures) -> str:
    """A row a file: accuracy on NYU, latency, size."""
    lines = []
    for point in sorted(figures.of, key=lambda point: figures.latency(point)["p50_ms"]):
        entry, times = figures.of[point], figures.latency(point)
        height, width = entry["model"]["input"]
        cells = [f"{figures.quality(point, 'nyu', metric):.3f}" for metric in ("delta1", "rmse", "mae")]
        cells += [f"{times['p50_ms']:.2f}", f"{times['p95_ms']:.2f}", times_faster(figures.speed_up(point))]
        cells += [f"{entry['model']['file_bytes'] / 1e6:.1f}", f"{times['peak_rss_mb']:.0f}"]
        lines.append(f"| {named(point)}, {height} x {width} | " + " | ".join(cells) + " |")
    return rows(
        "| file | delta1, NYU | RMSE, m | MAE, m | p50, ms | p95, ms | x, published graph | MB | memory, MB |", *lines
    )


def summary(figures: Figures) -> str:
    """README's table: the networks as they would be used on this CPU, beside FastDepth."""
    points = [("dense", "litert", "fp32"), *((network, "litert", "int8") for network in NETWORKS), FASTDEPTH]
    lines = []
    for point in [point for point in points if point in figures.of]:
        times, megabytes = figures.latency(point), figures.of[point]["model"]["file_bytes"] / 1e6
        accuracy = f"{figures.quality(point, 'nyu'):.3f} | {figures.other_indoor(point):.3f}"
        name = named(point).removesuffix(f", {ENGINES['litert']}")
        faster = times_faster(figures.speed_up(point))
        lines.append(f"| {name} | {accuracy} | {times['p50_ms']:.1f} | {faster} | {megabytes:.1f} |")
    ramp = sum(figures.ramp[name]["delta1"] for name in OTHER_INDOOR) / len(OTHER_INDOOR)
    lines.append(f"| vertical ramp, which ignores the image | {figures.ramp['nyu']['delta1']:.3f} | {ramp:.3f} | | | |")
    return rows("| | delta1, NYU | delta1, other indoor sets | ms | x | MB |", *lines)


def sets(figures: Figures) -> str:
    """delta1 of the networks on every set."""
    shown = [("dense", "litert", "fp32"), ("channel 0.5", "litert", "fp32"), ("channel 0.75", "litert", "fp32")]
    shown += [
        ("channel 0.9", "litert", "fp32"),
        ("channel 0.9", "litert", "int8"),
        ("free", "onnxruntime", "fp32"),
        FASTDEPTH,
    ]
    shown = [point for point in shown if point in figures.of]
    names = [named(point).removesuffix(f", {ENGINES.get(point[1], '')}") for point in shown]
    lines = []
    for dataset, ramp in figures.ramp.items():
        cells = [f"{figures.quality(point, dataset):.3f}" for point in shown]
        lines.append(f"| {dataset} | {ramp['frames']} | {ramp['delta1']:.3f} | " + " | ".join(cells) + " |")
    mean = [f"{figures.other_indoor(point):.3f}" for point in shown]
    ramp = sum(figures.ramp[name]["delta1"] for name in OTHER_INDOOR) / len(OTHER_INDOOR)
    lines.append(f"| mean of the {len(OTHER_INDOOR)} other indoor sets | | {ramp:.3f} | " + " | ".join(mean) + " |")
    return rows("| delta1 | frames | vertical ramp | " + " | ".join(names) + " |", *lines)


def pareto(figures: Figures, path: Path) -> None:
    """delta1 on NYU against latency."""
    points = {
        named(point): (figures.latency(point)["p50_ms"], figures.quality(point, "nyu"), point) for point in figures.of
    }
    figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    draw_front(axis, [(x, y) for x, y, _ in points.values()])
    markers = {"int8": "o", "fp32": "s", "float16": "^"}
    colours = {name: f"C{number}" for number, name in enumerate([*NETWORKS, *FREE, *ZEROED])}
    for x, y, point in points.values():
        if point == FASTDEPTH:
            axis.scatter(x, y, marker="*", s=160, color="black", zorder=4, label=FASTDEPTH)
        else:
            axis.scatter(x, y, marker=markers[point[2]], s=40, color=colours[point[0]], zorder=2)
    for name, colour in colours.items():
        axis.scatter([], [], color=colour, s=40, label=name)
    for precision, marker in markers.items():
        axis.scatter([], [], color="0.5", marker=marker, s=40, label=precision.upper())
    axis.set_xscale("log")
    axis.set_xlabel("median latency of one image, ms (two CPU threads, each file in its own engine)")
    axis.set_ylabel("delta1, NYU, 654 test frames")
    axis.grid(alpha=0.3, which="both")
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(path)


def pruned_table(jobs: list[Job], kind: str) -> str:
    """A row for each sparsity of one kind of pruning."""
    chosen = [job for job in jobs if job.complete and job.overrides.get("prune", kind) == kind]
    lines = []
    for job in chosen:
        model, quality = job.record["model"], job.record["quality"]["nyu"]
        latency = job.record["latency"]
        times = [
            f"{latency[e]['speedup_vs_reference']:.2f}" if e in latency else "" for e in ("onnxruntime", "openvino")
        ]
        cells = [f"{model['sparsity']:.3f}", f"{model['nonzero_parameters'] / 1e6:.2f}"]
        cells += [f"{quality[metric]:.3f}" for metric in ("delta1", "rmse", "mae")]
        lines.append(f"| {job.overrides['sparsity']} | " + " | ".join(cells + times) + " |")
    return rows(
        "| sparsity | zero or gone | not zero, M | delta1 | RMSE, m | MAE, m | ONNX Runtime, x | OpenVINO, x |",
        *lines,
    )


def against_sensor(record: Mapping[str, Any]) -> str:
    """A row for each network against the emulated L515."""
    lines = []
    for point, entry in zip(SENSOR, record["candidates"], strict=True):  # calibration renamed their files
        plain, frozen = (
            next(v for k, v in entry["quality"].items() if k.endswith("_calibrated") == end) for end in (False, True)
        )
        times = entry["stages"]
        cells = [f"{plain[metric]:.3f}" for metric in ("delta1", "rmse", "mae", "abs_rel")]
        cells += [f"{frozen[metric]:.3f}" for metric in ("rmse", "abs_rel")]
        cells += [f"{times[stage]['mean_ms']:.1f}" for stage in ("preprocess", "infer", "postprocess")]
        lines.append(f"| {named(point)} | " + " | ".join(cells) + " |")
    return rows(
        "| network | delta1 | RMSE, m | MAE, m | AbsRel | one scale: RMSE, m | AbsRel | pre, ms | net, ms | post, ms |",
        *lines,
    )


def write(name: str, content: str) -> None:
    """Replaces the part called `name` in README and results, one of which must have it."""
    pattern, written = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)", 0
    for page in (ROOT / "docs/results.md", ROOT / "README.md"):
        text, count = re.subn(
            pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", page.read_text(), flags=re.DOTALL
        )
        page.write_text(text)
        written += count
    if not written:
        raise SystemExit(f"results: {name}: neither docs/results.md nor README.md has such a part")


def document() -> None:
    """Everything that the complete steps allow."""
    done = {step.folder: step for step in steps() if step.complete}
    images = ROOT / "docs/images"
    if "compare" in done:
        figures = Figures(read_record(done["compare"].path))
        makers: dict[str, Callable[[Figures], str]] = {
            "targets": targets,
            "summary": summary,
            "speed": speed,
            "sets": sets,
        }
        for name, make in makers.items():
            write(name, make(figures))
        pareto(figures, images / "pareto.png")
    for name, kinds in {"table1": ("layer", "channel"), "table2": ("fine_grained",)}.items():
        if name in done:
            jobs = read_jobs(done[name].path)
            for kind in kinds:
                write(f"{name} {kind}", pruned_table(jobs, kind))
    if "photos" in done:
        shutil.copyfile(done["photos"].path / "pictures/depth.png", images / "photos.png")
    for name in ("figure2", "figure3"):
        if name in done:
            (images / f"{name}.png").write_bytes(picture_grid(read_jobs(done[name].path)))
    if "figure4" in done:
        write("sensor", against_sensor(read_record(done["figure4"].path)))
        shutil.copyfile(done["figure4"].path / "pictures/frames.png", images / "figure4.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run nothing, only write the documents")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if not arguments.write:
        if not Path(SHARED, "data").is_dir():
            parser.error(f"MDE_SHARED={SHARED}: holds no data; the frames are not part of the project")
        record_room(OUT / "room.db3")
        for step in steps():
            if not step.complete:
                step.run()
    document()


if __name__ == "__main__":
    main()
