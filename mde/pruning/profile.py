"""Latency profiles as files: of this machine, or given back from another device."""

import json
from pathlib import Path
from typing import Any

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.models.network import DepthNetwork
from mde.pruning.board import is_board_profile, planned
from mde.pruning.cost import Layer
from mde.pruning.structure import ChannelGroup


def read_profile(
    path: Path, model: DepthNetwork, groups: list[ChannelGroup], layers: list[Layer], size: tuple[int, int]
) -> dict[str, Any]:
    """A profile made elsewhere, by `measure_profile` or by a bundle on a Jetson. Raises MdeError unless it is of this
    network and input size.
    """
    try:
        profile = json.loads(path.read_text())
        if is_board_profile(profile):
            profile = planned(profile, model, groups, layers)
        told = {key: profile[key] for key in ("network", "options", "input")}
        names = set(profile["layers"])
        float(profile["total_ms"])
        profile["widths"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MdeError(
            f"prune.profile={path}: no profile of this network ({error}); measure it anew on the device"
        ) from error
    own: dict[str, Any] = {"network": model.name, "options": model.options, "input": list(size)}
    for key, value in own.items():
        if told[key] != value:
            raise MdeError(f"prune.profile={path}: of {key} {told[key]}, not {value}; measure one of this network")
    if missing := {layer.name for layer in layers if layer.area} - names:
        raise MdeError(f"prune.profile={path}: has no layer {min(missing)}; measure one of this network")
    if surplus := names - {layer.name for layer in layers}:
        raise MdeError(f"prune.profile={path}: of layer {min(surplus)}, which is no more; measure one of this network")
    return profile


def write_profile(path: Path, profile: dict[str, Any]) -> None:
    with atomic_file(path) as file:
        file.write(json.dumps(profile).encode())
