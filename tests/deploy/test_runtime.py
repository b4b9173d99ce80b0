"""Runtimes take images of any size, agree with each other, and refuse what they do not understand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mde.deploy.description import Calibration, Description, read_description, write_description
from mde.deploy.runtime import Runtime, load_runtime
from mde.deploy.targets import TARGETS, Request, write_target
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.models import save_model
from tests.export import random_network

torch.set_num_threads(1)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network as a file of every target that runs here."""
    folder = tmp_path_factory.mktemp("deployed")
    model = random_network(border="replicate")
    save_model(model, folder / "model.safetensors", input=list(SIZE))
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    for target in ("onnxruntime", "openvino", "litert"):
        write_target(target, Request(model.name, graph, SIZE, "fp32", folder), folder / f"model{TARGETS[target][0]}")
    return folder


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("size", [(64, 96), (48, 64), (131, 77), (1, 1)])
@pytest.mark.parametrize("suffix", [".safetensors", ".onnx", ".xml", ".tflite"])
def test_every_runtime_predicts_what_the_network_does(suffix: str, size: tuple[int, int], folder: Path) -> None:
    rgb, model = photo(*size), random_network(border="replicate")
    planes = torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255
    stretched = (F.interpolate(planes, SIZE, mode="bilinear", antialias=True) * 255).round() / 255
    normalised = (stretched - torch.tensor(model.mean).view(1, 3, 1, 1)) / torch.tensor(model.std).view(1, 3, 1, 1)
    with torch.no_grad():
        expected = F.interpolate(model(normalised), size, mode="bilinear")[0, 0].numpy()
    runtime = load_runtime(folder / f"model{suffix}", threads=1)
    found = runtime.predict(rgb)
    assert (found.shape, found.dtype) == (size, np.float32)
    assert np.abs(found - expected).max() <= 1e-3 * np.ptp(expected) + 1e-5 * expected.max()
    runtime.close()
    with pytest.raises(MdeError, match="closed"):
        runtime.predict(rgb)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.uint16),
        np.zeros((8, 8), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["alpha", "16 bits", "grey", "empty"],
)
def test_another_kind_of_image_is_one_line(image: np.ndarray, folder: Path) -> None:
    with pytest.raises(MdeError, match=r"uint8 \(height, width, 3\) is wanted"):
        load_runtime(folder / "model.onnx", threads=1).predict(image)


def test_metres_come_from_the_calibration_and_from_nowhere_else(folder: Path) -> None:
    relative = load_runtime(folder / "model.onnx", threads=1)
    with pytest.raises(MdeError, match="no calibration"):
        relative.depth(photo(*SIZE))
    calibration = Calibration(scale=0.02, shift=-0.01, cap=10.0)
    description = Description("midas_small", "onnxruntime", "fp32", SIZE, calibration=calibration)
    metric = Runtime(folder / "model.onnx", description, relative.infer)
    inverse = relative.predict(photo(*SIZE)).astype(np.float64)
    expected = 1 / np.maximum(0.02 * inverse - 0.01, 0.1)
    np.testing.assert_allclose(metric.depth(photo(*SIZE)), expected, rtol=1e-5)


def test_a_description_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    calibration = Calibration(2.0, 0.5, 10.0)
    given = Description("midas_small", "onnxruntime", "int8", (64, 96), "nchw", "float32", calibration)
    write_description(path, given)
    assert read_description(path) == given


@pytest.mark.parametrize("spoil", ["file", "description", "missing", "weights"])
def test_a_file_that_is_not_the_described_one_is_refused(spoil: str, tmp_path: Path, folder: Path) -> None:
    for file in folder.glob("model.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "model.xml"
    described = tmp_path / "model.xml.json"
    if spoil == "file":
        path.write_bytes(path.read_bytes()[:-100])
    elif spoil == "weights":
        (tmp_path / "model.bin").write_bytes(b"other")
    elif spoil == "description":
        described.write_text(json.dumps({"network": "midas_small"}))
    else:
        described.unlink()
    with pytest.raises(MdeError, match="deploy it again") as caught:
        load_runtime(path)
    assert "\n" not in str(caught.value)


def test_a_file_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MdeError, match=r"choose one of \.engine, \.onnx, \.pt, \.safetensors, \.tflite, \.xml"):
        load_runtime(tmp_path / "model.pb")
