"""Every reader, on files of which a bit changed, a part is gone, or an entry has another type: one line of an error,
or the same as of the whole file; never another exception, and never other numbers from a file that has checksums.

A new reader is a row in READERS.
"""

import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mde.engines.runtime import load_runtime
from mde.errors import MdeError
from mde.jetson.builder import BuildError
from mde.jetson.runner import RunnerError, load_description, load_frames
from mde.models import load_model, read_metadata, save_model
from mde.models.checkpoints import read_tensors
from mde.models.shipped import FOLDER
from mde.sensors.salvage import recorded_images, salvage
from mde.speed.boards import read_profile
from tests.conftest import ROOT

ONE_LINE = (MdeError, RunnerError, BuildError)
IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Reader:
    """write    leaves a whole file in a folder, and beside it what it needs; returns what is read and what is changed
    read     what the file says, as something that can be compared
    checked  whether its format has checksums: a changed file that is read says the same
    count    of the files with changed bytes
    """

    write: Callable[[Path], tuple[Path, Path]]
    read: Callable[[Path], Any]
    checked: bool = True
    count: int = 12


def copied(*names: str) -> Callable[[Path], tuple[Path, Path]]:
    """Shipped files: the first is read, the last is changed."""

    def write(folder: Path) -> tuple[Path, Path]:
        files = [Path(shutil.copy(FOLDER / name, folder)) for name in names]
        return files[0], files[-1]

    return write


def small_network(folder: Path) -> tuple[Path, Path]:
    path = folder / "model.safetensors"
    save_model(load_model(FOLDER / "midas_small_tenfold.safetensors").half(), path, input=[64, 96], licence="MIT")
    return path, path


def tensors(folder: Path) -> tuple[Path, Path]:
    path = folder / "last.ckpt"
    state = {"weight": torch.arange(500.0), "bias": torch.ones(7).half()}
    torch.save({"epoch": 1, "state_dict": state, "callbacks": {}}, path)
    return path, path


def frames(folder: Path) -> tuple[Path, Path]:
    path = folder / "frames.npz"
    arrays = {"rgb": np.stack([IMAGE] * 2), "depth": np.ones((2, 48, 64), np.float32)}
    np.savez_compressed(path, **arrays, mask=arrays["depth"] > 0, dataset=np.array("room"), cap=np.array(10.0))
    return path, path


def profile(folder: Path) -> tuple[Path, Path]:
    path = folder / "profile.json"
    about = {name: name for name in ("board", "graph_sha256", "engine", "engine_version", "dla")}
    latency = {"status": "measured", "p50_ms": 3.5, "runs": 9}
    path.write_text(json.dumps(about | {"precision": "fp16", "latency": latency}))
    return path, path


def bag(folder: Path) -> tuple[Path, Path]:
    path = Path(shutil.copy(ROOT / "tests/data/tiny.bag", folder))
    return path, path


def db3(folder: Path) -> tuple[Path, Path]:
    """With librealsense's names, though nothing that it would play."""
    path = folder / "room.db3"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE topics (id INTEGER PRIMARY KEY, name TEXT, type TEXT)")
    database.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, topic_id INTEGER, timestamp INTEGER, data BLOB)")
    for number, stream in enumerate(("sensor_0/Depth_0", "sensor_1/Color_0")):
        database.execute("INSERT INTO topics VALUES (?, ?, '')", (number, f"/device_0/{stream}/image/data"))
    for number in range(8):
        database.execute("INSERT INTO messages VALUES (?, ?, 0, ?)", (number, number % 2, bytes([number]) * 3000))
    database.commit()
    database.close()
    return path, path


def network(path: Path) -> Any:
    return read_metadata(path), {
        name: tensor.numpy().tobytes() for name, tensor in load_model(path).state_dict().items()
    }


def predicted(path: Path) -> Any:
    return load_runtime(path, threads=1).predict(IMAGE).tolist()


def salvaged(path: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return recorded_images(path), salvage(path, Path(folder)).path.suffix


def arrays(path: Path) -> Any:
    return {name: np.asarray(value).tolist() for name, value in load_frames(str(path)).items()}


def board(path: Path) -> Any:
    return read_profile(SimpleNamespace(profile=str(path), board="board"), "fp16")


SMALL = "midas_small_tenfold_int8"  # the smallest that ships
READERS = {
    "network": Reader(small_network, network, count=30),
    "checkpoint": Reader(tensors, lambda path: {n: t.tolist() for n, t in read_tensors(path).items()}, count=40),
    "onnx": Reader(
        copied("midas_small_tenth_int8.onnx", "midas_small_tenth_int8.onnx.json", "midas_small_tenth_int8.onnx"),
        predicted,
    ),
    "openvino": Reader(copied(f"{SMALL}.xml", f"{SMALL}.bin", f"{SMALL}.xml.json", f"{SMALL}.xml"), predicted),
    "openvino's weights": Reader(copied(f"{SMALL}.xml", f"{SMALL}.xml.json", f"{SMALL}.bin"), predicted),
    "litert": Reader(copied(f"{SMALL}.tflite", f"{SMALL}.tflite.json", f"{SMALL}.tflite"), predicted),
    "description": Reader(copied(f"{SMALL}.tflite", f"{SMALL}.tflite.json"), predicted, count=4),
    "bundle's frames": Reader(frames, arrays, count=30),
    "bundle's description": Reader(
        copied("midas_small_tenth_jetson/model.onnx.json"),
        lambda path: load_description(str(path.with_suffix(""))),
        checked=False,
    ),
    "profile": Reader(profile, board, checked=False),
    "bag": Reader(bag, salvaged, checked=False, count=20),
    "db3": Reader(db3, salvaged, checked=False, count=40),
}


def mutants(content: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    """Emptied, cut, one bit changed, and of JSON each entry of other types."""
    yield b""
    for share in (0.02, 0.5, 0.99):
        yield content[: int(share * len(content))]
    try:
        entries = json.loads(content)
    except ValueError:
        for _ in range(count):
            place = rng.randrange(len(content))
            yield content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]
        return
    for name in entries:
        for other in rng.sample([None, -1, 0.5, True, "", "word", [], ["word"], {}, {"word": 1}, 1e300], min(count, 5)):
            yield json.dumps(entries | {name: other}).encode()
    for other in (None, 3, "word", [], {}):
        yield json.dumps(other).encode()


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_one_line_or_says_the_same(name: str, tmp_path: Path) -> None:
    reader, rng = READERS[name], random.Random(name)
    path, changed = reader.write(tmp_path)
    whole, content, refused = reader.read(path), changed.read_bytes(), 0
    for number, mutant in enumerate(mutants(content, rng, reader.count)):
        changed.write_bytes(mutant)
        try:
            found = reader.read(path)
        except ONE_LINE as error:
            refused += 1
            line = str(error)
        else:
            line = ""
            assert not reader.checked or found == whole, f"mutant {number} says something else"
        assert "\n" not in line
    assert refused >= 2
    changed.write_bytes(content)
    assert reader.read(path) == whole, "the whole file is read as before"
