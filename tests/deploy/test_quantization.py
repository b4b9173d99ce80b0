import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mde.deploy.quantization.calibration import check_calibration
from mde.deploy.quantization.fake import fake_quantize_weight
from mde.deploy.quantization.gate import quantize_within
from mde.deploy.quantization.layer_names import convolutions_of, is_onnx_layer, is_tflite_layer, onnx_layer
from mde.deploy.quantization.onnx_file import check_symmetric, dynamic_onnx, half_onnx, quantize_onnx
from mde.deploy.quantization.openvino_file import half_openvino, quantize_openvino
from mde.deploy.quantization.sensitivity import fake_quantize_activation, layer_sensitivity
from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx, export_openvino
from mde.export.openvino import core, openvino
from tests.deploy.quantization_network import SIZE, calibration_frames, difference, small_graph
from tests.export import random_network

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
    quantize_openvino(folder / "float.xml", folder / "int8.xml", frames)
    quantize_openvino(folder / "float.onnx", folder / "partly.xml", frames, exclude=EXCLUDED)
    half_openvino(folder / "float.xml", folder / "half.xml")
    return folder


def run(path, frame):
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(None, {"image": frame})[0]
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    return core().compile_model(path, "CPU", options)(frame)[0]


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


def quantized_convolutions(path):
    """The layers whose weight and input come out of DequantizeLinear."""
    graph = onnx.load(path).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return {
        onnx_layer(node.name)
        for node in graph.node
        if node.op_type == "Conv" and [made_by.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2
    }


def layers(model):
    return {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}


@pytest.mark.parametrize("name", ["int8.onnx", "symmetric.onnx"])
def test_every_convolution_is_quantized(files, name):
    assert quantized_convolutions(files / name) == layers(small_graph().network)


def test_excluded_convolutions_are_float_in_onnx(files):
    assert quantized_convolutions(files / "partly.onnx") == layers(small_graph().network) - set(EXCLUDED)


def test_excluded_convolutions_are_float_in_openvino(files):
    def integer_weights(name):
        return {
            onnx_layer(node.get_friendly_name())
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


def test_the_symmetric_file_puts_out_more_than_128_levels(files):
    """Its last convolution's output is not rounded; the unsigned file's is."""
    frame = calibration_frames(1)[0]
    assert len(np.unique(run(files / "symmetric.onnx", frame))) > 256
    assert len(np.unique(run(files / "int8.onnx", frame))) <= 256


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


@pytest.mark.parametrize("quantize", [quantize_onnx, quantize_openvino])
def test_an_unknown_layer_and_bad_frames_are_refused(files, tmp_path, quantize):
    out = tmp_path / "out.xml"
    with pytest.raises(MdeError, match=r"0 convolutions are called head\.conv9"):
        quantize(files / "float.onnx", out, calibration_frames(), exclude=["head.conv9"])
    with pytest.raises(MdeError, match="no calibration frames"):
        quantize(files / "float.onnx", out, [])
    with pytest.raises(MdeError, match=r"\(1, 64, 64, 3\).*\(1, 32, 32, 3\)"):
        quantize(files / "float.onnx", out, calibration_frames(size=(64, 64)))
    assert not out.exists()


def test_a_truncated_onnx_is_refused(files, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes((files / "float.onnx").read_bytes()[:2000])
    for function in (half_onnx, dynamic_onnx):
        with pytest.raises(MdeError, match=r"broken\.onnx: not a readable ONNX file"):
            function(broken, tmp_path / "out.onnx")
    with pytest.raises(MdeError, match=r"broken\.onnx"):
        quantize_openvino(broken, tmp_path / "out.xml", calibration_frames())


def test_a_missing_nncf_says_how_to_install_it(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(MdeError, match=r"pip install -e '\.\[openvino\]'"):
        quantize_openvino(files / "float.xml", tmp_path / "out.xml", calibration_frames())


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


def test_names_in_onnx_and_openvino_lead_back_to_the_layers_of_the_real_network(tmp_path):
    model = random_network(reference=False)
    network = deployable(model)
    export_onnx(ImageGraph(network, model.mean, model.std).eval(), tmp_path / "model.onnx", (32, 32))
    nodes = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv"]
    expected = sorted(layers(network))
    assert sorted(onnx_layer(node) for node in nodes) == expected
    assert "decoder.fusion1.refine_sum.conv1" in expected
    operators = core().read_model(tmp_path / "model.onnx").get_ops()
    names = [node.get_friendly_name() for node in operators if "Convolution" in node.get_type_name()]
    assert sorted(onnx_layer(name) for name in names) == expected


def test_a_layer_must_be_exactly_one_convolution():
    nodes = ["/network/head/conv1/Conv", "/network/fusion/conv1/Conv"]
    assert convolutions_of(["fusion.conv1"], nodes, is_onnx_layer, "file") == nodes[1:]
    with pytest.raises(MdeError, match="file: 0 convolutions are called conv1"):
        convolutions_of(["conv1"], nodes, is_onnx_layer, "file")
    with pytest.raises(MdeError, match=r"file: 2 convolutions are called head\.conv1"):
        convolutions_of(["head.conv1"], nodes[:1] * 2, is_onnx_layer, "file")


def test_tflite_names_leave_out_containers_that_are_not_called():
    scope = "a.ImageGraph/b.Net_network/timm.x._blocks.Features_encoder/c.Sequential_1/d.Block_0/e.Conv2d_conv_pw"
    tensor = f"{scope.rpartition('/')[0]}/e.ReLU6_bn1;;{scope};2;"
    assert is_tflite_layer(tensor, "encoder.blocks.1.0.conv_pw")
    for other in ("encoder.blocks.0.1.conv_pw", "encoder.blocks.1.0.conv_pwl", "decoder.blocks.1.0.conv_pw", "conv_pw"):
        assert not is_tflite_layer(tensor, other)


def test_torch_quantizes_nothing_dynamically():
    """It knows Linear and recurrent layers, and the network has none."""
    network = deployable(random_network(reference=False))
    dynamic = torch.ao.quantization.quantize_dynamic(network, dtype=torch.qint8)
    assert [type(module) for module in dynamic.modules()] == [type(module) for module in network.modules()]
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(dynamic(image), network(image))


def rounded(x, scale, zero, low, high):
    """The quantization formula, one element at a time."""
    out = [scale * (min(max(round(value / scale) + zero, low), high) - zero) for value in x.ravel().tolist()]
    return np.array(out, dtype=np.float32).reshape(x.shape)


def reference_weight(weight):
    return np.stack([rounded(channel, np.abs(channel).max() / 127, 0, -127, 127) for channel in weight])


def reference_activation(x):
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255))
    return rounded(x, scale, round(float(-low / scale)), 0, 255)


def test_fake_quantization_is_the_formula():
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(fake_quantize_weight(x), reference_weight(x.numpy()), atol=1e-6)
    for shifted in (x, x + 10, x - 10, x.relu()):
        np.testing.assert_allclose(fake_quantize_activation(shifted), reference_activation(shifted.numpy()), atol=1e-5)


def test_fake_quantization_keeps_channels_and_inputs_of_zeros():
    weight = torch.randn(3, 4, 1, 1)
    weight[1] = 0
    assert not fake_quantize_weight(weight)[1].any()
    assert fake_quantize_weight(weight).isfinite().all()
    assert torch.equal(fake_quantize_activation(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_sensitivity_is_that_of_one_layer_quantized_by_the_formula():
    network = small_graph().network
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    sensitivity = layer_sensitivity(network, images)
    assert set(sensitivity) == layers(network)
    expected = network(images).numpy()
    for name in sensitivity:
        changed = small_graph().network
        layer = changed.get_submodule(name)
        layer.weight.copy_(torch.from_numpy(reference_weight(layer.weight.numpy())))
        layer.register_forward_pre_hook(lambda _, inputs: torch.from_numpy(reference_activation(inputs[0].numpy())))
        shares = [difference(one, other) for one, other in zip(changed(images).numpy(), expected, strict=True)]
        assert sensitivity[name] == pytest.approx(np.mean(shares), rel=0.02), name
        assert sensitivity[name] > 0


def test_sensitivity_leaves_the_network_as_it_was_and_is_repeatable():
    network = small_graph().network
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    before = network(images)
    assert layer_sensitivity(network, images) == layer_sensitivity(network, images)
    assert torch.equal(network(images), before)


def test_sensitivity_of_a_dead_network_is_an_error():
    network = small_graph().network
    network.head.conv3.bias.fill_(-1e6)
    with pytest.raises(MdeError, match="the same everywhere"):
        layer_sensitivity(network, torch.randn(1, 3, *SIZE))


class Trial:
    """A network whose delta1 is 0.9 less what each layer in INT8 costs; it counts and remembers."""

    def __init__(self, costs):
        self.costs, self.calls = costs, []

    def quantize(self, excluded):
        self.calls.append(tuple(excluded))
        return tuple(excluded)

    def evaluate(self, network):
        return 0.9 - sum(cost for layer, cost in self.costs.items() if layer not in network)


@pytest.mark.parametrize("needed", range(12))
def test_the_gate_sends_back_the_smallest_number_of_layers_that_holds(needed):
    costs = {f"layer{number:02}": 0.01 for number in range(11)}
    trial = Trial(costs)
    gated = quantize_within(trial.quantize, trial.evaluate, lambda: costs, 0.9, max_drop=0.01 * (11 - needed) + 1e-9)
    assert gated.excluded == tuple(sorted(costs))[:needed]  # all alike: by name
    assert gated.network == gated.excluded == trial.calls[-1]
    assert gated.drop == pytest.approx(0.01 * (11 - needed))
    assert gated.delta1 == pytest.approx(0.9 - gated.drop)
    assert len(trial.calls) <= 9


def test_the_gate_takes_the_most_sensitive_layers_first():
    costs = {"a": 0.001, "b": 0.05, "c": 0.02, "d": 0.0}
    trial = Trial(costs)
    gated = quantize_within(trial.quantize, trial.evaluate, lambda: costs, 0.9, max_drop=0.01)
    assert gated.excluded == ("b", "c")
    assert trial.calls[0] == ()


def test_a_gain_passes_at_once():
    trial = Trial({"a": -0.1})

    def never() -> dict[str, float]:
        raise AssertionError("measured, though nothing has to go back to float")

    gated = quantize_within(trial.quantize, trial.evaluate, never, 0.9, max_drop=0.0)
    assert trial.calls == [()]
    assert gated.drop < 0


def test_the_gate_gives_up_when_float_does_not_hold():
    trial = Trial({"a": 0.0, "b": 0.0, "c": 0.0})
    with pytest.raises(MdeError, match=r"quantize\.max_drop=0\.01: delta1 falls by 0\.05 with every layer in float"):
        quantize_within(trial.quantize, trial.evaluate, lambda: trial.costs, 0.95, max_drop=0.01)
    assert trial.calls[-1] == ("a", "b", "c")


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
