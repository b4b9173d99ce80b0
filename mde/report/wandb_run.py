"""The W&B side of a run, which may fail and never ends it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from omegaconf import DictConfig, OmegaConf

from mde.errors import MdeError
from mde.report.dispensable import reason
from mde.report.terminal import say

# What WANDB_MODE may say, and what it means for a single process.
MODES = {"": "online", "online": "online", "run": "online", "shared": "online"}
MODES |= {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}
# Seconds; W&B waits 90 for a server that is not there, and without end to hand over what is left when the run is done.
PATIENCE = {"init_timeout": 10, "finish_timeout": 60}


def wandb_logger(config: DictConfig, run_dir: Path) -> "WandbRun | None":
    """Of a new W&B run, or of the one that was begun in `run_dir`; None where WANDB_MODE disables W&B.

    MdeError for a WANDB_MODE that there is not.
    """
    if find_spec("wandb") is None:
        raise MdeError("logger=wandb: wandb is not installed; pip install wandb, or choose logger=csv")
    mode = wandb_mode()
    return None if mode == "disabled" else WandbRun(config, run_dir, mode)


def wandb_mode() -> str:
    """online, with a key; offline; or disabled."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked not in MODES:
        raise MdeError(f"WANDB_MODE={asked}: unknown; choose online, offline or disabled, or unset it")
    return "offline" if MODES[asked] == "online" and not os.environ.get("WANDB_API_KEY") else MODES[asked]


class WandbRun(WandbLogger):
    """Online, else offline, else nothing; after a failure nothing more is logged. Each step down is one line."""

    _experiment: Any  # W&B's run, or _Nothing

    def __init__(self, config: DictConfig, run_dir: Path, mode: str):
        identity = next(iter(sorted(run_dir.glob("wandb/*run-*-*"))), None)
        own = {name: value for name, value in PATIENCE.items() if f"WANDB_{name.upper()}" not in os.environ}
        super().__init__(
            project=config.logger.project,
            group=config.logger.group,
            name=run_dir.name,
            id=identity.name.rpartition("-")[2] if identity else None,
            save_dir=run_dir,
            mode=mode,  # `offline=` sets a variable, which W&B reads once in a process
            config=OmegaConf.to_container(config, resolve=True),
        )
        # silent: its own summary would bury the path of the report
        self._wandb_init["settings"] = {"silent": True} | own
        self._wandb_init.pop("anonymous")  # Lightning sets it, to None, and W&B warns of whoever sets it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, begun at the first call; one that takes everything and does nothing where none can begin."""
        if self._experiment is None and self._wandb_init["mode"] == "online":
            try:
                return super().experiment
            except Exception as error:
                say(f"W&B: {reason(error)}; kept offline, wandb sync can send it later")
                self._wandb_init["mode"] = "offline"
        if self._experiment is None:
            # Offline the id is enough: `wandb sync` joins what has the same one.
            self._wandb_init["resume"] = None
            with self.spared():
                return super().experiment
        return self._experiment

    @contextmanager
    def spared(self) -> Iterator[None]:
        """A block that logs: its errors, of whatever type, end the logging and not the run."""
        try:
            yield
        except Exception as error:
            say(f"W&B: {reason(error)}; the run goes on without it")
            self._experiment = _Nothing()

    def log_metrics(self, *arguments: Any, **options: Any) -> None:
        with self.spared():
            super().log_metrics(*arguments, **options)

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        with self.spared():
            super().log_hyperparams(*arguments, **options)

    def log_image(self, *arguments: Any, **options: Any) -> None:
        with self.spared():
            super().log_image(*arguments, **options)


class _Nothing:
    """Takes every call, and each attribute's, and does nothing."""

    def __getattr__(self, name: str) -> "_Nothing":
        if name.startswith("__"):  # copy and pickle ask for methods that are not there
            raise AttributeError(name)
        return self

    def __call__(self, *_: Any, **__: Any) -> "_Nothing":
        return self


def end_wandb() -> None:
    """Ends this process's W&B run, if any: in a multirun the next job must open one of its own."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is None:
        return
    try:
        wandb.finish()
    except Exception as error:
        say(f"W&B: {reason(error)}; what was logged last may be missing there")
        wandb.run = None  # which W&B leaves, with a process that may be dead, for the next run to go on with
        with suppress(Exception):
            wandb.teardown()
