"""The times of a network's layers, `layers.csv` in a run directory, as a table with bars."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from mde.atomic_file import atomic_file
from mde.engines import ENGINES, LayerTime
from mde.report import html

SHOWN = 15


def write_layers(run_dir: Path, layers: Sequence[LayerTime]) -> None:
    """One row a layer, in the order in which they run: name, operator, milliseconds, share of their sum.

    No file where the profiler saw nothing, or nothing that took time.
    """
    total = sum(layer.ms for layer in layers)
    if not total:
        return
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["layer", "operator", "ms", "share"])
    writer.writerows([layer.name, layer.operator, f"{layer.ms:.4f}", f"{layer.ms / total:.4f}"] for layer in layers)
    with atomic_file(run_dir / "layers.csv") as file:
        file.write(text.getvalue().encode())


def layer_table(run_dir: Path, engine: str) -> str:
    """The SHOWN slowest layers as HTML; why there are none for an engine that does not say; else empty."""
    path = run_dir / "layers.csv"
    if not path.exists():
        reason = ENGINES[engine].no_profile if engine in ENGINES else ""
        return f"<p class='note'>{reason}.</p>" if reason else ""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    slowest = sorted(rows, key=lambda row: -float(row["ms"]))[:SHOWN]
    largest = max(float(row["share"]) for row in slowest)
    body = ""
    for row in slowest:
        share = float(row["share"])
        body += (
            f"<tr><td class='layer'>{html.text(row['layer'])}</td><td class='text'>{html.text(row['operator'])}"
            f"</td><td>{float(row['ms']):.3f}</td><td>{share:.1%}</td>"
            f"<td class='bar'><div style='width:{100 * share / largest:.1f}%'></div></td></tr>"
        )
    together = sum(float(row["share"]) for row in slowest)
    total = sum(float(row["ms"]) for row in rows)
    return (
        f"<table><tr><th>layer</th><th class='text'>operator</th><th>ms</th><th>share</th><th></th></tr>{body}</table>"
        f"<p class='note'>The {len(slowest)} slowest of {len(rows)} layers in {html.text(engine)}, {together:.0%} of "
        f"{total:.2f} ms; all are in layers.csv. Means, measured apart from the latency: timing each layer slows the "
        "network down, so compare layers with each other only.</p>"
    )
