"""What Hydra tells us of a multirun: its directory, before any job; and that a worker process has begun."""

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from mde.config import register_schema
from mde.errors import MdeError
from mde.sweep.jobs import job_name, sweep_name


def register() -> None:
    """Makes schema and resolvers known to Hydra in this process."""
    register_schema()
    OmegaConf.register_new_resolver("mde.run_dir", lambda resume, new: resume or new, replace=True)
    OmegaConf.register_new_resolver("mde.job_name", job_name, replace=True)
    OmegaConf.register_new_resolver("mde.sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("mde.trials_left", _trials_left, replace=True)


class SweepCallback(Callback):
    """Remembers the sweep's directory in the process that started it, where `mde.cli.run` makes the page.

    Not Hydra's `on_multirun_end`: that is not called when a worker dies or the launcher raises.
    """

    directory: Path | None = None  # of the class: Hydra keeps the instance to itself

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            check(config)
        except MdeError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None  # an ordinary exception of a callback would become a warning
        logging.getLogger("alembic").setLevel(logging.WARNING)  # Optuna's: announces each part of itself
        SweepCallback.directory = Path(config.hydra.sweep.dir).resolve()

    def __reduce__(self) -> tuple[Any, ...]:
        # Launchers pickle the callbacks along with each job, and a worker process knows none of our resolvers.
        return _in_worker, ()


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
    if "target" in config and not config.hydra.launcher._target_.endswith("BasicLauncher"):
        raise MdeError("hydra/launcher: deploy.py measures, so its jobs run one after the other; leave it out")
    if sweep.cost == "latency_ms" and config.hydra.sweeper.get("n_jobs") != 1:
        raise MdeError("sweep.cost=latency_ms: only in a serial search, sweep=optuna with hydra.sweeper.n_jobs=1")


def _trials_left(total: int, directory: str) -> int:
    from mde.sweep.search import trials_left  # imports optuna, which only a search needs

    return trials_left(total, directory)


def _jobs(directory: Path) -> list[Path]:
    return list(directory.glob("*/.hydra/overrides.yaml"))
