"""Runtimes take images of any size, agree with each other, and refuse what they do not understand."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from mde.engines import ENGINES, write_target
from mde.engines.description import Calibration, Description, files_of, read_description, write_description
from mde.engines.request import Request
from mde.engines.runtime import Runtime, load_runtime
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.models import save_model
from mde.models.shipped import FOLDER
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
        write_target(
            target, Request(model.name, graph, SIZE, "fp32", folder), folder / f"model{ENGINES[target].suffix}"
        )
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


@pytest.mark.parametrize(
    ("entries", "line"),
    [
        ({"network": None}, "network is missing, text"),
        ({"engine": 5}, "engine must be text, not 5"),
        ({"input": "64x96"}, "input must be a list"),
        ({"input": [64]}, "input must be height and width"),
        ({"input": [64.0, 96]}, "input must be height and width"),
        ({"input": [True, 96]}, "input must be height and width"),
        ({"input": [64, 0]}, "input must be height and width"),
        ({"engine": "tflow"}, "engine must be .* or onnxruntime or"),
        ({"layout": None}, "layout is missing"),
        ({"calibration": {"scale": 1, "shift": 0, "cap": 0}}, "calibration must be finite, its cap positive"),
        ({"layout": "hwc"}, 'layout must be nhwc or nchw, not "hwc"'),
        ({"dtype": "int4"}, "dtype must be uint8 or float32"),
        ({"calibration": [1, 0, 10]}, "calibration must be an object"),
        ({"calibration": {"scale": 1.0, "shift": "0", "cap": 10}}, 'calibration.shift must be a number, not "0"'),
        ({"calibration": {}}, "calibration.scale is missing"),
        ({"output": "disparity"}, "output must be inverse_depth or depth"),
        ({"licence": ["MIT"]}, "licence must be text"),
        ({"graph_sha256": 0}, "graph_sha256 must be text"),
    ],
)
def test_a_description_with_an_entry_of_another_type_is_one_line(entries: dict, line: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"graph")
    write_description(path, Description("midas_small", "onnxruntime", "int8", (64, 96)))
    described = tmp_path / "model.onnx.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | entries))
    with pytest.raises(MdeError, match=rf"model\.onnx\.json: {line}.*; deploy it again$"):
        read_description(path)


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


def theirs(path: Path, given: list[int | str], nodes: list[onnx.NodeProto]) -> None:
    """A network of others: `nodes` make "out" of the image as floats, "f"."""
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, given)
    out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
    cast = onnx.helper.make_node("Cast", ["image"], ["f"], to=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph([cast, *nodes], "theirs", [image], [out])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path)


def mean(axis: int, keepdims: int = 1) -> list[onnx.NodeProto]:
    return [onnx.helper.make_node("ReduceMean", ["f"], ["out"], axes=[axis], keepdims=keepdims)]


def transposed(nodes: list[onnx.NodeProto], *axes: int) -> list[onnx.NodeProto]:
    nodes[-1].output[0] = "t"
    return [*nodes, onnx.helper.make_node("Transpose", ["t"], ["out"], perm=axes)]


INTEGER = ("onnxruntime", "openvino")
IMAGE = [1, *SIZE, 3]


@pytest.mark.parametrize("engine", INTEGER)
@pytest.mark.parametrize(
    ("given", "nodes"),
    [(IMAGE, mean(3)), (IMAGE, mean(3, 0)), (IMAGE, transposed(mean(3), 0, 3, 1, 2)), (["n", "h", "w", 3], mean(3))],
    ids=["channel last", "no channel", "channel first", "any size"],
)
def test_a_network_of_others_gives_its_map_in_whatever_layout(
    given: list[int | str], nodes: list[onnx.NodeProto], engine: str, tmp_path: Path
) -> None:
    path, rgb = tmp_path / "model.onnx", photo(*SIZE)
    theirs(path, given, nodes)
    write_description(path, Description("theirs", engine, "fp32", SIZE))
    np.testing.assert_allclose(load_runtime(path, threads=1).predict(rgb), rgb.mean(2), rtol=1e-5)


@pytest.mark.parametrize("engine", INTEGER)
@pytest.mark.parametrize(
    ("given", "nodes", "described", "words"),
    [
        ([4, *SIZE, 3], mean(3), {}, r"takes \[4,64,96,3\] of uint8, its description says 1 x 64 x 96 x 3"),
        ([1, 32, 32, 3], mean(3), {}, r"takes \[1,32,32,3\] of uint8, its description says 1 x 64 x 96 x 3"),
        (IMAGE, mean(3), {"layout": "nchw"}, r"takes \[1,64,96,3\] of uint8, its description says 1 x 3 x 64 x 96"),
        (IMAGE, mean(3), {"dtype": "float32"}, "of uint8, its description says 1 x 64 x 96 x 3 of float32"),
        (IMAGE, mean(1), {}, r"gives \[1, 1, 96, 3\], no map"),
        (IMAGE, transposed(mean(3), 0, 3, 2, 1), {}, r"gives \[1, 1, 96, 64\], no map"),
        (IMAGE, [onnx.helper.make_node("Identity", ["f"], ["out"])], {}, r"gives \[1, 64, 96, 3\], no map"),
        (
            ["n", "h", "w", "c"],
            [onnx.helper.make_node("MatMul", ["f", "f"], ["out"])],
            {},
            "cannot run it on uint8|gives .*, no map",
        ),
    ],
    ids=["batch", "size", "layout", "type", "wrong axis", "lying", "three channels", "fails at its first run"],
)
def test_a_network_that_is_not_as_described_is_refused_when_it_is_opened(
    given: list[int | str], nodes: list[onnx.NodeProto], described: dict, words: str, engine: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    theirs(path, given, nodes)
    write_description(path, replace(Description("theirs", engine, "fp32", SIZE), **described))
    with pytest.raises(MdeError, match=words) as error:
        load_runtime(path, threads=1)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_a_shipped_graph_of_tensorflow_lite_with_another_description_is_refused(tmp_path: Path) -> None:
    source = FOLDER / "midas_small_tenfold_int8.tflite"
    path = Path(shutil.copy(source, tmp_path))
    height, width = read_description(source).input
    write_description(path, replace(read_description(source), input=(32, 64)))
    with pytest.raises(MdeError, match=rf"takes \[1,{height},{width},3\] of uint8, .* says 1 x 32 x 64 x 3"):
        load_runtime(path, threads=1)


def test_weights_beside_an_onnx_file_belong_to_it(tmp_path: Path) -> None:
    """As PyTorch's exporter leaves them of large networks."""
    path, data = tmp_path / "model.onnx", tmp_path / "weights" / "model.onnx.data"
    scale = onnx.numpy_helper.from_array(np.full((1, *SIZE, 3), 2, np.float32), "scale")
    theirs(path, IMAGE, [onnx.helper.make_node("Mul", ["f", "scale"], ["g"]), *mean(3)])
    model = onnx.load(path)
    model.graph.node[-1].input[0] = "g"
    model.graph.initializer.append(scale)
    data.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights/model.onnx.data", size_threshold=0)
    assert files_of(path) == [path, data]
    write_description(path, Description("theirs", "onnxruntime", "fp32", SIZE))
    rgb = photo(*SIZE)
    np.testing.assert_allclose(load_runtime(path, threads=1).predict(rgb), 2 * rgb.mean(2), rtol=1e-5)
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MdeError, match=r"model\.onnx: not the file that .* describes, or damaged"):
        load_runtime(path, threads=1)
    data.unlink()
    with pytest.raises(MdeError, match=r"model\.onnx\.data: cannot be read \(No such file"):
        load_runtime(path, threads=1)
    length = next(entry for entry in model.graph.initializer[0].external_data if entry.key == "length")
    right, length.value = length.value, "x"
    onnx.save(model, path)
    with pytest.raises(MdeError, match=r"model\.onnx: says wrongly where its weights are"):
        load_runtime(path, threads=1)
    length.value = right
    model.graph.initializer[0].external_data[0].value = "../elsewhere"
    onnx.save(model, path)
    with pytest.raises(MdeError, match="outside its folder"):
        load_runtime(path, threads=1)
