import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from mde.engines import export_openvino, open_engine
from mde.engines.onnxruntime import open_in_floats
from mde.engines.openvino_core import core, openvino
from mde.errors import MdeError
from mde.export import deployable, export_onnx
from mde.export.layer_names import onnx_layer
from mde.export.rewrites import DoublingHead
from mde.models.midas_small import Head
from mde.quantization.calibration import check_calibration
from mde.quantization.gate import quantize_within
from mde.quantization.layer_sensitivity import layer_sensitivity
from mde.quantization.onnx_file import check_symmetric, dynamic_onnx, half_onnx, quantize_onnx
from tests.export import random_network
from tests.quantization.small_network import SIZE, calibration_frames, dead_graph, difference, layers, small_graph

EXCLUDED = ["refine.conv1", "block.0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The small network in float and in every kind of INT8 for ONNX and OpenVINO."""
    folder = tmp_path_factory.mktemp("quantized")
    graph, frames = small_graph(), calibration_frames()
    export_onnx(graph, folder / "float.onnx", SIZE)
    export_onnx(graph, folder / "float13.onnx", SIZE, opset=13)
    export_openvino(folder / "float.onnx", folder / "float.xml")
    quantize_onnx(folder / "float.onnx", folder / "int8.onnx", frames)
    quantize_onnx(folder / "float.onnx", folder / "partly.onnx", frames, exclude=EXCLUDED)
    quantize_onnx(folder / "float13.onnx", folder / "symmetric.onnx", frames, symmetric=True)
    half_onnx(folder / "float.onnx", folder / "half.onnx")
    dynamic_onnx(folder / "float.onnx", folder / "dynamic.onnx")
    export_openvino(folder / "int8.onnx", folder / "int8.xml")
    export_openvino(folder / "partly.onnx", folder / "partly.xml")
    export_openvino(folder / "float.onnx", folder / "half.xml", float16=True)
    return folder


def run(path, frame):
    if path.name == "symmetric.onnx":  # TensorRT's
        return open_in_floats(path, 1)(frame)
    return open_engine("onnxruntime" if path.suffix == ".onnx" else "openvino", path, 1)(frame)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("int8.onnx", 0.02),
        ("partly.onnx", 0.02),
        ("symmetric.onnx", 0.03),
        ("dynamic.onnx", 0.02),
        ("half.onnx", 0.002),
        ("int8.xml", 0.02),
        ("partly.xml", 0.02),
        ("half.xml", 0.002),
    ],
)
def test_quantized_output_is_near_and_not_equal_to_the_float_output(files, name, allowed):
    for frame in calibration_frames(2):
        expected = small_graph()(torch.from_numpy(frame)).numpy()
        output = run(files / name, frame)
        assert output.dtype == np.float32
        assert output.shape == expected.shape
        assert 0 < difference(output, expected) < allowed


def test_tensorrt_s_stand_in_computes_the_rounded_values_in_floats(files):
    """As ONNX defines them; in integers a sum of two products leaves 16 bits on some processors."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    exact = onnxruntime.InferenceSession(files / "symmetric.onnx", options)
    stand_in = open_in_floats(files / "symmetric.onnx", 1)
    frames = calibration_frames()
    changes = [difference(stand_in(frame), exact.run(None, {"image": frame})[0]) for frame in frames]
    assert np.mean(changes) < 1e-4  # integers: 1e-3, where they are right


def quantized_convolutions(path):
    """The layers whose weight and input come out of DequantizeLinear."""
    graph = onnx.load(path).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return {
        onnx_layer(node.name)
        for node in graph.node
        if node.op_type == "Conv" and [made_by.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
    }


@pytest.mark.parametrize("name", ["int8.onnx", "symmetric.onnx"])
def test_every_convolution_is_quantized(files, name):
    assert quantized_convolutions(files / name) == layers(small_graph().network)


def test_excluded_convolutions_are_float_in_onnx(files):
    assert quantized_convolutions(files / "partly.onnx") == layers(small_graph().network) - set(EXCLUDED)


def test_with_every_layer_in_float_nothing_is_rounded(files, tmp_path):
    names = sorted(layers(small_graph().network))
    quantize_onnx(files / "float.onnx", tmp_path / "all.onnx", calibration_frames(), exclude=names)
    frame = calibration_frames(1)[0]
    np.testing.assert_allclose(run(tmp_path / "all.onnx", frame), run(files / "float.onnx", frame), rtol=1e-5)


def test_excluded_convolutions_are_float_in_openvino(files):
    def integer_weights(name):
        return {
            onnx_layer(node.get_friendly_name().removesuffix("/WithoutBiases"))  # a bias is an addition of its own
            for node in core().read_model(files / name).get_ops()
            if "Convolution" in node.get_type_name() and stored_type(node.input_value(1).get_node()) == "i8"
        }

    def stored_type(node):
        while node.get_type_name() != "Constant":
            node = node.input_value(0).get_node()
        return node.get_element_type().get_type_name()

    assert integer_weights("float.xml") == set()
    assert integer_weights("int8.xml") == layers(small_graph().network)
    assert integer_weights("partly.xml") == layers(small_graph().network) - set(EXCLUDED)


@pytest.mark.parametrize("name", ["int8.onnx", "symmetric.onnx", "half.onnx", "dynamic.onnx"])
def test_input_output_and_opset_stay(files, name):
    before = onnx.load(files / ("float13.onnx" if name == "symmetric.onnx" else "float.onnx"))
    after = onnx.load(files / name)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [
        (entry.domain, entry.version) for entry in before.opset_import
    ]


@pytest.mark.parametrize("name", ["int8.xml", "partly.xml", "half.xml"])
def test_openvino_keeps_input_and_output(files, name):
    model = core().read_model(files / name)
    assert model.inputs[0].element_type == openvino.Type.u8
    assert tuple(model.inputs[0].shape) == (1, *SIZE, 3)
    assert model.outputs[0].element_type == openvino.Type.f32


def test_weights_have_a_scale_per_output_channel(files):
    graph = onnx.load(files / "int8.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        if node.op_type == "Conv":
            weight, scale = (constants[name] for name in makers[node.input[1]].input[:2])
            assert weight.dtype == np.int8
            assert scale.shape == weight.shape[:1]


def test_normalisation_stays_float(files):
    graph = onnx.load(files / "int8.onnx").graph
    assert [node.op_type for node in graph.node if node.name in ("/Cast", "/Transpose", "/Sub", "/Div")] == [
        "Cast",
        "Transpose",
        "Sub",
        "Div",
    ]
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    for node in graph.node:
        if node.name in ("/Transpose", "/Sub", "/Div"):
            assert made_by[node.input[0]] != "DequantizeLinear"


def test_all_zero_points_of_the_symmetric_file_are_zero(files):
    graph = onnx.load(files / "symmetric.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zero_points = [constants[node.input[2]] for node in pairs]
    assert len(zero_points) > 20
    assert not any(zero_point.any() for zero_point in zero_points)
    assert {zero_point.dtype.name for zero_point in zero_points} == {"int8"}


@pytest.mark.parametrize("name", ["int8.onnx", "int8.xml", "symmetric.onnx"])
def test_the_last_convolution_s_output_is_not_rounded(files, name):
    assert len(np.unique(run(files / name, calibration_frames(1)[0]))) > 256


def test_the_closing_relu_stays(tmp_path):
    graph, frame = small_graph(), calibration_frames(1)[0]
    graph.network.head.conv3.bias.fill_(-float(graph(torch.from_numpy(frame)).median()))
    expected = graph(torch.from_numpy(frame)).numpy()
    assert 0.4 < (expected == 0).mean() < 0.6
    export_onnx(graph, tmp_path / "float.onnx", SIZE)
    quantize_onnx(tmp_path / "float.onnx", tmp_path / "int8.onnx", calibration_frames())
    assert run(tmp_path / "int8.onnx", frame).min() == 0
    assert difference(run(tmp_path / "int8.onnx", frame), expected) < 0.02


@pytest.mark.parametrize("symmetric", [False, True])
def test_nor_where_it_doubles_inside_its_convolution(tmp_path, symmetric):
    graph = small_graph()
    head = Head(8, border="replicate")
    head.load_state_dict(graph.network.head.state_dict())
    graph.network.head = DoublingHead(head)
    export_onnx(graph, tmp_path / "float.onnx", SIZE, opset=13)
    path, frame = tmp_path / ("symmetric.onnx" if symmetric else "int8.onnx"), calibration_frames(1)[0]
    quantize_onnx(tmp_path / "float.onnx", path, calibration_frames(), symmetric=symmetric)
    output = run(path, frame)
    assert len(np.unique(output)) > 256
    assert 0 < difference(output, graph(torch.from_numpy(frame)).numpy()) < 0.03


def test_a_zero_point_is_refused_by_name(files):
    check_symmetric(files / "symmetric.onnx")
    with pytest.raises(
        MdeError,
        match=r"int8\.onnx: /Div_output_0 has the zero point 11\d .* TensorRT takes symmetric quantization only",
    ):
        check_symmetric(files / "int8.onnx")


@pytest.mark.parametrize(
    ("name", "accepted"), [("symmetric.onnx", True), ("int8.onnx", False), ("half.onnx", True), ("float.onnx", True)]
)
def test_tensorrt_rtx_parses_symmetric_and_half_graphs_only(files, name, accepted):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    network = trt.Builder(logger).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse((files / name).read_bytes()) is accepted
    if accepted:
        assert network.get_output(0).dtype == trt.float32


def test_half_stores_and_computes_in_float16(files):
    half = onnx.load(files / "half.onnx")
    assert (files / "half.onnx").stat().st_size < 0.75 * (files / "float.onnx").stat().st_size
    types = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type == "Conv":
            assert {types[name] for name in node.input[1:]} == {onnx.TensorProto.FLOAT16}


def test_quantizing_twice_gives_the_same_bytes(files, tmp_path):
    quantize_onnx(files / "float.onnx", tmp_path / "again.onnx", calibration_frames())
    assert (tmp_path / "again.onnx").read_bytes() == (files / "int8.onnx").read_bytes()


def test_an_unknown_layer_and_bad_frames_are_refused(files, tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(MdeError, match=r"0 convolutions are called head\.conv9"):
        quantize_onnx(files / "float.onnx", out, calibration_frames(), exclude=["head.conv9"])
    with pytest.raises(MdeError, match="no calibration frames"):
        quantize_onnx(files / "float.onnx", out, [])
    with pytest.raises(MdeError, match=r"\(1, 64, 64, 3\).*\(1, 32, 32, 3\)"):
        quantize_onnx(files / "float.onnx", out, calibration_frames(size=(64, 64)))
    assert not out.exists()


def test_a_truncated_onnx_is_refused(files, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((files / "float.onnx").read_bytes()[:2000])
    for function in (half_onnx, dynamic_onnx):
        with pytest.raises(MdeError, match=r"broken\.onnx: not a readable ONNX file"):
            function(broken, tmp_path / "out.onnx")
    with pytest.raises(MdeError, match=r"broken\.onnx"):
        quantize_onnx(broken, tmp_path / "out.onnx", calibration_frames())


def test_calibration_frames_must_fit_and_differ():
    frames = calibration_frames()
    check_calibration(frames, frames[0].shape, np.dtype(np.uint8))
    with pytest.raises(MdeError, match="no calibration frames"):
        check_calibration([], frames[0].shape, np.dtype(np.uint8))
    for alike in ([frames[0]] * 3, frames[:1], [np.full_like(frames[0], grey) for grey in (3, 200)]):
        with pytest.raises(MdeError, match="alike"):
            check_calibration(alike, frames[0].shape, np.dtype(np.uint8))
    with pytest.raises(MdeError, match="frame 1 is float32"):
        check_calibration([frames[0], frames[1].astype(np.float32)], frames[0].shape, np.dtype(np.uint8))


def test_torch_quantizes_nothing_dynamically():
    """It knows Linear and recurrent layers, and the network has none."""
    network = deployable(random_network(reference=False))
    dynamic = torch.ao.quantization.quantize_dynamic(network, dtype=torch.qint8)
    assert [type(module) for module in dynamic.modules()] == [type(module) for module in network.modules()]
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(dynamic(image), network(image))


def test_the_gate_on_real_files_recovers_accuracy(files, tmp_path):
    """delta1's stand-in: one less the mean difference from the float output."""
    frames = calibration_frames()
    expected = [small_graph()(torch.from_numpy(frame)).numpy() for frame in frames]
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    sensitivity = layer_sensitivity(small_graph().network, images)

    def quantize(excluded):
        quantize_onnx(files / "float.onnx", tmp_path / "gated.onnx", frames, exclude=excluded)
        return tmp_path / "gated.onnx"

    def evaluate(path):
        return 1 - np.mean([difference(run(path, frame), truth) for frame, truth in zip(frames, expected, strict=True)])

    everything = 1 - evaluate(quantize([]))
    gated = quantize_within(quantize, evaluate, lambda: sensitivity, 1.0, max_drop=0.5 * everything)
    assert gated.excluded
    assert gated.drop <= 0.5 * everything
    assert quantized_convolutions(gated.network) == set(sensitivity) - set(gated.excluded)


@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_dead_after_pruning_keeps_its_bias(tmp_path, symmetric):
    graph, frame = dead_graph(), calibration_frames(1)[0]
    export_onnx(graph, tmp_path / "float.onnx", SIZE)
    path = tmp_path / ("symmetric.onnx" if symmetric else "int8.onnx")
    quantize_onnx(tmp_path / "float.onnx", path, calibration_frames(), symmetric=symmetric)
    files = [path]
    if not symmetric:
        files.append(path.with_suffix(".xml"))
        export_openvino(path, files[1])
    expected = graph(torch.from_numpy(frame)).numpy()
    for file in files:
        assert difference(run(file, frame), expected) < 0.03
