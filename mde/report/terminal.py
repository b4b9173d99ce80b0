"""What a person reads in the terminal."""

from typing import Any

from rich.console import Console
from rich.table import Table

from mde.report.cost import cost_table

_console = Console(soft_wrap=True)


def say(line: str) -> None:
    """One line of progress or result."""
    _console.print(line, highlight=False, markup=False)


def show_quality(record: dict[str, Any]) -> None:
    """The quality entries beside their baselines, as a table."""
    table = Table("dataset", "predictor")
    columns = ("frames", "delta1", "rmse", "mae", "abs_rel")
    for column in columns:
        table.add_column(column, justify="right")
    for dataset, entry in record["quality"].items():
        table.add_row(dataset, record["model"]["name"], *(_cell(entry[column]) for column in columns))
        if "before" in record:
            before = record["before"]["quality"][dataset]
            table.add_row("", "before", *(_cell(before[column]) for column in columns))
        for name, baseline in record.get("baselines", {}).items():
            table.add_row("", name.replace("_", " "), *(_cell(baseline[dataset][column]) for column in columns))
    _console.print(table)


def show_cost(record: dict[str, Any]) -> None:
    """Size and speed of the published graph, of the network before, and of the network."""
    head, *rows = cost_table(record)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    _console.print(table)


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
