"""The latency of a network on the board that it is for: measured there, or else estimated."""

from pathlib import Path
from typing import Any

from torch import nn

from mde.errors import MdeError
from mde.json_file import Entries, read_json
from mde.speed.roofline import Roofline, estimate


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
    about = {key: profile.get(key) for key in ("board", "engine", "engine_version", "dla", "precision")}
    return profile["latency"] | about | {"profile": device.profile}


def read_profile(device: Any, precision: str) -> Entries:
    """The profile.json at device.profile, which the bundle's runner wrote on the board.

    MdeError when it cannot be read, or is of another board or precision: FP16 and FP32 engines come from one graph.
    """
    profile = read_json(
        Path(device.profile),
        "take the one that `runner.py benchmark` of this network's bundle writes on the board",
        file=f"device.profile={device.profile}",
    )
    for key in ("graph_sha256", "engine", "engine_version", "precision"):
        profile.entry(key, str)
    times = profile.entry("latency", dict)
    times.choice("status", ("measured",))
    for key in ("p50_ms", "runs"):
        times.entry(key, float)
    for key in ("p95_ms", "p99_ms", "fps", "speedup_vs_reference"):
        times.entry(key, float, None)
    board, found = str(profile.get("board")), profile["precision"]
    if (device.board or "") not in board:
        raise MdeError(f"device.profile={device.profile}: made on {board}, which is no {device.board}; correct device=")
    if found != precision:
        raise MdeError(
            f"device.profile={device.profile}: in {found}, not {precision}; choose quantize= as it was there"
        )
    return profile
