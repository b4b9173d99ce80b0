"""Latency profiles as files: of this machine, or given back from another device."""

import json
from pathlib import Path
from typing import Any

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.json_file import Entries, read_json
from mde.models.network import DepthNetwork
from mde.pruning.board_profile import is_board_profile, planned
from mde.pruning.cost import Layer
from mde.pruning.structure import ChannelGroup


def read_profile(
    path: Path, model: DepthNetwork, groups: list[ChannelGroup], layers: list[Layer], size: tuple[int, int]
) -> dict[str, Any]:
    """A profile made elsewhere, by `measure_profile` or by a bundle on a Jetson. Raises MdeError unless it is of this
    network and input size.
    """
    read = read_json(path, "measure it anew on the device", file=f"prune.profile={path}")
    try:
        profile = planned(read, model, groups, layers) if is_board_profile(read) else dict(read)
    except ValueError as error:
        raise MdeError(f"{read.file}: no profile of this network ({error}); {read.remedy}") from error
    check_tables(Entries(profile, read.file, read.remedy))
    told = {key: profile.get(key) for key in ("network", "options", "input")}
    names = set(profile["layers"])
    own: dict[str, Any] = {"network": model.name, "options": model.options, "input": list(size)}
    for key, value in own.items():
        if told[key] != value:
            raise MdeError(f"prune.profile={path}: of {key} {told[key]}, not {value}; measure one of this network")
    if missing := {layer.name for layer in layers if layer.area} - names:
        raise MdeError(f"prune.profile={path}: has no layer {min(missing)}; measure one of this network")
    if surplus := names - {layer.name for layer in layers}:
        raise MdeError(f"prune.profile={path}: of layer {min(surplus)}, which is no more; measure one of this network")
    return profile


def check_tables(profile: Entries) -> None:
    """MdeError where what pruning plans by is missing or of another type."""
    profile.entry("total_ms", float)
    widths = profile.entry("widths", dict)
    for name in widths:
        widths.entry(name, int)
    layers = profile.entry("layers", dict)
    for name in layers:
        table = layers.entry(name, dict)
        shape = len(table.numbers("reads")), len(table.numbers("writes"))
        rows = table.entry("ms", list)
        if not all(shape) or len(rows) != shape[0]:
            raise table.error("ms", f"must have a row for each of {shape[0]} reads")
        for row in rows:
            Entries({"ms": row}, table.file, table.remedy, table.place).numbers("ms", shape[1])


def write_profile(path: Path, profile: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(profile).encode())
