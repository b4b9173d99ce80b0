"""Optuna's search: what a trial returns, and a study in SQLite that survives a killed sweep."""

import contextlib
import warnings
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

NAME = "sweep"


def study_storage(directory: str) -> optuna.storages.RDBStorage:
    """The study in `directory`/study.db; trials that a killed sweep left without values are put in line again."""
    storage = _open(directory)
    with contextlib.suppress(KeyError):  # no study in it yet
        _requeue(optuna.load_study(study_name=NAME, storage=storage))
    return storage


def trials_left(total: int, directory: str) -> int:
    """How many of `total` trials the study in `directory` still lacks."""
    if not (Path(directory) / "study.db").exists():
        return total
    with contextlib.suppress(KeyError):
        study = optuna.load_study(study_name=NAME, storage=_open(directory))
        return max(0, total - sum(trial.state == TrialState.COMPLETE for trial in study.trials))
    return total


def _open(directory: str) -> optuna.storages.RDBStorage:
    path = Path(directory) / "study.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Optuna 2.10 relies on connections that commit by themselves, which SQLAlchemy gave up in its version 2: without
    # this the revision that it stamps into a new file is lost, and it refuses the file.
    return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"isolation_level": "AUTOCOMMIT"})


def _requeue(study: optuna.Study) -> None:
    """The same parameters lead to the same job directory, where a job's checkpoint is continued."""
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # enqueue_trial, which Optuna then kept
    trials = study.trials
    known: list[dict[str, Any]] = [trial.params for trial in trials if trial.state == TrialState.COMPLETE]
    known += [trial.system_attrs["fixed_params"] for trial in trials if trial.state == TrialState.WAITING]
    for trial in trials:
        if trial.state == TrialState.RUNNING:
            study.tell(trial.number, state=TrialState.FAIL)
        if trial.state in (TrialState.RUNNING, TrialState.FAIL) and trial.params not in known:
            known.append(trial.params)
            study.enqueue_trial(trial.params)
