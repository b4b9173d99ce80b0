"""What it costs to prune one group of channels alone."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mde.atomic_file import atomic_file
from mde.data.sample import Frames
from mde.evaluation.quality import evaluate, network_predictor
from mde.models.network import DepthNetwork
from mde.progress import track
from mde.pruning.cost import Layer, cost
from mde.pruning.recovery import corrected_statistics
from mde.pruning.structure import ChannelGroup, keep_channels
from mde.report.plots import blank, png

SHARES = (0.25, 0.5, 0.75)  # of a group's channels


def scan(
    model: DepthNetwork,
    groups: list[ChannelGroup],
    layers: list[Layer],
    scores: Mapping[str, Tensor],
    frames: Frames,
    images: Tensor,
    limit: int,
) -> list[dict[str, Any]]:
    """One row for each group and share: group, share, delta1 on `limit` of `frames`, and the shares of parameters and
    multiply-adds that go. `model` stays as it is; the first row is of it, with share 0."""
    height, width = images.shape[-2:]
    whole = {group.name: group.width for group in groups}
    total = cost(layers, whole)

    def delta1(network: DepthNetwork) -> float:
        return evaluate(network_predictor(network, (height, width)), frames, limit=limit)["delta1"]

    rows = [{"group": "", "share": 0.0, "delta1": delta1(model), "parameters": 0.0, "macs": 0.0}]
    tasks = [(group, share) for group in groups for share in SHARES if round(group.width * (1 - share)) > 0]
    for group, share in track(tasks, "pruning each group alone", transient=True):
        left = round(group.width * (1 - share))
        best = scores[group.name].argsort(descending=True)[:left].sort().values
        network = copy.deepcopy(model)
        with corrected_statistics(network, images):
            keep_channels(network, groups, {group.name: best})
        then = cost(layers, whole | {group.name: left})
        gone = {"parameters": 1 - then.parameters / total.parameters, "macs": 1 - then.macs / total.macs}
        rows.append({"group": group.name, "share": share, "delta1": delta1(network)} | gone)
    return rows


def plot_scan(rows: list[dict[str, Any]], path: Path) -> None:
    """PNG: delta1 lost, one line of bars a group and share; beside it what multiply-adds and parameters go."""
    dense, rows = rows[0]["delta1"], rows[1:]
    names = list(dict.fromkeys(row["group"] for row in rows))
    figure = blank(10.5, 0.24 * len(names) + 1.2)
    lost, gone = figure.subplots(1, 2, sharey=True)
    for share, colour in zip(SHARES, ("#fdcc8a", "#fc8d59", "#b30000"), strict=True):
        points = {row["group"]: row for row in rows if row["share"] == share}
        heights = [names.index(name) for name in points]
        drops = [100 * (dense - row["delta1"]) for row in points.values()]
        lost.scatter(drops, heights, s=18, color=colour, label=f"{share:.0%} of the channels")
    half = {row["group"]: row for row in rows if row["share"] == 0.5}
    heights = [names.index(name) for name in half]
    gone.barh([h - 0.2 for h in heights], [100 * row["macs"] for row in half.values()], 0.4, label="multiply-adds")
    gone.barh([h + 0.2 for h in heights], [100 * row["parameters"] for row in half.values()], 0.4, label="parameters")
    lost.set(title=f"delta1 lost, points (dense: {dense:.3f})", yticks=range(len(names)), yticklabels=names)
    gone.set(title="share that goes with half of the channels, %")
    lost.axvline(0, color="#999", linewidth=0.8)
    for axis in (lost, gone):
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    lost.invert_yaxis()
    with atomic_file(path) as file:
        file.write(png(figure))
