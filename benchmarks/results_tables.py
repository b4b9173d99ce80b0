"""The tables and figures of docs/results.md, from the records of the runs that results_steps names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from results_steps import (
    ENGINES,
    FASTDEPTH,
    FREE,
    NETWORKS,
    OTHER_INDOOR,
    SENSOR,
    ZEROED,
    available,
    files,
    learned_from,
)

from mde.report.merged import Job
from mde.report.merged_page import draw_front

Point = tuple[str, str, str]  # network, engine, precision


class Figures:
    """What the comparison found of each file."""

    def __init__(self, record: Mapping[str, Any]):
        points = files()
        self.of: dict[Point, dict[str, Any]] = {
            points[entry["file"]]: entry for entry in record["candidates"] if entry["status"] == "complete"
        }
        self.ramp = record["baselines"]["vertical_ramp"]
        self.where = record["environment"]

    def quality(self, point: Point, dataset: str, metric: str = "delta1") -> float:
        return self.of[point]["quality"][dataset][metric]

    def mean(self, point: Point, names: Sequence[str] = OTHER_INDOOR) -> float:
        """delta1 over sets that are zero-shot, every one. ValueError: one is not."""
        if seen := learned_from(point[0]).intersection(names):
            raise ValueError(f"{point[0]}: learned from {', '.join(sorted(seen))}")
        return fmean(self.quality(point, name) for name in names)

    def ramp_mean(self, names: Sequence[str] = OTHER_INDOOR) -> float:
        return fmean(self.ramp[name]["delta1"] for name in names)

    @property
    def machine(self) -> str:
        """What the latencies were measured on."""
        threads = self.latency(next(iter(self.of)))["threads"]
        about = self.where
        where = f"{about['cpu']} ({', '.join(about['instructions'])}), {about['cores']} cores"
        return f"Measured on {where}, with {threads} threads, at commit {about['commit']}."

    def latency(self, point: Point) -> dict[str, Any]:
        entry = self.of[point]
        return entry["latency"][entry["engine"]]

    def speed_up(self, point: Point) -> float | None:
        """Against the point's own published graph; None where that could not be run, or is not known (of the peer)."""
        times = self.latency(point)
        return times["speedup_vs_reference"] if times["baseline"].startswith("published") else None

    def over_dense(self, point: Point) -> float | None:
        """Speed-up against the published graph at the dense network's size, in the same engine."""
        whole = ("dense", point[1], "fp32")
        if point == FASTDEPTH or whole not in self.of or self.speed_up(whole) is None:
            return None
        return self.latency(whole)["p50_ms"] * self.speed_up(whole) / self.latency(point)["p50_ms"]


def rows(heading: str, *lines: str) -> str:
    columns = heading.count("|") - 1
    return "\n".join([heading, "| --- |" + " ---: |" * (columns - 1), *lines])


def targets(figures: Figures) -> str:
    """The project's targets, each with what was found; that of speed in both its readings."""
    dense, peer = ("dense", "litert", "fp32"), FASTDEPTH
    inside = [point for point in figures.of if point[0] in NETWORKS]
    good = [p for p in inside if figures.quality(p, "nyu") >= figures.quality(dense, "nyu") - 0.02]
    better = [
        p
        for p in sorted(inside, key=lambda point: figures.latency(point)["p50_ms"])
        if figures.latency(p)["p50_ms"] < figures.latency(peer)["p50_ms"]
        and figures.quality(p, "nyu") > figures.quality(peer, "nyu")
    ]

    def line(target: str, found: str, reached: bool) -> str:
        return f"| {target} | {found} | {'yes' if reached else 'no'} |"

    ours, theirs = figures.quality(dense, "nyu"), figures.quality(peer, "nyu")
    lines = [
        line(
            "dense: delta1 on NYU at or above FastDepth INT8's", f"{ours:.3f}, FastDepth {theirs:.3f}", ours >= theirs
        ),
        line(
            f"dense: mean delta1 of the {len(OTHER_INDOOR)} other indoor sets, zero-shot, above FastDepth's",
            f"{figures.mean(dense):.3f}, FastDepth {figures.mean(peer):.3f}",
            figures.mean(dense) > figures.mean(peer),
        ),
    ]
    for at, ratio in ("the same input size", figures.speed_up), ("the dense network's", figures.over_dense):
        speed, fastest = max((ratio(point) or 0, point) for point in good)
        cost = 100 * (ours - figures.quality(fastest, "nyu"))
        lines.append(
            line(
                f"10x as fast as the published graph at {at} (FP32, same engine), within 2 points of our dense delta1",
                f"{named(fastest)}: {speed:.1f}x, {cost:.1f} points below",
                speed >= 10,
            )
        )
    found = "; ".join(
        f"{named(p)}: {figures.latency(p)['p50_ms']:.2f} ms, {figures.quality(p, 'nyu'):.3f}" for p in [*better, peer]
    )
    lines.append(line("faster and more accurate on NYU than FastDepth INT8", found, bool(better)))
    return f"{rows('| target | found | reached |', *lines)}\n\n{figures.machine}"


def times_faster(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1f}"


def named(point: Point) -> str:
    network, engine, precision = point
    return f"{network}, {precision.upper()}, {ENGINES[engine]}"


def speed(figures: Figures) -> str:
    """A row a file: accuracy on NYU, latency, size."""
    lines = []
    for point in sorted(figures.of, key=lambda point: figures.latency(point)["p50_ms"]):
        entry, times = figures.of[point], figures.latency(point)
        height, width = entry["model"]["input"]
        cells = [f"{figures.quality(point, 'nyu', metric):.3f}" for metric in ("delta1", "rmse", "mae")]
        cells += [f"{times['p50_ms']:.2f}", f"{times['p95_ms']:.2f}"]
        cells += [times_faster(figures.speed_up(point)), times_faster(figures.over_dense(point))]
        cells += [f"{entry['model']['file_bytes'] / 1e6:.1f}", f"{times['peak_rss_mb']:.0f}"]
        lines.append(f"| {named(point)}, {height} x {width} | " + " | ".join(cells) + " |")
    table = rows(
        "| file | delta1, NYU | RMSE, m | MAE, m | p50, ms | p95, ms | x, same size | x, 256 x 256 | MB | memory, MB |",
        *lines,
    )
    return f"{table}\n\n{figures.machine}"


def summary(figures: Figures) -> str:
    """README's table: the networks as they would be used on this CPU, beside FastDepth."""
    points = [("dense", "litert", "fp32"), *((network, "litert", "int8") for network in NETWORKS), FASTDEPTH]
    lines = []
    for point in [point for point in points if point in figures.of]:
        times, (height, width) = figures.latency(point), figures.of[point]["model"]["input"]
        accuracy = f"{figures.quality(point, 'nyu'):.3f} | {figures.mean(point):.3f}"
        name = f"{point[0]}, {point[2].upper()}, {height} x {width}"
        megabytes = figures.of[point]["model"]["file_bytes"] / 1e6
        faster = times_faster(figures.speed_up(point))
        lines.append(f"| {name} | {accuracy} | {times['p50_ms']:.1f} | {faster} | {megabytes:.1f} |")
    ramp = f"{figures.ramp['nyu']['delta1']:.3f} | {figures.ramp_mean():.3f}"
    lines.append(f"| vertical ramp, which ignores the image | {ramp} | | | |")
    table = rows("| in LiteRT | delta1, NYU | delta1, other indoor sets | ms | x | MB |", *lines)
    return f"{table}\n\nx: as fast as the published graph in FP32 at the same size. {figures.machine}"


def sets(figures: Figures) -> str:
    """delta1 of the networks on every set; none of one on a set that it learned from, but for NYU's test frames."""
    shown = [*((network, "litert", "fp32") for network in NETWORKS), ("channel 0.9", "litert", "int8")]
    shown = [point for point in [*shown, ("free", "litert", "fp32"), FASTDEPTH] if point in figures.of]
    seen = {point: learned_from(point[0]) - {"nyu"} for point in shown}

    def line(title: str, frames: object, ramp: float, names: Sequence[str]) -> str:
        cells = [
            "" if seen[point].intersection(names) else f"{fmean(figures.quality(point, n) for n in names):.3f}"
            for point in shown
        ]
        return f"| {title} | {frames} | {ramp:.3f} | " + " | ".join(cells) + " |"

    lines = [line(name, ramp["frames"], ramp["delta1"], [name]) for name, ramp in figures.ramp.items()]
    unseen = [name for name in OTHER_INDOOR if name not in set().union(*seen.values())]
    means = {f"mean of the {len(OTHER_INDOOR)} other indoor sets": OTHER_INDOOR}
    means |= {f"mean of the {len(unseen)} of these that no network here learned from": unseen}
    lines += [line(title, "", figures.ramp_mean(names), names) for title, names in means.items()]
    names = [f"{network}, {precision.upper()}" for network, _, precision in shown]
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
            axis.scatter(x, y, marker="*", s=160, color="black", zorder=4, label="FastDepth, INT8 (peer)")
        else:
            axis.scatter(x, y, marker=markers[point[2]], s=40, color=colours[point[0]], zorder=2)
    for name, colour in colours.items():
        axis.scatter([], [], color=colour, s=40, label=name)
    for precision, marker in markers.items():
        axis.scatter([], [], facecolor="none", edgecolor="black", marker=marker, s=40, label=precision.upper())
    axis.set_xscale("log", subs=[])
    axis.set_xticks([2, 3, 5, 10, 20, 50], ["2", "3", "5", "10", "20", "50"])
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
    for point, entry in zip(available(SENSOR), record["candidates"], strict=True):  # calibration renamed their files
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
