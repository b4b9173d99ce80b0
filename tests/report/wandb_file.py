"""Reads the `.wandb` file of an offline W&B run, for which the package has no public reader."""

import json
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32 * 1024
HEADER = struct.Struct("<IHB")  # checksum, length, type
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class OfflineRun:
    """What an offline run holds: settings, rows in the order of logging, and artifacts with their files on disk."""

    files: Path  # the folder in which media lie
    group: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    step_metrics: dict[str, str] = field(default_factory=dict)  # metric or pattern -> its axis
    artifacts: dict[str, dict[str, Path]] = field(default_factory=dict)  # name -> path inside -> staged file
    finished: bool = False

    def last(self, key: str) -> Any:
        """The last value logged under `key`."""
        return [row[key] for row in self.rows if key in row][-1]

    @property
    def keys(self) -> set[str]:
        return {key for row in self.rows for key in row}


def read_run(run_dir: Path) -> OfflineRun:
    """The latest offline run in a run directory of train.py or prune.py, which has ended: W&B's own process writes the
    file, and on a busy machine is still at it when `wandb.finish` returns.
    """
    path = max(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_ctime_ns)
    patience = time.monotonic() + 30
    while not (run := _read(path)).finished and time.monotonic() < patience:
        time.sleep(0.2)
    return run


def _read(path: Path) -> OfflineRun:
    run = OfflineRun(path.parent / "files")
    for message in messages(path.read_bytes()):
        record = Record.FromString(message)
        if record.HasField("run"):
            run.group, run.project = record.run.run_group, record.run.project
            run.config = _nested(record.run.config.update)
        elif record.HasField("history"):
            run.rows.append(_nested(record.history.item))
        elif record.HasField("metric"):
            run.step_metrics[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif record.HasField("artifact"):
            contents = record.artifact.manifest.contents
            run.artifacts[record.artifact.name] = {entry.path: Path(entry.local_path) for entry in contents}
        elif record.HasField("exit"):
            run.finished = True
    return run


def messages(data: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format: blocks of 32 KiB, of which a record may fill several.

    The file begins with seven bytes of W&B's own, which count as part of the first block.
    """
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position < len(data):
        if BLOCK - position % BLOCK < HEADER.size:  # too short for a header: padding
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = HEADER.unpack_from(data, position)
        part = data[position + HEADER.size : position + HEADER.size + length]
        assert checksum == zlib.crc32(bytes([kind]) + part), f"damaged at byte {position}"
        assert (kind in (FULL, FIRST)) == (not parts), f"out of order at byte {position}"
        position, parts = position + HEADER.size + length, parts + part
        if kind in (FULL, LAST):
            yield parts
            parts = b""


def _nested(items: Sequence[Any]) -> dict[str, Any]:
    """{key: value} of records whose key is either `key` or a path `nested_key` into dictionaries."""
    found: dict[str, Any] = {}
    for item in items:
        *path, last = item.nested_key or [item.key]
        inner = found
        for key in path:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
    return found
