"""Builds the W&B dashboard: `python -m mde.report.dashboard ENTITY/PROJECT [--datasets NAME ...] [--dry-run]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import wandb

from mde.errors import MdeError
from mde.names import file_name
from mde.speed.interleaved import READING_ONNX

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def build(target: str, datasets: list[str]) -> Workspace:
    """The dashboard for ENTITY/PROJECT with the figures of the evaluated sets `datasets`; needs no network.

    Raises MdeError for a target of another form and without the package wandb-workspaces.
    """
    entity, _, project = target.partition("/")
    if not entity or not project or "/" in project:
        raise MdeError(f"dashboard: '{target}' is not ENTITY/PROJECT; give your W&B user or team, and logger.project")
    try:
        from mde.report.workspace import workspace
    except ModuleNotFoundError as error:
        raise MdeError(f"dashboard: package {error.name} is missing; pip install -e '.[dashboard]'") from error
    return workspace(entity, project, list(map(file_name, datasets)), list(READING_ONNX))


def specification(view: Workspace) -> str:
    """What `save` sends, as JSON."""
    return view._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=1)  # the library's own way


def save(view: Workspace) -> str:
    """Saves as a new view of the project and returns its address. Raises MdeError without a key and on refusal."""
    try:
        wandb.Api()
    except wandb.errors.UsageError as error:
        raise MdeError("dashboard: no W&B key; set WANDB_API_KEY, call `wandb login`, or add --dry-run") from error
    except wandb.errors.Error as error:
        raise MdeError(f"dashboard: {_first_line(error)}; check key and network, or add --dry-run") from error
    try:
        return view.save().url
    except Exception as error:  # the transports of W&B's versions have unrelated types of their own
        where = f"{view.entity}/{view.project}"
        raise MdeError(f"dashboard: {where}: not saved ({_first_line(error)}); does the project exist?") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mde.report.dashboard")
    parser.add_argument("target", metavar="ENTITY/PROJECT", nargs="?", default="", help="where the runs are")
    parser.add_argument("--datasets", metavar="NAME", nargs="+", default=["synthetic"], help="evaluated sets to show")
    parser.add_argument("--dry-run", action="store_true", help="print the specification; no network, no key")
    options = parser.parse_args(arguments)
    try:
        view = build(options.target or ("ENTITY/PROJECT" if options.dry_run else ""), options.datasets)
        print(specification(view) if options.dry_run else f"dashboard: {save(view)}")
    except MdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
