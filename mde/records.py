"""`metrics.json`: what a run is, found and cost, in the schema that other programs read."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.models.build import dense_of
from mde.models.counts import multiply_adds
from mde.models.network import DepthNetwork

SCHEMA = 1
ENTRIES = {"status": str, "environment": dict, "model": dict, "quality": dict, "latency": dict}  # those read
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "amx_int8")  # on which the speed of INT8 against FP32 hangs


def environment() -> dict[str, Any]:
    """Machine and software, as far as they influence a result."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu("model name") or platform.processor(),
        "instructions": [name for name in INSTRUCTIONS if name in _cpu("flags").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": {name: version(name) for name in ("torch", "timm", "lightning", "kornia", "numpy")},
        "commit": _commit(),
        "command": " ".join(sys.argv),
    }


def _commit() -> str | None:
    """This checkout's; None where there is none, no git, or one that refuses: a folder of another owner."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def _cpu(entry: str) -> str:
    """What /proc/cpuinfo says of the first core, "" without."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")


def describe_model(model: DepthNetwork, size: tuple[int, int], file: Path | None = None) -> dict[str, Any]:
    """The `model` entry: parameters, and multiply-adds of one image at `size` (height, width).

    Sparsity is the share of the dense original's parameters that are gone, or are zeros in a convolution's weights.
    """
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    zeros = sum(int((parameter == 0).sum()) for parameter in parameters if parameter.ndim > 1)
    dense = sum(parameter.numel() for parameter in dense_of(model).parameters())
    return {
        "name": model.name,
        **model.options,
        "input": list(size),
        "parameters": count,
        "nonzero_parameters": sum(int(parameter.count_nonzero()) for parameter in parameters),
        "dense_parameters": dense,
        "macs": multiply_adds(model, size),
        "blocks_taken_out": list(model.taken_out),
        "sparsity": 1 - (count - zeros) / dense,
        "file_bytes": file.stat().st_size if file and file.exists() else 0,
    }


def without_estimates(latency: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The entries that say something that was observed: an estimate is never compared with a measurement."""
    return {engine: entry for engine, entry in latency.items() if entry.get("status") != "estimate"}


def new_record(status: str, **entries: Any) -> dict[str, Any]:
    """A record with every key of the schema present."""
    return {
        "schema": SCHEMA,
        "status": status,
        "parent": "",
        "teacher": "",
        "environment": environment(),
        "model": {},
        "quality": {},
        "latency": {},
    } | entries


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Writes `metrics.json`, whole or not at all; NaN, which JSON does not know, becomes null."""
    with atomic_file(run_dir / "metrics.json") as file:
        file.write(json.dumps(_plain(record), indent=1, allow_nan=False).encode())


def read_record(run_dir: Path) -> dict[str, Any]:
    """The record of a run. Raises MdeError where there is none, or none of this schema."""
    path = run_dir / "metrics.json"
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise MdeError(f"{path}: no readable record of a run ({error}); is {run_dir} a run directory?") from error
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise MdeError(f"{path}: no record of a run in schema {SCHEMA}, which this version reads")
    for key, kind in ENTRIES.items():
        if not isinstance(record.get(key), kind):
            raise MdeError(f"{path}: '{key}' is missing or of another type than schema {SCHEMA} says")
    rows = [*record["quality"].values(), *record["latency"].values()]
    if not all(isinstance(row, dict) for row in rows) or not isinstance(record["model"].get("steps", 0), int):
        raise MdeError(f"{path}: quality, latency or model hold something else than schema {SCHEMA} says")
    return record


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
