"""The W&B workspace in which runs stand beside one another: its panels, and the keys that they show."""

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import PanelTypes

from mde.report.wandb_results import SPARSITY, TABLE

STEP = "trainer/global_step"


def workspace(entity: str, project: str, datasets: list[str], engines: list[str]) -> ws.Workspace:
    """The dashboard, not saved yet.

    datasets  evaluated sets, by the names under which runs log them
    engines   those that latency was measured in
    """
    return ws.Workspace(
        entity=entity,
        project=project,
        name="mde: accuracy against sparsity and cost",
        sections=[
            _section("Accuracy against sparsity", [panel for name in datasets for panel in _against_sparsity(name)]),
            _section("Accuracy against cost", [panel for name in datasets for panel in _against_cost(name, engines)]),
            _section("Sweeps", [panel for name in datasets for panel in _sweeps(name)]),
            _section("Pictures and tables", _pictures(datasets), columns=1),
            _section("Training", _training(datasets)),
        ],
        # W&B draws a group as its mean. With the name below the sweep, each run is a group of its own, and a point.
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Metric("Group"), expr.Metric("Name")],
            order=[expr.Ordering(expr.Summary(SPARSITY), ascending=True)],
            pinned_columns=[
                "config:prune.value.kind",
                f"summary:{SPARSITY}",
                f"summary:test/{datasets[0]}/delta1",
                "summary:model/macs",
            ],
        ),
    )


def _section(name: str, panels: list[PanelTypes], columns: int = 3) -> ws.Section:
    settings = ws.SectionLayoutSettings(columns=columns, rows=2)
    return ws.Section(name=name, panels=panels, is_open=True, layout_settings=settings)


def _against_sparsity(dataset: str) -> list[PanelTypes]:
    """One line a kind of pruning, and every run as a point."""
    line = _mean_line(dataset, "by kind of pruning", wr.Config("prune.kind"))
    points = [_scatter(dataset, metric, SPARSITY, "sparsity") for metric in ("delta1", "abs_rel", "rmse")]
    return [line, *points]


def _against_cost(dataset: str, engines: list[str]) -> list[PanelTypes]:
    """Multiply-adds and parameters of every run; latency of those that measured it."""
    costs = {"model/macs": "multiply-adds", "model/nonzero_parameters": "non-zero parameters"}
    costs |= {f"latency/{engine}/p50_ms": f"median latency, ms, {engine}" for engine in engines}
    return [_scatter(dataset, "delta1", key, label) for key, label in costs.items()]


def _scatter(dataset: str, metric: str, cost: str, label: str) -> PanelTypes:
    return wr.ScatterPlot(
        title=f"{dataset}: {metric} against {label}",
        x=wr.SummaryMetric(cost),
        y=wr.SummaryMetric(f"test/{dataset}/{metric}"),
        legend_template="${run:displayName} ${config:prune.value.kind}",
    )


def _mean_line(dataset: str, title: str, groupby: wr.Config | wr.Metric) -> wr.LinePlot:
    """delta1 against sparsity: the mean and range of each group of runs."""
    return wr.LinePlot(
        title=f"{dataset}: delta1 {title}",
        x=SPARSITY,
        y=[f"test/{dataset}/delta1"],
        title_x="sparsity",
        groupby=groupby,
        groupby_aggfunc="mean",
        groupby_rangefunc="minmax",
    )


def _sweeps(dataset: str) -> list[PanelTypes]:
    line = _mean_line(dataset, "against sparsity by sweep", wr.Metric("Group"))
    best = wr.BarPlot(
        title=f"{dataset}: best delta1 of each sweep",
        metrics=[f"test/{dataset}/delta1"],
        groupby=wr.Metric("Group"),
        groupby_aggfunc="max",
    )
    return [line, best]


def _pictures(datasets: list[str]) -> list[PanelTypes]:
    """The table of all runs, the sheet of each run by set, and how the validation pictures changed in training."""
    table = wr.WeavePanelSummaryTable(table_name=TABLE)
    sheets = [
        wr.MediaBrowser(title=f"{name}: each run", media_keys=[f"test/{name}/pictures"], gallery_axis="run")
        for name in datasets
    ]
    course = wr.MediaBrowser(
        title="validation, in the course of training", media_keys=["pictures"], gallery_axis="step"
    )
    return [table, *sheets, course]


def _training(datasets: list[str]) -> list[PanelTypes]:
    curves = {
        "loss": ["train/loss"],
        "validation delta1": [f"val/{name}/delta1" for name in datasets],
        "validation abs_rel": [f"val/{name}/abs_rel" for name in datasets],
        "learning rate": ["lr-AdamW/encoder", "lr-AdamW/decoder"],
        "images a second": ["train/images_per_second"],
        "share of time spent waiting for data": ["train/data_wait_share"],
    }
    return [wr.LinePlot(title=title, x=STEP, y=[*keys], title_x="step") for title, keys in curves.items()]
