"""Every engine opens its files, and computes what PyTorch does."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mde.engines import Input, OpenFile, as_map, export_openvino, open_engine
from mde.engines.litert import export_tflite
from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
from mde.jetson.builder import BuildError
from mde.models import save_model
from tests.conftest import ROOT
from tests.export import random_network

torch.set_num_threads(1)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    model = random_network()
    graph = ImageGraph(deployable(model), model.mean, model.std)
    save_model(model, folder / "model.safetensors")
    export_onnx(graph, folder / "model.onnx", SIZE)
    export_openvino(folder / "model.onnx", folder / "model.xml")
    export_tflite(graph, folder / "model.tflite", SIZE)
    return {path.suffix: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("engine", "suffix"),
    [
        ("pytorch", ".safetensors"),
        ("onnxruntime", ".onnx"),
        ("openvino", ".onnx"),
        ("openvino", ".xml"),
        ("litert", ".tflite"),
    ],
)
def test_an_image_becomes_what_pytorch_makes_of_it(engine: str, suffix: str, files: dict[str, Path]) -> None:
    model = random_network()
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)
    normalised = (image / 255.0 - np.array(model.mean)) / np.array(model.std)
    with torch.no_grad():
        expected = model(torch.from_numpy(normalised).permute(0, 3, 1, 2).float()).numpy()
    found = open_engine(engine, files[suffix], threads=1)(image)
    assert found.dtype == np.float32
    assert found.shape == (1, 1, *SIZE)
    assert np.abs(found - expected).max() <= 1e-4 * np.ptp(expected)


@pytest.mark.parametrize("engine", ["pytorch", "onnxruntime", "openvino", "litert", "tensorrt"])
def test_a_damaged_file_is_one_line(engine: str, tmp_path: Path) -> None:
    suffix = {"pytorch": ".safetensors", "openvino": ".xml", "litert": ".tflite", "tensorrt": ".engine"}.get(
        engine, ".onnx"
    )
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"half a file")
    with pytest.raises(MdeError) as caught:
        open_engine(engine, path, threads=1)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "suffix"),
    [("pytorch", ".safetensors"), ("onnxruntime", ".onnx"), ("openvino", ".xml"), ("litert", ".tflite")],
)
def test_an_image_that_a_file_refuses_is_one_line(engine: str, suffix: str, files: dict[str, Path]) -> None:
    run = open_engine(engine, files[suffix], threads=1)
    for image in (np.zeros((1, *SIZE), np.uint8), np.zeros((1, *SIZE, 4), np.uint8)):
        with pytest.raises(MdeError, match=rf"model\{suffix}: {engine} cannot run it on uint8 \[1, 64, 96") as error:
            run(image)
        assert "\n" not in str(error.value)


def test_an_engine_that_fails_when_it_runs_is_one_line(tmp_path: Path) -> None:
    """As one of TensorRT, whose GPU is gone."""

    def broken(image: np.ndarray) -> np.ndarray:
        raise BuildError("tensorrt: the engine did not run\nand more of it")

    with pytest.raises(MdeError, match=r"model\.engine: tensorrt cannot run it .*the engine did not run\)") as error:
        OpenFile(tmp_path / "model.engine", "tensorrt", broken)(np.zeros((1, 2, 2, 3), np.uint8))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("engine", "suffix"), [("onnxruntime", ".onnx"), ("openvino", ".xml"), ("openvino", ".onnx"), ("litert", ".tflite")]
)
def test_files_say_what_they_take(engine: str, suffix: str, files: dict[str, Path]) -> None:
    assert open_engine(engine, files[suffix], threads=1).inputs == [Input((1, *SIZE, 3), "uint8")]


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ((1, 1, 6, 4), (1, 1, 6, 4)),
        ((1, 6, 4, 1), (1, 1, 6, 4)),
        ((1, 6, 4), (1, 1, 6, 4)),
        ((6, 4), (1, 1, 6, 4)),
        ((1, 2, 6, 4), (1, 2, 6, 4)),
        ((2, 6, 4, 1), (2, 6, 4, 1)),
        ((1, 24), (1, 24)),
    ],
)
def test_one_map_is_known_wherever_its_channel_is(given: tuple[int, ...], becomes: tuple[int, ...]) -> None:
    numbers = np.arange(np.prod(given), dtype=np.float32).reshape(given)
    assert as_map(numbers).shape == becomes
    assert as_map(numbers).flatten().tolist() == numbers.flatten().tolist()


def test_signals_are_handled_after_two_networks_in_openvino_were_closed(files: dict[str, Path]) -> None:
    code = f"""
import os, signal
from pathlib import Path
from mde.engines import Input, OpenFile, as_map, open_engine
engines = [open_engine("openvino", Path({str(files[".onnx"])!r}), 1) for _ in range(2)]
del engines[0], engines[0]
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
