"""`python -m mde.models`: what each network here has and needs, beside the paper's section 2.2."""

import argparse
import sys

import torch
from rich.console import Console
from rich.table import Table

from mde.errors import MdeError
from mde.models.build import build_model
from mde.models.counts import layer_parameters, listed_memory, multiply_adds
from mde.models.network import check_size
from mde.models.registry import NETWORKS
from mde.speed.forward import RUNS, measure_forward

# Parameters, and "memory" in MB at PAPER_SIZE (Haly and Malcarne, section 2.2).
PAPER_SIZE = (256, 256)
PAPER = {
    "midas_small": (16_600_929, 867.02),
    "dpt_hybrid": (120_753_921, 2184.29),
    "dpt_large": (341_258_433, 3385.56),
}
LABELS = {
    "executed": "parameters, executed",
    "layers": "  without embeddings",
    "paper_parameters": "  the paper",
    "published": "  in the published network",
    "macs": "multiply-adds, G",
    "listed": "torchsummary's memory, MiB",
    "paper_listed": "  the paper",
    "peak": "peak memory, MB",
    "idle": "  of it PyTorch alone",
    "ms": "one image, ms",
}


def figures(name: str, size: tuple[int, int], measure: bool) -> dict[str, str]:
    """Key of LABELS -> the figure of one network for images of `size`, in words."""
    model = build_model(name, reference=True)
    executed = sum(parameter.numel() for parameter in model.parameters())
    parameters, listed = PAPER.get(name, (None, None))
    found = {
        "executed": f"{executed:,}",
        "layers": f"{layer_parameters(model):,}",
        "paper_parameters": f"{parameters:,}" if parameters else "-",
        "published": f"{executed + model.never_executed:,}",
        "macs": f"{multiply_adds(model, size) / 1e9:.3f}",
        "listed": f"{listed_memory(model, size):.2f}",
        "paper_listed": f"{listed:.2f}" if listed and size == PAPER_SIZE else "-",
    }
    del model  # the process that measures needs the memory
    if measure:
        measured = measure_forward(name, size)
        found |= {
            "peak": f"{measured['peak_mb']:,.0f}",
            "idle": f"{measured['idle_mb']:,.0f}",
            "ms": f"{measured['ms']:,.0f}",
        }
    return found


def table_of(rows: dict[str, dict[str, str]]) -> Table:
    """Network -> its figures, as a table with a column for each network."""
    table = Table("")
    for name in rows:
        table.add_column(name, justify="right")
    for key, label in LABELS.items():
        cells = [found.get(key) for found in rows.values()]
        if all(cells):
            table.add_row(label, *cells)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m mde.models", description="The table of networks.")
    parser.add_argument("--size", nargs=2, type=int, default=(256, 256), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--no-measure", dest="measure", action="store_false", help="count only: no memory, no latency")
    options = parser.parse_args()
    console = Console()
    try:
        size = check_size(options.size)
        rows = {}
        for name in NETWORKS:
            with console.status(name):
                rows[name] = figures(name, size, options.measure)
    except MdeError as error:
        sys.exit(f"error: {error}")
    console.print(table_of(rows))
    console.print(
        f"{size[0]} x {size[1]}, the published order of operations, random weights. torchsummary counts what every "
        "module puts out, twice, and frees nothing: the same network made of other modules, as in the paper, has "
        "another figure.",
        soft_wrap=True,
    )
    if options.measure:
        threads = torch.get_num_threads()
        console.print(f"Measured in PyTorch, FP32, {threads} threads, a process each; median of {RUNS} passes.")


if __name__ == "__main__":
    main()
