"""Real engines: TensorRT-RTX builds without a GPU. What its parser refuses, no Jetson needs to see."""

import numpy as np
import onnxruntime
import pytest
import tensorrt_rtx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from mde.export import ImageGraph, deployable, export_onnx
from mde.jetson.builder import BuildError, build_engine, misfit, read_record
from tests.export import random_network

SIZE = (64, 64)


class Float16Graph(ImageGraph):
    """Computes in float16 and answers in float32."""

    def forward(self, image):
        return super().forward(image).float()


class RandomImages(CalibrationDataReader):
    def __init__(self):
        draw = np.random.default_rng(0)
        self.images = iter(draw.integers(0, 256, (2, 1, *SIZE, 3), np.uint8))

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"image": image}


def export(path, graph=ImageGraph, layout="nhwc", dtype="uint8", opset=17):
    model = random_network(reference=False, border="replicate")
    made = graph(deployable(model), model.mean, model.std, layout=layout, dtype=dtype)
    export_onnx(made.half() if graph is Float16Graph else made, path, SIZE, opset)
    return path


def quantize(source, path, symmetric=True):
    options = {"ActivationSymmetric": symmetric, "WeightSymmetric": True, "QuantizeBias": False}
    quantize_static(
        source,
        path,
        RandomImages(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options=options,
    )
    return path


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("graphs")
    fp32 = export(folder / "fp32.onnx")
    return {
        "fp32": fp32,
        "fp16": export(folder / "fp16.onnx", Float16Graph),
        "int8": quantize(fp32, folder / "int8.onnx"),
    }


# Bytes of the file for each weight; there is little else in it. In int8 the library keeps some weights twice or in
# float, and does not say which.
@pytest.mark.parametrize(("precision", "least", "most"), [("fp32", 4, 4.3), ("fp16", 2, 2.3), ("int8", 1, 2)])
def test_each_precision_is_built_and_takes_its_room(graphs, tmp_path, precision, least, most):
    path, told = str(tmp_path / "model.engine"), []
    description = {"dtype": "uint8", "layout": "nhwc", "input": SIZE}
    record = build_engine(tensorrt_rtx, str(graphs[precision]), path, precision, description, log=told.append)
    assert misfit(tensorrt_rtx, path, str(graphs[precision])) is None
    assert record == {**read_record(path), "input": SIZE}
    assert record["library"] == "tensorrt_rtx"
    weights = sum(p.numel() for p in deployable(random_network(reference=False, border="replicate")).parameters())
    assert least < record["engine_bytes"] / weights < most
    assert any(line.endswith("100 %") for line in told)


def test_the_graph_of_the_oldest_jetpack_is_accepted_too(tmp_path):
    graph = export(tmp_path / "model.onnx", layout="nchw", dtype="float32", opset=13)
    assert build_engine(tensorrt_rtx, str(graph), str(tmp_path / "model.engine"), "fp32", log=lambda line: None)


def test_asymmetric_quantization_is_refused(graphs, tmp_path):
    graph = quantize(graphs["fp32"], tmp_path / "model.onnx", symmetric=False)
    assert onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    with pytest.raises(BuildError, match=r"model\.onnx: refused \(.*zero"):
        build_engine(tensorrt_rtx, str(graph), str(tmp_path / "model.engine"), "int8")
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_float_graph_is_not_called_less(graphs, tmp_path, precision):
    with pytest.raises(BuildError, match=f"fp32 graph, not {precision}"):
        build_engine(tensorrt_rtx, str(graphs["fp32"]), str(tmp_path / "model.engine"), precision)


@pytest.mark.parametrize("content", ["half", "empty", "other"])
def test_a_broken_onnx_file_is_refused_in_one_line(graphs, tmp_path, content):
    whole = graphs["fp32"].read_bytes()
    broken = tmp_path / "broken.onnx"
    broken.write_bytes({"half": whole[: len(whole) // 2], "empty": b"", "other": b"hello world"}[content])
    with pytest.raises(BuildError, match=r"broken\.onnx: .*export it again") as caught:
        build_engine(tensorrt_rtx, str(broken), str(tmp_path / "model.engine"), "fp32")
    assert "\n" not in str(caught.value)
