"""The tables and figures of docs/results.md, from the records of the runs that results_steps names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.paired import CLEAR, Difference, PerFrame, over_sets
from benchmarks.results_steps import (
    ENGINES,
    FASTDEPTH,
    FREE,
    NETWORKS,
    OTHER_INDOOR,
    SENSOR,
    SUFFIX,
    ZEROED,
    available,
    files,
    learned_from,
)
from mde.engines import OPENVINO_DEFAULT
from mde.report.comparison_page import IN_DEPTH
from mde.report.sweep_page import draw_front
from mde.report.sweep_table import SweepJob

Point = tuple[str, str, str]  # network, engine, precision
DENSE: Point = ("dense", "litert", "fp32")


class Figures:
    """What the comparison found of each file."""

    def __init__(self, record: Mapping[str, Any], per_frame: PerFrame):
        points = files()
        self.of: dict[Point, dict[str, Any]] = {
            _point(points[entry["file"]], entry): entry
            for entry in record["candidates"]
            if entry["status"] == "complete"
        }
        self.ramp = record["baselines"]["vertical_ramp"]
        self.where = record["environment"]
        self.per_frame = per_frame

    def quality(self, point: Point, dataset: str, metric: str = "delta1") -> float:
        return self.of[point]["quality"][dataset][metric]

    def mean(self, point: Point, names: Sequence[str] = OTHER_INDOOR, fitted: str = "quality") -> float:
        """delta1 over sets that are zero-shot, every one. ValueError: one is not."""
        if seen := learned_from(point[0]).intersection(names):
            raise ValueError(f"{point[0]}: learned from {', '.join(sorted(seen))}")
        return fmean(self.of[point][fitted][name]["delta1"] for name in names)

    def ramp_mean(self, names: Sequence[str] = OTHER_INDOOR) -> float:
        return fmean(self.ramp[name]["delta1"] for name in names)

    def ahead(self, point: Point, other: Point, dataset: str = "nyu", in_depth: bool = False) -> Difference:
        """delta1 that a file has more than another; in_depth: than the other fitted in depth."""
        column = self.of[other]["name"] + IN_DEPTH * in_depth
        return self.per_frame.difference(self.of[point]["name"], column, dataset)

    def ahead_elsewhere(self, point: Point, other: Point, in_depth: bool = False) -> Difference:
        """Over the indoor sets that neither learned from."""
        names = self.unseen(point, other)
        return over_sets([self.ahead(point, other, name, in_depth) for name in names])

    def unseen(self, *points: Point) -> list[str]:
        """The other indoor sets that none of these learned from."""
        seen = set().union(*(learned_from(point[0]) for point in points))
        return [name for name in OTHER_INDOOR if name not in seen]

    @property
    def processor(self) -> str:
        about, threads = self.where, self.latency(next(iter(self.of)))["threads"]
        return f"{about['cpu']} ({', '.join(about['instructions'])}), {about['cores']} cores, with {threads} threads"

    @property
    def machine(self) -> str:
        """What the latencies were measured on."""
        return f"Measured on {self.processor}, at commit {self.where['commit']}."

    @property
    def errors(self) -> str:
        """What stands after ±, for under a table."""
        frames, scenes = self.ramp["nyu"]["frames"], self.per_frame.scenes("nyu")
        return (
            "±: standard error of the difference on the same frames, in points of delta1 (0.01); on NYU of "
            f"{frames} test frames by their {scenes} scenes, of other indoor sets (zero-shot) over the "
            f"{len(OTHER_INDOOR)} sets."
        )

    def latency(self, point: Point) -> dict[str, Any]:
        entry = self.of[point]
        return entry["latency"][entry["engine"]]

    def speed_up(self, point: Point) -> float | None:
        """Against the point's own published graph; None where that could not be run, or is not known (of the peer)."""
        times = self.latency(point)
        return times["speedup_vs_reference"] if times["baseline"].startswith("published") else None

    def over_dense(self, point: Point) -> float | None:
        """Speed-up against the published graph at the dense network's size, in the same engine."""
        return self._over(("dense", point[1], "fp32"), point)

    def over_default(self, point: Point) -> float | None:
        """Of a file in OpenVINO, against the published graph in what OpenVINO computes it in by itself, at the dense
        network's size.
        """
        whole = self.by_default
        return self._over(whole, point) if whole is not None and point[1] == "openvino" else None

    @property
    def by_default(self) -> Point | None:
        """The dense network in OpenVINO's own choice of precision."""
        return next((point for point in self.of if point[:2] == ("dense", OPENVINO_DEFAULT.name)), None)

    def _over(self, whole: Point, point: Point) -> float | None:
        if point == FASTDEPTH or whole not in self.of or self.speed_up(whole) is None:
            return None
        return self.latency(whole)["p50_ms"] * self.speed_up(whole) / self.latency(point)["p50_ms"]


def _point(listed: Point, entry: Mapping[str, Any]) -> Point:
    """A file that OpenVINO opened by default is listed once and compared twice."""
    network, _, _ = listed
    return (network, OPENVINO_DEFAULT.name, entry["precision"]) if entry["engine"] == OPENVINO_DEFAULT.name else listed


def rows(heading: str, *lines: str) -> str:
    columns = heading.count("|") - 1
    return "\n".join([heading, "| --- |" + " ---: |" * (columns - 1), *lines])


def targets(figures: Figures) -> str:
    """The project's targets, each with what was found on NYU and on sets that nobody learned from."""
    dense, peer = DENSE, FASTDEPTH
    inside = [point for point in figures.of if point[0] in NETWORKS and point[1] in SUFFIX]
    best = max(inside, key=lambda point: figures.quality(point, "nyu"))
    lines = []
    for name, there in ("on NYU, at or above", figures.ahead), ("zero-shot, above", figures.ahead_elsewhere):
        found = [there(dense, peer), there(dense, peer, in_depth=True)]
        told = f"{found[0]}; fitted in depth {found[1]}"
        cells = f"{told} |" if there == figures.ahead else f"| {told}"
        verdict = f"{found[0].verdict}; in depth: {found[1].verdict}"
        lines.append(f"| dense: delta1 {name} FastDepth INT8's | {cells} | {verdict} |")
    ratios = {
        "at the same input size (FP32, same engine)": figures.speed_up,
        "at the dense network's (FP32, same engine)": figures.over_dense,
    }
    if figures.by_default is not None:
        precision = figures.by_default[2].upper()
        ratios[f"at the dense network's, as OpenVINO computes it by default ({precision} here)"] = figures.over_default
    for at, ratio in ratios.items():
        fastest, verdict = near_and_fast(inside, ratio, lambda point: figures.ahead(point, dense))
        to_best = f", {figures.ahead(fastest, best)} to the best file here, {named(best)}" if best != dense else ""
        found = f"{named(fastest)}: {ratio(fastest):.1f}x; {figures.ahead(fastest, dense)} to dense{to_best}"
        elsewhere = f"{figures.ahead_elsewhere(fastest, dense)} to dense"
        target = f"10x as fast as the published graph {at}, within 2 points of our dense delta1 on NYU"
        lines.append(f"| {target} | {found} | {elsewhere} | {verdict} |")
    quicker = [p for p in inside if figures.latency(p)["p50_ms"] < figures.latency(peer)["p50_ms"]]
    verdicts = []
    for in_depth in (False, True):
        ahead = [p for p in quicker if figures.ahead(p, peer, in_depth=in_depth).verdict == "yes"]
        verdicts.append(", ".join(f"{named(p)} ({figures.latency(p)['p50_ms']:.2f} ms)" for p in ahead) or "none")
    found = f"{verdicts[0]}; fitted in depth: {verdicts[1]}; FastDepth {figures.latency(peer)['p50_ms']:.2f} ms"
    answers = ["no" if verdict == "none" else "yes" for verdict in verdicts]
    lines.append(
        f"| faster than FastDepth INT8 on this processor and clearly more accurate on NYU | {found} | | "
        f"{answers[0]}; in depth: {answers[1]} |"
    )
    table = rows("| target | NYU | other indoor sets, zero-shot | reached |", *lines)
    sizes = {point: " x ".join(map(str, figures.of[point]["model"]["input"])) for point in (dense, best)}
    about = (
        f"Dense is {named(dense)}, {sizes[dense]}: {figures.quality(dense, 'nyu'):.3f} on NYU, from whose other "
        f"frames all of these learned; {named(best)}, {sizes[best]}: {figures.quality(best, 'nyu'):.3f}. yes and no: "
        f"by more than {CLEAR} standard errors; open: by less. {figures.errors}"
    )
    return f"{table}\n\n{about}\n\n{figures.machine}"


def near_and_fast(
    points: Sequence[Point], ratio: Callable[[Point], float | None], to_dense: Callable[[Point], Difference]
) -> tuple[Point, str]:
    """The fastest file that is clearly less than 2 points below dense, where that is 10x; else the fastest that is
    less than 2 points below in the mean; and whether it reaches both.
    """

    def margin(point: Point) -> Difference:
        return Difference(to_dense(point).mean + 0.02, to_dense(point).error)

    def fastest(among: Sequence[Point]) -> Point:
        return max(among, key=lambda point: ratio(point) or 0)

    clear = [point for point in points if margin(point).verdict == "yes"]
    if clear and (ratio(fastest(clear)) or 0) >= 10:
        return fastest(clear), "yes"
    near = fastest([point for point in points if margin(point).mean >= 0])
    return near, "open" if (ratio(near) or 0) >= 10 else "no"


def peer(figures: Figures) -> str:
    """Against FastDepth, fitted in both ways: dense in FP32, and what is faster than it here."""
    limit = figures.latency(FASTDEPTH)["p50_ms"]
    quicker = [p for p in figures.of if p[0] in NETWORKS and p[1] in SUFFIX and figures.latency(p)["p50_ms"] < limit]
    shown = sorted({DENSE, *quicker}, key=lambda point: figures.latency(point)["p50_ms"])
    lines = []
    for point in shown:
        cells = [f"{figures.latency(point)['p50_ms']:.2f}"]
        for there in (figures.ahead, figures.ahead_elsewhere):
            cells += [str(there(point, FASTDEPTH)), str(there(point, FASTDEPTH, in_depth=True))]
        lines.append(f"| {named(point)} | " + " | ".join(cells) + " |")
    table = rows(
        "| points of delta1 above FastDepth's | ms | NYU | NYU, FastDepth fitted in depth | other indoor sets | "
        "other indoor sets, FastDepth fitted in depth |",
        *lines,
    )
    return f"{table}\n\n{both_fits(figures)} It takes {limit:.2f} ms. {figures.errors} {figures.machine}"


def both_fits(figures: Figures) -> str:
    own, line = figures.of[FASTDEPTH]["quality_in_depth"]["nyu"]["delta1"], figures.quality(FASTDEPTH, "nyu")
    elsewhere = figures.mean(FASTDEPTH), figures.mean(FASTDEPTH, fitted="quality_in_depth")
    return (
        f"FastDepth predicts depth, and is fitted in inverse depth as all others are: delta1 {line:.3f} on NYU, "
        f"{elsewhere[0]:.3f} on the other indoor sets. Fitted in depth it has {own:.3f} and {elsewhere[1]:.3f}."
    )


def card(figures: Figures, network: str) -> str:
    """A shipped network beside dense and FastDepth, for its model card."""
    point, small = (network, "litert", "fp32"), (network, "litert", "int8")
    others = [("FastDepth INT8's", FASTDEPTH, False), ("FastDepth INT8's, fitted in depth,", FASTDEPTH, True)]
    if point != DENSE:
        others.insert(0, ("[dense](midas_small.md)'s", DENSE, False))
    lines = [
        f"| {title} | {figures.ahead(point, other, in_depth=fit)} | {figures.ahead_elsewhere(point, other, fit)} |"
        for title, other, fit in others
    ]
    names = ", ".join(figures.unseen(point))
    table = rows("| points of delta1 above | NYU | mean of other indoor sets |", *lines)
    times = ", ".join(
        f"{named(each)} {figures.latency(each)['p50_ms']:.1f}"
        for each in (point, small, FASTDEPTH)
        if each in figures.of
    )
    return (
        f"{table}\n\nThis file as {named(point)}. Other indoor sets, which neither learned from: {names}. ±: standard "
        f"error of the difference on the same frames, on NYU ({figures.ramp['nyu']['frames']} test frames) by its "
        f"{figures.per_frame.scenes('nyu')} scenes, else over sets. One image takes, in ms: {times}. {figures.machine}"
    )


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
    return f"{table}\n\n{default_note(figures)}{figures.machine}"


def default_note(figures: Figures) -> str:
    whole, held = figures.by_default, ("dense", "openvino", "fp32")
    if whole is None or held not in figures.of:
        return ""
    times = [figures.latency(point)["p50_ms"] for point in (held, whole)]
    return (
        "OpenVINO is held to FP32, but for its row by default: left alone it computes FP32 files in "
        f"{whole[2].upper()} on this processor, dense in {times[1]:.1f} ms instead of {times[0]:.1f} "
        f"({figures.ahead(whole, held)} points of delta1 on NYU), and every x of a file in OpenVINO is "
        f"{_baselines(figures, held, whole):.1f} times smaller against that published graph. "
    )


def _baselines(figures: Figures, held: Point, whole: Point) -> float:
    """How many times as long the published graph takes held to FP32."""
    slow, quick = (figures.latency(point)["p50_ms"] * (figures.speed_up(point) or 1) for point in (held, whole))
    return slow / quick


def summary(figures: Figures) -> str:
    """README's table: the networks as they would be used on this CPU, beside FastDepth."""
    points = [DENSE, *((network, "litert", "int8") for network in NETWORKS), FASTDEPTH]
    lines = []
    for point in [point for point in points if point in figures.of]:
        times, (height, width) = figures.latency(point), figures.of[point]["model"]["input"]
        accuracy = f"{figures.quality(point, 'nyu'):.3f} | {figures.mean(point):.3f}"
        ahead = "" if point == FASTDEPTH else str(figures.ahead(point, FASTDEPTH))
        beyond = "" if point == FASTDEPTH else str(figures.ahead(point, FASTDEPTH, in_depth=True))
        name = f"{point[0]}, {point[2].upper()}, {height} x {width}"
        megabytes = figures.of[point]["model"]["file_bytes"] / 1e6
        faster = times_faster(figures.speed_up(point))
        lines.append(
            f"| {name} | {accuracy} | {ahead} | {beyond} | {times['p50_ms']:.1f} | {faster} | {megabytes:.1f} |"
        )
        if point == FASTDEPTH:
            own = figures.of[point]["quality_in_depth"]["nyu"]["delta1"]
            elsewhere = figures.mean(point, fitted="quality_in_depth")
            lines.append(f"| the same, fitted in depth | {own:.3f} | {elsewhere:.3f} | | | | | |")
    ramp = f"{figures.ramp['nyu']['delta1']:.3f} | {figures.ramp_mean():.3f}"
    lines.append(f"| vertical ramp, which ignores the image | {ramp} | | | | | |")
    table = rows(
        "| in LiteRT | delta1, NYU | delta1, other indoor sets | NYU, points above FastDepth | fitted in depth "
        "| ms | x | MB |",
        *lines,
    )
    about = (
        "FastDepth predicts depth: it is fitted in inverse depth, as all others are, and once in depth. x: as fast as "
        "the published graph in FP32 in LiteRT at the same size."
    )
    return f"{table}\n\n{about} {figures.errors} {figures.machine}"


def sets(figures: Figures) -> str:
    """delta1 of the networks on every set; none of one on a set that it learned from, but for NYU's test frames."""
    shown = [*((network, "litert", "fp32") for network in NETWORKS), ("channel 0.9", "litert", "int8")]
    shown = [point for point in [*shown, ("free", "litert", "fp32"), FASTDEPTH] if point in figures.of]
    seen = {point: learned_from(point[0]) - {"nyu"} for point in shown}
    columns = [(point, "quality") for point in shown] + [(FASTDEPTH, "quality_in_depth")]

    def line(title: str, frames: object, ramp: float, names: Sequence[str]) -> str:
        cells = [
            ""
            if seen[point].intersection(names)
            else f"{fmean(figures.of[point][fitted][name]['delta1'] for name in names):.3f}"
            for point, fitted in columns
        ]
        return f"| {title} | {frames} | {ramp:.3f} | " + " | ".join(cells) + " |"

    lines = [line(name, ramp["frames"], ramp["delta1"], [name]) for name, ramp in figures.ramp.items()]
    unseen = figures.unseen(*shown)
    means = {f"mean of the {len(OTHER_INDOOR)} other indoor sets": OTHER_INDOOR}
    means |= {f"mean of the {len(unseen)} of these that no network here learned from": unseen}
    lines += [line(title, "", figures.ramp_mean(names), names) for title, names in means.items()]
    names = [f"{network}, {precision.upper()}" for network, _, precision in shown]
    head = "| delta1 | frames | vertical ramp | " + " | ".join([*names, "FastDepth, INT8, fitted in depth"]) + " |"
    apart = [
        f"| {name} | {figures.ahead(point, DENSE)} | {figures.ahead_elsewhere(point, DENSE)} | "
        f"{len(figures.unseen(point))} |"
        for name, point in zip(names, shown, strict=True)
        if point != DENSE
    ]
    against = rows(
        "| points of delta1 above dense's, FP32 | NYU | other indoor sets | of them, not learned from |", *apart
    )
    return f"{rows(head, *lines)}\n\n{against}\n\n{figures.errors}"


def pareto(figures: Figures, path: Path) -> None:
    """delta1 on NYU against latency."""
    points = {
        named(point): (figures.latency(point)["p50_ms"], figures.quality(point, "nyu"), point) for point in figures.of
    }
    figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=110)
    axis = figure.subplots()
    draw_front(axis, [(x, y) for x, y, _ in points.values()])
    markers = {"int8": "o", "fp32": "s", "float16": "^", "bf16": "D"}
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


def pruned_table(jobs: list[SweepJob], kind: str) -> str:
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
    table = rows(
        "| sparsity | zero or gone | not zero, M | delta1 | RMSE, m | MAE, m | ONNX Runtime, x | OpenVINO, x |",
        *lines,
    )
    if not chosen:
        return table
    frames, about = chosen[0].record["quality"]["nyu"]["frames"], chosen[0].record["environment"]
    return f"{table}\n\nNYU, {frames} test frames. x: OpenVINO held to FP32, on {about['cpu']}, {about['cores']} cores."


def against_sensor(record: Mapping[str, Any], figures: Figures) -> str:
    """A row for each network against the emulated L515, with its time in the table of speed, where it runs alone."""
    lines, ratios = [], []
    for point, entry in zip(available(SENSOR), record["candidates"], strict=True):  # calibration renamed their files
        plain, frozen = (
            next(v for k, v in entry["quality"].items() if k.endswith("_calibrated") == end) for end in (False, True)
        )
        times, alone = entry["stages"], figures.latency(point)["p50_ms"]
        ratios.append(times["infer"]["mean_ms"] / alone)
        cells = [f"{plain[metric]:.3f}" for metric in ("delta1", "rmse", "mae", "abs_rel")]
        cells += [f"{frozen[metric]:.3f}" for metric in ("rmse", "abs_rel")]
        cells += [f"{times[stage]['mean_ms']:.1f}" for stage in ("preprocess", "infer", "postprocess")]
        lines.append(f"| {named(point)} | " + " | ".join([*cells, f"{alone:.1f}"]) + " |")
    table = rows(
        "| network | delta1 | RMSE, m | MAE, m | AbsRel | one scale: RMSE, m | AbsRel | pre, ms | net, ms | post, ms | "
        "net alone, ms |",
        *lines,
    )
    about = (
        f"{plain['frames']} frames of one rendered scene, so without an error bar. The network's mean time is here "
        f"{min(ratios):.1f} to {max(ratios):.1f} times its median in the table of speed (net alone): capture and "
        f"alignment to colour run beside it, in a thread on the same {record['environment']['cores']} cores "
        f"({record['environment']['cpu']})."
    )
    return f"{table}\n\n{about}"
