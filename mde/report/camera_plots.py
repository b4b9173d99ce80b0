"""Plots of an evaluation against a depth sensor: frame by frame, and where the errors are. Candidates keep the numbers
and colours that they have in the table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from mde.report.plots import blank, png

TIMES = ("preprocess_ms", "infer_ms", "postprocess_ms")
LABEL = 60  # letters of a name in a legend: the last ones, which tell files apart
POINTS = 200  # along a line, at most; of longer runs each is a mean

Columns = dict[str, np.ndarray]  # of frames.csv: float (rows,), NaN where nothing stands


def read_frames(path: Path) -> dict[str, Columns]:
    """frames.csv by candidate."""
    rows: dict[str, list[dict[str, float]]] = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            numbers = {key: float(value or "nan") for key, value in row.items() if key != "candidate"}
            rows.setdefault(row["candidate"], []).append(numbers)
    return {name: {key: np.array([row[key] for row in own]) for key in own[0]} for name, own in rows.items()}


def frames_plot(names: Mapping[int, str], frames: Mapping[str, Columns]) -> bytes:
    """PNG: RMSE, latency and the sensor's coverage over the frames; a line for each candidate, number -> name."""
    figure = blank(10.5, 6.8)
    top, middle, bottom = figure.subplots(3, sharex=True, height_ratios=[3, 3, 1.5])
    longest = max((frames[name] for name in names.values()), key=lambda columns: len(columns["frame"]))
    count = len(longest["frame"])
    group = -(-count // POINTS)
    style: dict[str, Any] = {"linewidth": 1.1, "marker": "." if count < 20 else None}
    for number, name in names.items():
        columns = frames[name]
        x, own = means(columns["frame"], group), style | {"color": colour(number)}
        top.plot(x, means(columns["rmse"], group), label=f"{number}  {name[-LABEL:]}", **own)
        middle.plot(x, means(np.sum([columns[key] for key in TIMES], axis=0), group), **own)
    # The frames are the same for all, but for those that broke off.
    bottom.plot(means(longest["frame"], group), means(longest["coverage"], group), color="0.4", **style)
    labels = {top: "RMSE (m)", middle: "latency (ms)", bottom: "coverage"}
    for axis, label in labels.items():
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    top.set_ylim(bottom=0)
    middle.set_ylim(bottom=0)
    bottom.set_ylim(0, 1.02)
    bottom.set_xlabel("frame" if group == 1 else f"frame (each point is the mean of {group} frames)")
    figure.legend(loc="outside upper center", fontsize=8, ncols=2)
    return png(figure)


def means(values: np.ndarray, group: int) -> np.ndarray:
    """Of every `group` consecutive values, those that are known; NaN where none is."""
    padded = np.append(values, np.full(-len(values) % group, np.nan)).reshape(-1, group)
    known = np.isfinite(padded)
    count = known.sum(axis=1)
    return np.where(count, np.where(known, padded, 0).sum(axis=1) / np.maximum(count, 1), np.nan)


def breakdown_plot(candidates: Mapping[int, tuple[str, dict[str, Any]]]) -> bytes:
    """PNG of what `ErrorBreakdown.compute` gave, number -> (name, breakdown): RMSE and AbsRel by distance, AbsRel at
    depth edges and by brightness."""
    figure = blank(10.5, 6.4)
    (left, right), (edges, brightness) = figure.subplots(2, 2)
    _, first = next(iter(candidates.values()))
    for axis, key, label in ((left, "rmse", "RMSE (m)"), (right, "abs_rel", "AbsRel")):
        _pixels_behind(axis, first["distance"])
        for number, (name, breakdown) in candidates.items():
            bins = breakdown["distance"]
            x = [(row["from"] + row["to"]) / 2 for row in bins]
            y = [np.nan if row[key] is None else row[key] for row in bins]
            axis.plot(x, y, marker="o", markersize=3.5, color=colour(number), label=f"{number}  {name[-LABEL:]}")
        axis.margins(y=0.15)
        axis.set_xlim(0, max((row["to"] for row in first["distance"] if row["pixels"]), default=1))
        axis.set_xlabel("distance (m)")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    _bars(edges, {number: one["edges"] for number, (_, one) in candidates.items()}, [r["name"] for r in first["edges"]])
    levels = [f"{row['from']} to {row['to'] - 1}" for row in first["brightness"]]
    _bars(brightness, {number: one["brightness"] for number, (_, one) in candidates.items()}, levels)
    brightness.set_xlabel("brightness")
    lines, names = left.get_legend_handles_labels()
    figure.legend(lines, names, loc="outside upper center", fontsize=8, ncols=2)
    return png(figure)


def colour(number: int) -> str:
    return f"C{(number - 1) % 10}"


def _pixels_behind(axis: Axes, bins: Sequence[dict[str, Any]]) -> None:
    """The share of pixels in each bin of distance, as grey bars on a scale of their own."""
    behind = axis.twinx()
    shares = _shares(bins)
    behind.bar(
        [row["from"] for row in bins], shares, [row["to"] - row["from"] for row in bins], align="edge", color="0.9"
    )
    behind.set_ylim(0, max(*shares, 0.01) * 1.6)
    behind.set_yticks([])
    axis.set_zorder(behind.get_zorder() + 1)
    axis.patch.set_visible(False)


def _bars(axis: Axes, bins: Mapping[int, Sequence[dict[str, Any]]], names: Sequence[str]) -> None:
    """AbsRel in each bin, candidates beside one another; the share of pixels under each name."""
    width = 0.8 / len(bins)
    for place, (number, own) in enumerate(bins.items()):
        x = np.arange(len(own)) - 0.4 + width * (place + 0.5)
        axis.bar(x, [row["abs_rel"] or 0 for row in own], width * 0.92, color=colour(number))
    shares = _shares(next(iter(bins.values())))
    labels = [f"{name}\n{share:.1%} of pixels" for name, share in zip(names, shares, strict=True)]
    axis.set_xticks(range(len(names)), labels, fontsize=8)
    axis.set_ylabel("AbsRel")
    axis.grid(axis="y", alpha=0.3)
    axis.set_axisbelow(True)


def _shares(bins: Sequence[dict[str, Any]]) -> list[float]:
    pixels = sum(row["pixels"] for row in bins)
    return [row["pixels"] / pixels if pixels else 0.0 for row in bins]
