"""What the entry points share: the typed schema, the run directory, and one-line errors for people."""

import difflib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hydra.errors
import omegaconf.errors
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mde.app.callback import SweepCallback, register
from mde.app.command_line import GROUPS, check_arguments
from mde.app.jobs import in_sweep, objectives, run_job
from mde.errors import MdeError
from mde.names import plain
from mde.overrides import how_to_quote, quoted
from mde.refused import refused

__all__ = ["job", "one_line", "register", "run"]

_failed: list[str] = []  # the lines: an error would keep alive, until Python shuts down, what its frames had open
_MENDABLE = (MdeError, hydra.errors.HydraException, omegaconf.errors.OmegaConfBaseException)


def job(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Wraps what Hydra calls. In a multirun see `mde.app.jobs.run_job`; the wrapper returns what a search optimises.

    In a single run an error the user can mend is printed and remembered, so that Hydra adds no lines of its own.
    """

    @functools.wraps(task)
    def guarded(config: DictConfig) -> Any:
        if in_sweep():
            run_job(task, config, _foreseen)
            return objectives(config.sweep.cost)
        try:
            if config.sweep.resume:
                raise MdeError(f"sweep.resume={config.sweep.resume}: only of a multirun; add -m")
            task(config)
        except Exception as error:
            if (line := _foreseen(error)) is None:
                raise
            _report(line)

    return guarded


def run(main: Callable[[], None]) -> None:
    """Calls a Hydra entry point and ends the process with its status.

    Single run: 0, or 2 after one line for what the user can mend; other errors are raised. Multirun: the number of its
    jobs that have no complete result, at most 125, or 2 after one line; its page is made whatever happened.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # otherwise Hydra prints several lines itself and hides the cause
    sys.argv[1:] = map(quoted, sys.argv[1:])
    broken = False
    try:
        sys.argv[1:] = _checked(sys.argv[1:])
        main()
    except Exception as error:
        if (line := _foreseen(error)) is not None:
            _report(line)
        elif SweepCallback.directory is None:
            raise
        else:  # of a multirun: a worker died, or the launcher gave up
            traceback.print_exc()
            broken = True
    except BaseException:  # stopped by the user
        if SweepCallback.directory is not None:
            _finish(SweepCallback.directory, measured=False)
        raise
    failures = _finish(SweepCallback.directory) if SweepCallback.directory is not None else 0
    if _failed:
        sys.exit(2)
    sys.exit(min(max(failures, broken), 125))


def _checked(arguments: list[str]) -> list[str]:
    """The command line for Hydra. With resume= the frames are those of that run: Hydra may not hold data.* to the
    choice that it makes by default. MdeError for what a command line may not say.
    """
    check_arguments(arguments)
    if any(re.match(r"resume=(?!(null)?$)", argument) for argument in arguments):
        return [re.sub(r"^\+*(?=data\.)", "++", argument) for argument in arguments]
    return arguments


def _finish(directory: Path, measured: bool = True) -> int:
    from mde.app.sweep_end import finish  # imports torch

    try:
        return finish(directory, measured)
    except Exception as error:
        if (line := _foreseen(error)) is None:
            raise
        _report(line)
        return 0


def _foreseen(error: Exception) -> str | None:
    """The line for what the user can mend, None for an error of ours."""
    if isinstance(error, MdeError):
        return one_line(error)
    where = "hydra.run.dir"
    if HydraConfig.initialized():
        known = HydraConfig.get()
        begun = not OmegaConf.is_missing(known.runtime, "output_dir")  # by Hydra, which may fail before
        where = known.runtime.output_dir if begun else known.run.dir
    # Before Hydra's own class, in which it wraps what a builder raises.
    return refused(error, where) or (one_line(error) if isinstance(error, _MENDABLE) else None)


def _report(line: str) -> None:
    _failed.append(line)
    print(f"error: {plain(line)}", file=sys.stderr)


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
    if isinstance(error, hydra.errors.OverrideParseException):
        return how_to_quote(error)
    text = " ".join(line.strip() for line in f"{error}".splitlines() if line.strip() and "full_key" not in line)
    if isinstance(cause, omegaconf.errors.MissingMandatoryValue):
        return f"option {cause.full_key} has no value: give {cause.full_key}=..."
    if match := re.search(r"Could not override '([^']+)'", text):
        name, known = match[1], _options()
        if name in known:
            group = name.partition(".")[0]
            return (
                f"option '{name}': not of the {group} that is chosen by default; choose another {group}=... beside it"
            )
        return f"unknown option '{name}'{_nearest(name, known)}"
    if isinstance(error, hydra.errors.MissingConfigException) and error.missing_cfg_file:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        choices = [option for option in error.options or [] if not option.endswith("_schema")]
        plugin = "; a plugin may be missing: pip install -e '.[sweeps,ray]'" if group.startswith("hydra/") else ""
        return f"no '{choice}' in {group or 'conf'}{_nearest(choice, choices)}; choices: {', '.join(choices)}{plugin}"
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
    options = list(GROUPS)
    for name, node in store.items():
        if name in ("prune_run_schema.yaml", "deploy_schema.yaml"):  # the first holds train.py's options too
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
