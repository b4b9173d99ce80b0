"""What Hydra tells us: where a run or a multirun will write, before it does; that a worker process has begun."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mde.app.jobs import job_name, sweep_name
from mde.config import register_schema
from mde.engines import targets
from mde.errors import MdeError
from mde.names import plain
from mde.runs import LAST, claim, leads, link_out, used


def register() -> None:
    """Makes schema and resolvers known to Hydra in this process."""
    register_schema(targets())
    OmegaConf.register_new_resolver("mde.run_dir", lambda resume, new: resume or new, replace=True)
    OmegaConf.register_new_resolver("mde.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("mde.sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("mde.trials_left", _trials_left, replace=True)


_taken = contextlib.ExitStack()  # of this process, until it ends


class SweepCallback(Callback):
    """Refuses the directory of another run, and remembers the sweep's in the process that started it, where
    `mde.app.entry.run` makes the page.

    Not Hydra's `on_multirun_end`: that is not called when a worker dies or the launcher raises.
    """

    directory: Path | None = None  # of the class: Hydra keeps the instance to itself

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        HydraConfig.instance().set_config(config)  # as Hydra does next: the directory's name may ask for it
        directory = Path(config.hydra.run.dir)
        go_on = "resume" if "resume" in config else None
        with _ended_in_one_line():
            _take(directory, "hydra.run.dir", go_on, config.get("resume"))

    def on_run_end(self, config: DictConfig, **_: Any) -> None:
        _taken.close()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        directory = Path(config.hydra.sweep.dir).resolve()
        with _ended_in_one_line():
            check(config)
            _take(directory, "hydra.sweep.dir", "sweep.resume", config.sweep.resume)
        logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's: announces each part of itself
        SweepCallback.directory = directory

    def __reduce__(self) -> tuple[Any, ...]:
        # Launchers pickle the callbacks along with each job, and a worker process knows none of our resolvers.
        return _in_worker, ()


@contextlib.contextmanager
def _ended_in_one_line() -> Iterator[None]:
    """An ordinary exception of a callback would become a warning."""
    try:
        yield
    except MdeError as error:
        print(f"error: {plain(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def _take(directory: Path, option: str, go_on: str | None, resumed: str | None) -> None:
    """Claims the directory for this process.

    option   names the directory
    go_on    names a directory to go on with, where there is such an option
    resumed  its value

    MdeError where it holds results and is not to go on with, leads elsewhere, or another process has it.
    """
    same = resumed is not None and Path(resumed).resolve() == directory.resolve()
    if same and not directory.is_dir():
        raise MdeError(f"{go_on}={resumed}: no such folder; name what was interrupted")
    if link := link_out(directory):
        raise MdeError(f"{link}: a link out of {directory}, to {os.path.realpath(link)}; put what it names there")
    _taken.close()
    _taken.enter_context(claim(directory, option))
    jobs = go_on == "sweep.resume" and bool(_jobs(directory))
    if (jobs or used(directory)) and not same and leads():
        _taken.close()
        further = f", or go on with {go_on}={directory}" if jobs or (go_on and (directory / LAST).exists()) else ""
        raise MdeError(f"{directory}: holds results already; choose another {option}{further}")


def _in_worker() -> SweepCallback:
    register()
    return SweepCallback()


def check(config: DictConfig) -> None:
    """MdeError for a sweep that cannot begin: a directory that is not there, contradicting options."""
    sweep = config.sweep
    if sweep.resume and not (Path(sweep.resume) / "multirun.yaml").exists() and not _jobs(Path(sweep.resume)):
        raise MdeError(f"sweep.resume={sweep.resume}: holds no jobs of a sweep; name a directory in outputs/sweeps")
    if sweep.cost not in ("macs", "latency_ms"):
        raise MdeError(f"sweep.cost={sweep.cost}: unknown; choose macs or latency_ms")
    if sweep.cost == "latency_ms" and not config.measure.rounds:
        raise MdeError("sweep.cost=latency_ms: not with measure.rounds=0, which measures nothing")
    if "target" in config and not config.hydra.launcher._target_.endswith("BasicLauncher"):
        raise MdeError("hydra/launcher: deploy.py measures, so its jobs run one after the other; leave it out")
    if sweep.cost == "latency_ms" and config.hydra.sweeper.get("n_jobs") != 1:
        raise MdeError("sweep.cost=latency_ms: only in a serial search, sweep=optuna with hydra.sweeper.n_jobs=1")


def _trials_left(total: int, directory: str) -> int:
    from mde.app.search import trials_left  # imports optuna, which only a search needs

    return trials_left(total, directory)


def _jobs(directory: Path) -> list[Path]:
    return list(directory.glob("*/.hydra/overrides.yaml"))
