"""Fake quantization in PyTorch, and the ONNX file that does the same in integers."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mde.engines.openvino_core import core
from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
from mde.export.layer_names import onnx_layer
from mde.export.rewrites import fold_batchnorm
from mde.models import load_model, save_model
from mde.models.dpt import DptHybrid
from mde.models.midas_small import SamePadConv2d
from mde.quantization.fake import (
    SCALES,
    activation_scales,
    convolutions,
    fake_quantize,
    load_fake_quantized,
    read_scales,
)
from mde.quantization.onnx_file import check_symmetric, fake_quantized_onnx
from tests.export import random_network
from tests.quantization.small_network import SIZE, calibration_frames, difference, small_graph

torch.set_num_threads(1)


def reference_convolution(x: np.ndarray, layer: nn.Conv2d, scale: float, padding: tuple[int, int]) -> np.ndarray:
    """In float64, by loops, from the formula; padding: before and after, in both directions."""
    weight = layer.weight.detach().double().numpy()
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 64
    weight = np.round(weight / steps) * steps
    x = np.clip(np.round(x.astype(np.float64) / scale), -128, 127) * scale
    x = np.pad(x, ((0, 0), (0, 0), padding, padding))
    size, stride = layer.kernel_size[0], layer.stride[0]
    sides = [(length - size) // stride + 1 for length in x.shape[2:]]
    output = np.zeros((len(x), len(weight), *sides))
    for row in range(sides[0]):
        for column in range(sides[1]):
            patch = x[:, :, row * stride : row * stride + size, column * stride : column * stride + size]
            output[:, :, row, column] = np.tensordot(patch, weight, axes=([1, 2, 3], [1, 2, 3]))
    assert layer.bias is not None
    return output + layer.bias.detach().double().numpy()[:, None, None]


@pytest.mark.parametrize(
    ("kind", "options", "padding"),
    [(nn.Conv2d, {"padding": 1}, (1, 1)), (SamePadConv2d, {"stride": 2}, (0, 1))],
    ids=["Conv2d", "SamePadConv2d"],
)
def test_a_fake_quantized_convolution_is_the_formula(
    kind: type[nn.Conv2d], options: dict[str, int], padding: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, 3, **options)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    network = nn.Sequential(layer)
    fake_quantize(network, {"0": 0.013})
    assert np.abs(x).max() > 128 * 0.013, "something must be clamped"
    expected = reference_convolution(x, layer, 0.013, padding)
    np.testing.assert_allclose(network(torch.from_numpy(x)).detach().numpy(), expected, atol=1e-5)


def test_the_gradient_passes_the_rounding_and_stops_where_the_input_is_clamped() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False))
    exact = copy.deepcopy(network)
    fake_quantize(network, {"0": 0.01})
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    clamped = (x / 0.01).round().clamp(-128, 127) != (x / 0.01).round()
    assert clamped.any()
    assert not clamped.all()
    network(x).square().sum().backward()
    assert x.grad is not None
    assert not x.grad[clamped].any()
    # Straight-through: the gradient of the same convolution at the rounded input and weight.
    y = ((x.detach() / 0.01).round().clamp(-128, 127) * 0.01).requires_grad_()
    weight = network[0].weight
    step = weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / 64
    exact[0].weight.data = (weight.detach() / step).round() * step
    exact(y).square().sum().backward()
    torch.testing.assert_close(weight.grad, exact[0].weight.grad)
    torch.testing.assert_close(x.grad[~clamped], y.grad[~clamped])


def test_scales_are_the_largest_values_over_all_images() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([2.0, -1.0]).view(2, 1, 1, 1))
        network[0].bias.zero_()
    images = [torch.tensor([[[[1.0, -3.0]]]]), torch.tensor([[[[2.0, 0.5]]]])]
    scales = activation_scales(network, images)
    assert scales == pytest.approx({"0": 3 / 127, "2": 4 / 127})
    assert activation_scales(network, [torch.zeros(1, 1, 2, 2)]) == {"0": 1, "2": 1}
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_scales_of_another_network_are_refused() -> None:
    with pytest.raises(MdeError, match="activation scales: 1 and 0 others do not match"):
        fake_quantize(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1)), {"0": 1.0})


def test_a_file_holds_what_int8_needs_and_stays_an_ordinary_one(tmp_path: Path) -> None:
    model = random_network(reference=False)
    image = torch.randn(1, 3, 64, 64)
    scales = activation_scales(model, [image])
    save_model(model, tmp_path / "model.safetensors", **{SCALES: scales})
    with torch.no_grad():
        exact = model(image)
        assert torch.equal(load_model(tmp_path / "model.safetensors")(image), exact)
        fake_quantize(model, scales)
        expected = model(image)
        assert not torch.equal(expected, exact)
        assert torch.equal(load_fake_quantized(tmp_path / "model.safetensors")(image), expected)
    save_model(model, tmp_path / "plain.safetensors")
    with pytest.raises(MdeError, match=r"plain\.safetensors: holds no activation scales .* train.py quantize=qat"):
        read_scales(tmp_path / "plain.safetensors")


def test_what_is_rounded_stays_so_where_kernels_are_standardised_or_batchnorm_is_folded() -> None:
    torch.manual_seed(0)
    for model in (DptHybrid(blocks=1).eval(), random_network(reference=False)):
        image = torch.randn(1, 3, 64, 64)
        fold_batchnorm(model)
        scales = activation_scales(model, [image])
        deployed = deployable(model)
        with torch.no_grad():
            exact = model(image)
            fake_quantize(deployed, scales)
            fake_quantize(model, scales)
            expected = model(image)
            rounding = (expected - exact).abs().mean()
            assert rounding > 1e-5
            assert (deployed(image) - expected).abs().mean() < 0.2 * rounding  # values on the edge of two steps


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ImageGraph, dict[str, float]]:
    """The small network's file with Q/DQ at opset 13, the fake-quantized graph, and the scales."""
    folder = tmp_path_factory.mktemp("qat")
    graph = small_graph()
    planes = [torch.from_numpy(frame).float().permute(0, 3, 1, 2) for frame in calibration_frames()]
    scales = activation_scales(graph.network, [(image - graph.mean) / graph.std for image in planes])
    export_onnx(graph, folder / "float.onnx", SIZE, opset=13)
    fake_quantized_onnx(folder / "float.onnx", folder / "qat.onnx", scales)
    fake_quantize(graph.network, scales)
    return folder / "qat.onnx", graph, scales


def unoptimised(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def test_the_file_computes_what_the_fake_quantized_network_does(pair) -> None:
    path, graph, _ = pair
    openvino = core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    exact = small_graph()
    for frame in calibration_frames():
        with torch.no_grad():
            expected = graph(torch.from_numpy(frame)).numpy()
            rounding = difference(exact(torch.from_numpy(frame)).numpy(), expected)
            assert rounding > 5e-3
        assert difference(unoptimised(path).run(None, {"image": frame})[0], expected) < 1e-5
        # Integer convolutions: sums differ in their last bits, and a few values at the edge of two steps by a step.
        assert difference(openvino(frame)[0], expected) < 0.4 * rounding
        assert difference(onnxruntime.InferenceSession(path).run(None, {"image": frame})[0], expected) < 0.4 * rounding


def test_the_file_is_symmetric_int8_at_every_convolution_and_nowhere_else(pair) -> None:
    path, _, scales = pair
    check_symmetric(path)
    model = onnx.load(path)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    seen = []
    for node in model.graph.node:
        if node.op_type != "Conv":
            continue
        rounded, weight = maker[node.input[0]], maker[node.input[1]]
        assert (rounded.op_type, weight.op_type) == ("DequantizeLinear", "DequantizeLinear")
        assert maker[rounded.input[0]].op_type == "QuantizeLinear"
        assert maker[rounded.input[0]].input[1] == rounded.input[1]
        assert constants[rounded.input[1]] == np.float32(scales[onnx_layer(node.name)])
        assert constants[weight.input[0]].dtype == constants[weight.input[2]].dtype == np.int8
        assert [attribute.i for attribute in weight.attribute if attribute.name == "axis"] == [0]
        assert np.abs(constants[weight.input[0]]).reshape(len(constants[weight.input[1]]), -1).max(axis=1).min() == 64
        seen.append(onnx_layer(node.name))
    assert sorted(seen) == sorted(scales)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) <= len(scales)
    floats = [value for value in constants.values() if value.ndim == 4 and value.dtype == np.float32]
    assert all(value.size == 3 for value in floats), "beside the image's mean and std, weights in float are left"


@pytest.mark.parametrize("narrowed", [False, True])
def test_every_convolution_of_the_real_network_computes_the_same_from_the_same_input(
    tmp_path: Path, narrowed: bool
) -> None:
    """Layer by layer, because a value at the edge of two steps, rounded to either, moves all that follows: PyTorch
    multiplies by the inverse of the scale where ONNX divides.
    """
    model = random_network(narrowed)
    network = deployable(model)
    graph = ImageGraph(network, model.mean, model.std).eval()
    (frame,) = calibration_frames(1, (64, 64))
    scales = activation_scales(network, [(torch.from_numpy(frame).permute(0, 3, 1, 2) - graph.mean) / graph.std])
    export_onnx(graph, tmp_path / "float.onnx", (64, 64))
    fake_quantized_onnx(tmp_path / "float.onnx", tmp_path / "qat.onnx", scales)
    content = onnx.load(tmp_path / "qat.onnx")
    maker = {output: node for node in content.graph.node for output in node.output}
    ends = {}  # layer -> the tensors before rounding, after it, and after the convolution
    for node in content.graph.node:
        if node.op_type == "Conv":
            ends[onnx_layer(node.name)] = (maker[maker[node.input[0]].input[0]].input[0], node.input[0], node.output[0])
    names = sorted({name for three in ends.values() for name in three})
    content.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(content, tmp_path / "open.onnx")
    values = dict(zip(names, unoptimised(tmp_path / "open.onnx").run(names, {"image": frame}), strict=True))
    fake_quantize(network, scales)
    layers = convolutions(network)
    assert layers.keys() == ends.keys()
    for name, (entering, rounded, leaving) in ends.items():
        steps = values[entering].astype(np.float64) / scales[name]
        own = torch.fake_quantize_per_tensor_affine(torch.from_numpy(values[entering]), scales[name], 0, -128, 127)
        other = ~np.isclose(own.numpy(), values[rounded], rtol=1e-5, atol=0)
        assert np.abs(np.abs(steps[other] % 1) - 0.5).max(initial=0) < 1e-4, f"{name}: rounds what is at no edge"
        with torch.no_grad():
            output = layers[name](torch.from_numpy(values[rounded])).numpy()
        assert difference(output, values[leaving]) < 1e-5, name


def test_a_file_is_not_quantized_with_the_scales_of_another_network(pair, tmp_path: Path) -> None:
    path, _, scales = pair
    source = path.with_name("float.onnx")
    with pytest.raises(MdeError, match=f"{len(scales)} convolutions, 1 activation scales"):
        fake_quantized_onnx(source, tmp_path / "none.onnx", {"stem": 1.0})
    renamed = {f"other.{name}": scale for name, scale in scales.items()}
    with pytest.raises(MdeError, match="0 convolutions are called other"):
        fake_quantized_onnx(source, tmp_path / "none.onnx", renamed)
