"""What the entry points share: the typed schema, the run directory, and one-line errors for people."""

import difflib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra.errors
import omegaconf.errors
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from mde.config import register_schema
from mde.errors import MdeError

CONF = Path(__file__).resolve().parent.parent / "conf"


def register() -> None:
    """Make schema and resolvers known to Hydra; an entry point calls it before composing."""
    register_schema()
    OmegaConf.register_new_resolver("mde.run_dir", lambda resume, new: resume or new, replace=True)


_failed: list[BaseException] = []
_MENDABLE = (MdeError, hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException)


def job(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], None]:
    """Wraps what Hydra calls: an error the user can mend is printed and remembered, so that Hydra adds no lines of its
    own and the other jobs of a multirun go on."""

    @functools.wraps(task)
    def guarded(config: DictConfig) -> None:
        try:
            task(config)
        except _MENDABLE as error:
            _report(error)

    return guarded


def run(main: Callable[[], None]) -> None:
    """Calls a Hydra entry point; what the user can mend ends the process with one line and status 2, no traceback."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra prints several lines itself and hides the cause
    try:
        main()
    except _MENDABLE as error:
        _report(error)
    if _failed:
        sys.exit(2)


def _report(error: BaseException) -> None:
    _failed.append(error)
    print(f"error: {one_line(error)}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """An error as one line, with the nearest known name where a name was not known."""
    if isinstance(error, hydra.errors.InstantiationException) and isinstance(error.__cause__, MdeError):
        error = error.__cause__
    if isinstance(error, MdeError):
        # An error from a loader's worker carries that worker's traceback in front.
        return str(error).rpartition("mde.errors.MdeError: ")[2].strip()
    cause = error
    while cause.__cause__ is not None and isinstance(cause.__cause__, omegaconf.errors.OmegaConfBaseException):
        cause = cause.__cause__
    text = " ".join(line.strip() for line in f"{error}".splitlines() if line.strip() and "full_key" not in line)
    if isinstance(cause, omegaconf.errors.MissingMandatoryValue):
        return f"option {cause.full_key} has no value: give {cause.full_key}=..."
    if match := re.search(r"Could not override '([^']+)'", text):
        return f"unknown option '{match[1]}'{_nearest(match[1], _options())}"
    if isinstance(error, hydra.errors.MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [option for option in error.options or [] if not option.endswith("_schema")]
        return f"no '{choice}' in {group or 'conf'}{_nearest(choice, choices)}; choices: {', '.join(choices)}"
    if isinstance(cause, omegaconf.errors.ValidationError):
        return f"option {cause.full_key}: {str(cause).splitlines()[0]}"
    return text


def _nearest(name: str, known: list[str]) -> str:
    """'; did you mean ...?' for the likeliest of the known names, where the last part of a dotted name counts most."""

    def likeness(option: str) -> float:
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], option.rpartition(".")[2]).ratio()
        return last + difflib.SequenceMatcher(None, name, option).ratio() / 2

    best = max(known, key=likeness, default="")
    return f"; did you mean '{best}'?" if best and likeness(best) > 1 else ""


def _options() -> list[str]:
    """Every option of every group, dotted, and the names of the groups."""
    store = ConfigStore.instance().repo
    options = [path.name for path in CONF.iterdir() if path.is_dir()]
    for name, node in store.items():
        if name == "train_schema.yaml":
            options += list(_dotted(node.node, ""))
        elif isinstance(node, dict):
            for schema in node.values():
                if hasattr(schema, "node") and name in options:
                    options += [f"{name}.{key}" for key in _dotted(schema.node, "")]
    return sorted(set(options))


def _dotted(node: Any, prefix: str) -> Iterator[str]:
    for key in node:
        child = node._get_node(key)
        yield f"{prefix}{key}"
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            yield from _dotted(child, f"{prefix}{key}.")
