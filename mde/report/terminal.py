"""What a person reads in the terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mde.names import plain
from mde.report.cost_table import cost_table

_console = Console(soft_wrap=True)


def say(line: str) -> None:
    """One line of progress or result."""
    _console.print(plain(line), highlight=False, markup=False)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    """As wide as it is, with a line of the heading after each comma: the table of many columns."""
    about = Text("\n".join(map(plain, title.split("\n"))))
    shown = Table(title=about, box=box.SIMPLE_HEAD, padding=(0, 1), title_justify="left")
    for heading in headings:
        shown.add_column(Text(plain(heading).replace(", ", "\n")), justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(*map(_text, row))
    console = Console()
    # A log file counts as 80 columns, in which nothing could be read: rather let a narrow terminal wrap.
    console.width = max(console.width, console.measure(shown, options=console.options.update(max_width=1000)).maximum)
    console.print(shown)


def show_quality(record: dict[str, Any]) -> None:
    """The quality entries beside their baselines, as a table."""
    table = Table("dataset", "predictor")
    columns = ("frames", "delta1", "rmse", "mae", "abs_rel")
    for column in columns:
        table.add_column(column, justify="right")
    name = record["model"]["name"]
    for dataset, entry in record.get("validation", {}).items():
        table.add_row(_text(f"{dataset}: validation"), _text(name), *(_cell(entry[column]) for column in columns))
    for dataset, entry in record["quality"].items():
        table.add_row(_text(dataset), _text(name), *(_cell(entry[column]) for column in columns))
        if "before" in record:
            before = record["before"]["quality"][dataset]
            table.add_row("", "before", *(_cell(before[column]) for column in columns))
        for other, baseline in record.get("baselines", {}).items():
            table.add_row("", other.replace("_", " "), *(_cell(baseline[dataset][column]) for column in columns))
    _console.print(table)


def show_cost(record: dict[str, Any]) -> None:
    """Size and speed of the published graph, of the network before, and of the network."""
    head, *rows = cost_table(record)
    table = Table()
    for heading in head:
        table.add_column(_text(heading))
    for row in rows:
        table.add_row(*map(_text, row))
    _console.print(table)


def _text(cell: object) -> Text:
    """Text, whatever it holds: rich would take [red] in a str for a colour."""
    return Text(plain(cell))


def _cell(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
