"""The latency of a network on the board that it is for: measured there, or else estimated."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from mde.errors import MdeError
from mde.roofline import Roofline, estimate


def estimated(device: Any, network: nn.Module, size: tuple[int, int], precision: str) -> dict[str, Any]:
    """The `latency` entry of `network` on config.device, in `precision`: a lower bound from its data sheet."""
    return estimate(network, size, Roofline.of(device.peak, device.bandwidth, precision), precision)


def measured(device: Any, precision: str, graph_sha256: str) -> dict[str, Any]:
    """The `latency` entry in the profile at device.profile.

    graph_sha256  of the ONNX file that the board is to run, as the bundle has it

    MdeError when the board ran another one, and what `read_profile` refuses.
    """
    profile = read_profile(device, precision)
    if profile["graph_sha256"] != graph_sha256:
        raise MdeError(
            f"device.profile={device.profile}: of another network or size; run this one's bundle on the board"
        )
    about = {key: profile[key] for key in ("board", "engine", "engine_version", "dla", "precision")}
    return profile["latency"] | about | {"profile": device.profile}


def read_profile(device: Any, precision: str) -> dict[str, Any]:
    """The profile.json at device.profile, which the bundle's runner wrote on the board.

    MdeError when it cannot be read, or is of another board or precision: FP16 and FP32 engines come from one graph.
    """
    try:
        profile = dict(json.loads(Path(device.profile).read_text()))
        board, found = str(profile["board"]), profile["precision"]
        complete = {"graph_sha256", "engine", "engine_version", "dla"} <= set(profile)
        if not complete or profile["latency"]["status"] != "measured":
            raise ValueError("of an older bundle")
        float(profile["latency"]["p50_ms"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MdeError(
            f"device.profile={device.profile}: no readable profile ({error}); take the one that `runner.py benchmark` "
            "of this network's bundle writes on the board"
        ) from error
    if (device.board or "") not in board:
        raise MdeError(f"device.profile={device.profile}: made on {board}, which is no {device.board}; correct device=")
    if found != precision:
        raise MdeError(
            f"device.profile={device.profile}: in {found}, not {precision}; choose quantize= as it was there"
        )
    return profile
