"""What a finished run leaves in W&B: its figures, a table with pictures, and sparsity as their axis."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger

from mde.names import file_name, plain
from mde.records import without_estimates
from mde.report.pictures import sheet_path
from mde.report.wandb_run import WandbRun

if TYPE_CHECKING:
    import wandb

QUALITY = ("delta1", "rmse", "mae", "abs_rel")  # columns of the table
SPARSITY = "model/sparsity"  # the axis on which dashboards set runs beside one another
TABLE = "results"


def log_results(loggers: Sequence[Logger], record: dict[str, Any], kind: str, run_dir: Path, step: int) -> None:
    """Logs the record of a finished run to those of its loggers that are W&B's; rank 0 only.

    kind      of pruning
    run_dir   where the sheet of every evaluated set is

    Keys: model/<key>, latency/<engine>/<key>, test/<dataset>/<metric>, test/<dataset>/pictures, and the table. A name
    of a set stands in them as in the sheets' names: W&B makes files of keys.
    """
    for logger in loggers:
        if isinstance(logger, WandbRun):
            with logger.spared():
                run = logger.experiment
                _define_axes(run)
                # W&B keeps the pictures of a table outside the run's files, so that each is logged by itself as well.
                sheets = {f"test/{file_name(name)}/pictures": _sheet(run_dir, name) for name in record["quality"]}
                sheets = {name: sheet for name, sheet in sheets.items() if sheet is not None}
                table = {TABLE: results_table(record, kind, run_dir)}
                run.log(_figures(record) | sheets | table | {"trainer/global_step": step})


def log_latency(logger: WandbRun, record: dict[str, Any]) -> None:
    """Logs to a W&B run what was measured after it had ended: latency/<engine>/<key>, and its axis."""
    latency = {"model": {"sparsity": record["model"]["sparsity"]}, "quality": {}, "latency": record["latency"]}
    with logger.spared():
        _define_axes(logger.experiment)
        logger.experiment.log(_figures(latency))


def _define_axes(run: Any) -> None:
    run.define_metric(SPARSITY)
    for prefix in ("test", "latency"):
        run.define_metric(f"{prefix}/*", step_metric=SPARSITY)


def results_table(record: dict[str, Any], kind: str, run_dir: Path) -> "wandb.Table":
    """A row for every evaluated set: sparsity reached, kind of pruning, dataset, quality, picture sheet."""
    import wandb

    table = wandb.Table(columns=["sparsity", "prune", "dataset", *QUALITY, "pictures"])
    for name, entry in record["quality"].items():
        figures = [entry[key] for key in QUALITY]
        table.add_data(record["model"]["sparsity"], kind, name, *figures, _sheet(run_dir, name))
    return table


def _figures(record: dict[str, Any]) -> dict[str, float]:
    entries = {"model": record["model"]}
    entries |= {f"val/{file_name(name)}": entry for name, entry in record.get("validation", {}).items()}
    entries |= {f"test/{file_name(name)}": entry for name, entry in record["quality"].items()}
    entries |= {f"latency/{engine}": entry for engine, entry in without_estimates(record["latency"]).items()}
    return {
        f"{prefix}/{key}": value
        for prefix, entry in entries.items()
        for key, value in entry.items()
        if isinstance(value, (int, float))
    }


def _sheet(run_dir: Path, name: str) -> "wandb.Image | None":
    import wandb

    path = sheet_path(run_dir, name)
    return wandb.Image(str(path), caption=plain(name)) if path.exists() else None
