"""Each engine's profiler times the layers that the file has."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mde.engines import LayerTime, export_openvino, layer_times, tensorrt
from mde.engines.openvino_core import core
from mde.engines.pytorch import pytorch_graph
from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
from mde.jetson.cudart import Cuda
from mde.jetson.engine import Engine
from mde.models import save_model
from mde.quantization.onnx_file import quantize_onnx
from mde.report.layer_table import SHOWN, layer_table, write_layers
from tests.export import random_network
from tests.jetson import fakes

torch.set_num_threads(1)
SIZE = (64, 64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model = random_network()
    graph = ImageGraph(deployable(model), model.mean, model.std)
    save_model(model, folder / "model.safetensors", input=list(SIZE))
    export_onnx(graph, folder / "model.onnx", SIZE)
    quantize_onnx(folder / "model.onnx", folder / "int8.onnx", [image(seed) for seed in range(4)])
    export_openvino(folder / "model.onnx", folder / "model.xml")
    return folder


def image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8)


def convolutions(path: Path) -> set[str]:
    """Their names, read from the file itself."""
    if path.suffix == ".onnx":
        return {node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"}
    if path.suffix == ".xml":
        operations = core().read_model(path).get_ops()
        return {op.get_friendly_name() for op in operations if "Convolution" in op.get_type_name()}
    return {name for name, module in pytorch_graph(path).named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize(
    ("engine", "file"),
    [
        ("pytorch", "model.safetensors"),
        ("onnxruntime", "model.onnx"),
        ("onnxruntime", "int8.onnx"),
        ("openvino", "model.xml"),
    ],
)
def test_every_convolution_of_the_file_has_its_time(engine: str, file: str, folder: Path) -> None:
    layers = layer_times(engine, folder / file, image(), runs=3, threads=1)
    timed = {layer.name for layer in layers if "conv" in layer.operator.lower()}
    assert timed == convolutions(folder / file)
    assert len(timed) > 50
    assert all(layer.ms >= 0 for layer in layers)
    shares = sum(layer.ms for layer in layers if layer.name in timed) / sum(layer.ms for layer in layers)
    assert 0 < shares <= 1


def test_a_profiled_call_counts_once_and_the_first_ones_do_not(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    clock = [0.0]

    def tick() -> float:
        clock[0] += 0.001
        return clock[0]

    monkeypatch.setattr("mde.engines.pytorch.time.perf_counter", tick)
    layers = layer_times("pytorch", folder / "model.safetensors", image(), runs=4, threads=1)
    stem = next(layer for layer in layers if layer.name.endswith("conv_stem") and layer.operator == "convolution")
    assert stem.ms == pytest.approx(1.0)  # by a clock that goes on by a millisecond whenever it is read


def test_tensorrts_layers_come_from_its_own_profiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    path.write_bytes(fakes.PLAN)
    engine = Engine(fakes.tensorrt("10.3"), Cuda(fakes.Cudart()), str(path))
    monkeypatch.setattr(tensorrt, "tensorrt_engine", lambda _: engine)
    layers = layer_times("tensorrt", path, np.zeros((1, 4, 6, 3), np.uint8), runs=4, threads=1)
    assert [tuple(layer) for layer in layers] == [("conv + relu", "", 0.5), ("resize", "", 0.25)]


def test_litert_has_no_profiler_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(MdeError, match=r"model\.tflite: LiteRT's Python interface gives no times of single layers"):
        layer_times("litert", tmp_path / "model.tflite", image(), runs=1, threads=1)
    assert "LiteRT" in layer_table(tmp_path, "litert")
    assert layer_table(tmp_path, "tensorrt") == ""


def test_a_profile_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(folder.iterdir())
    layer_times("onnxruntime", folder / "model.onnx", image(), runs=1, threads=1)
    assert list(tmp_path.iterdir()) == []
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("times", [[], [LayerTime("relu", "Relu", 0.0)]])
def test_a_profile_without_any_time_is_none(times: list[LayerTime], tmp_path: Path) -> None:
    write_layers(tmp_path, times)
    assert list(tmp_path.iterdir()) == []
    assert layer_table(tmp_path, "onnxruntime") == ""


def test_the_page_shows_the_slowest_layers_first_with_bars(tmp_path: Path) -> None:
    times = [LayerTime(f"<layer> {number}, a", "Conv", float(number % 17)) for number in range(20)]
    write_layers(tmp_path, times)
    table = layer_table(tmp_path, "onnxruntime")
    assert re.findall(r"&lt;layer&gt; (\d+), a", table)[:3] == ["16", "15", "14"]
    assert table.count("<td class='layer'>") == SHOWN
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", table)]
    assert widths[0] == 100
    assert widths == sorted(widths, reverse=True)
    assert widths[1] == pytest.approx(100 * 15 / 16, abs=0.1)
