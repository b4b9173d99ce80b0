"""Plots, as PNG."""

import io

import matplotlib
from matplotlib.figure import Figure
from matplotlib.text import Text

from mde.names import plain

# Titles and labels hold people's names, in which two dollars begin and end no formula.
matplotlib.rcParams["text.parse_math"] = False


def drawable(figure: Figure) -> Figure:
    """The finished figure, its texts without what no font has: matplotlib refuses the bytes of a name that are none."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_text("\n".join(map(plain, text.get_text().split("\n"))))
    return figure


def blank(width: float, height: float) -> Figure:
    """An empty figure, in inches of 100 pixels, in which every text reads as it is."""
    return Figure(figsize=(width, height), layout="constrained", dpi=100)


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    drawable(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def curves(series: dict[str, list[tuple[int, float]]]) -> bytes:
    """PNG, one small plot for each logged series worth a look: losses, validation, learning rates, speed, health."""
    chosen = [
        key
        for key in series
        if key.startswith(("train/", "lr-", "health/")) or key.endswith(("/delta1", "/rmse", "/abs_rel"))
    ]
    columns = 3
    rows = -(-len(chosen) // columns)
    figure = blank(10.5, 2.3 * max(rows, 1))
    axes = figure.subplots(max(rows, 1), columns, squeeze=False).ravel()
    for axis, key in zip(axes, chosen, strict=False):
        steps, values = zip(*series[key], strict=True)
        axis.plot(steps, values, marker="." if len(steps) < 20 else None, linewidth=1.2)
        axis.set_title(key, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(chosen) :]:
        axis.set_axis_off()
    return png(figure)
