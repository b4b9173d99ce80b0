"""INT8 for ONNX Runtime and OpenVINO is right on an x86 without VNNI, which the files alone show."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from mde.engines import export_openvino, open_engine, write_target
from mde.engines.pairs import check_pairs, largest_pairs
from mde.engines.request import Request
from mde.errors import MdeError
from mde.export import export_onnx
from mde.quantization.fake import activation_scales
from mde.quantization.onnx_file import dynamic_onnx, quantize_onnx
from tests.quantization.small_network import SIZE, calibration_frames, difference, layers, small_graph


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the small network, by the functions that deploy: int8, qat and dynamic for both engines, and TensorRT's."""
    folder = tmp_path_factory.mktemp("pairs")
    graph, frames = small_graph(), calibration_frames()
    images = [(torch.from_numpy(frame).float().permute(0, 3, 1, 2) - graph.mean) / graph.std for frame in frames]
    scales = activation_scales(graph.network, images)
    for target, suffix in (("onnxruntime", "onnx"), ("openvino", "xml")):
        for kind, trained in (("int8", None), ("qat", scales)):
            request = Request("midas_small", graph, SIZE, "int8", folder, frames, scales=trained)
            write_target(target, request, folder / f"{kind}.{suffix}")
    export_onnx(graph, folder / "float.onnx", SIZE)
    dynamic_onnx(folder / "float.onnx", folder / "dynamic.onnx")
    quantize_onnx(folder / "float.onnx", folder / "tensorrt.onnx", frames, symmetric=True)
    export_openvino(folder / "tensorrt.onnx", folder / "tensorrt.xml")
    return folder


@pytest.mark.parametrize("name", ["int8.onnx", "qat.onnx", "dynamic.onnx", "int8.xml", "qat.xml"])
def test_no_two_products_leave_16_bits_in_any_file_for_x86(folder: Path, name: str) -> None:
    pairs = largest_pairs(folder / name)
    assert len(pairs) == len(layers(small_graph().network))
    assert max(pairs.values()) <= 32767
    assert min(pairs.values()) > 20000, "less than the 7 bits that there are"


@pytest.mark.parametrize("name", ["tensorrt.onnx", "tensorrt.xml"])
def test_weights_of_8_bits_are_refused_by_the_layer_s_name(folder: Path, name: str) -> None:
    with pytest.raises(MdeError, match=r"tensorrt.*head/conv\d/Conv can add up to 6\d,\d{3}, .* without VNNI"):
        check_pairs(folder / name)


def test_a_float_file_has_no_such_layer(folder: Path) -> None:
    assert largest_pairs(folder / "float.onnx") == {}


def one_layer(path: Path, kind: str, weight: np.ndarray) -> Path:
    """A product with constant weights in 8 bits, as Q/DQ or, MatMulInteger, as integers."""
    if kind == "MatMulInteger":
        x, nodes = onnx.TensorProto.UINT8, [helper.make_node(kind, ["x", "weight"], ["y"])]
        y = onnx.TensorProto.INT32
    else:
        x = y = onnx.TensorProto.FLOAT
        pair = helper.make_node("DequantizeLinear", ["weight", "scale"], ["w"])
        nodes = [pair, helper.make_node(kind, ["x", "w"], ["y"], **({"transB": 1} if kind == "Gemm" else {}))]
    shape = [1, 4, 8, 8] if kind.startswith("Conv") else [2, 4]
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", x, shape)],
        [helper.make_tensor_value_info("y", y, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.float32(0.1), "scale")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("Conv", (3, 4, 1, 1)),
        ("ConvTranspose", (4, 3, 2, 2)),
        ("MatMul", (4, 3)),
        ("Gemm", (3, 4)),
        ("MatMulInteger", (4, 3)),
    ],
)
def test_every_kind_of_product_is_measured_by_its_two_largest_weights(
    tmp_path: Path, kind: str, shape: tuple[int, ...]
) -> None:
    weight = (np.arange(np.prod(shape)) % 11).astype(np.int8).reshape(shape)
    weight.flat[3], weight.flat[5] = -100, 28
    path = one_layer(tmp_path / "one.onnx", kind, weight)
    assert list(largest_pairs(path).values()) == [255 * 128]
    check_pairs(path)
    weight.flat[5] = -29
    with pytest.raises(MdeError, match="32,895, more than 16 bits hold"):
        check_pairs(one_layer(path, kind, weight))


def test_openvino_computes_the_same_without_vnni(folder: Path) -> None:
    """Its kernels can be held to older instructions, in a process of its own."""
    frame = calibration_frames(1)[0]
    np.save(folder / "frame.npy", frame)
    code = (
        "import sys, numpy, pathlib; from mde.engines import open_engine; folder = pathlib.Path(sys.argv[1]);"
        "output = open_engine('openvino', folder / 'int8.xml', 1)(numpy.load(folder / 'frame.npy'));"
        "numpy.save(folder / 'old.npy', output)"
    )
    subprocess.run([sys.executable, "-c", code, folder], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True)
    output = open_engine("openvino", folder / "int8.xml", 1)(frame)
    assert difference(np.load(folder / "old.npy"), output) < 0.005
