"""ONNX files in INT8 and float16.

What is fast differs: ONNX Runtime on x86 has quick kernels for unsigned activations with signed weights only, so the
symmetric graph that TensorRT asks for is slower there. Those kernels, and OpenVINO's, are right on every x86 only for
weights of 7 bits (`mde.engines.pairs`).
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.export.layer_names import convolutions_of, is_onnx_layer
from mde.quantization.between import Node, between_floats
from mde.quantization.calibration import check_calibration
from mde.quantization.fake import fake_quantize_weight, weight_scale
from mde.quiet import quiet


def quantize_onnx(
    source: Path, path: Path, calibration: Sequence[np.ndarray], symmetric: bool = False, exclude: Sequence[str] = ()
) -> None:
    """Writes the FP32 graph `source` to `path` in static INT8: Q/DQ pairs, a scale per output channel of weights, a
    scale per tensor of activations, from the smallest and largest values over `calibration`. The normalisation of the
    image and the last convolution's output stay float: in 8 bits an inverse depth has 256 levels, few of them far away.

    calibration  arrays as the graph takes them
    symmetric    every zero point is 0, biases stay float and weights take 8 bits, as TensorRT wants; otherwise
                 activations are unsigned and weights take 7 bits, as is fast in ONNX Runtime and OpenVINO, and right
    exclude      layers of the network (layer_names) that stay float, and what lies between them

    MdeError for calibration frames that are no good, an unknown layer, or a graph that has no convolution.
    """
    graph = _load(source)
    image = graph.graph.input[0]
    check_calibration(
        calibration, _shape(image), onnx.helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    )
    excluded = convolutions_of(exclude, [node.name for node in _convolutions(graph)], is_onnx_layer, source)
    nodes = [Node(node.name, node.input, node.output, node.op_type == "Conv") for node in graph.graph.node]
    closing = [node.name for node in _closing(graph.graph)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        _prepare(source, prepared)
        quantize_static(
            prepared,
            quantized,
            _Frames(image.name, calibration),
            quant_format=QuantFormat.QDQ,
            # Not Conv alone: a chain between convolutions that stays float costs a pair of conversions at both ends.
            op_types_to_quantize=["Conv", "Add", "Relu", "Clip", "Resize", "Pad"],
            per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=not symmetric,
            # The closing ReLU too: the quantizer drops one whose rounded output begins at 0.
            nodes_to_exclude=excluded + between_floats(nodes, excluded) + _shifts(graph) + closing,
            extra_options={"ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
        )
        result = onnx.load(quantized)
    _keep_output_float(result.graph)
    _save(result, path)
    if symmetric:
        check_symmetric(path)


def fake_quantized_onnx(source: Path, path: Path, scales: Mapping[str, float]) -> None:
    """Writes the FP32 graph `source` to `path` with Q/DQ pairs where `fake_quantize` rounds, and nowhere else: what
    enters a convolution, at the scale that `scales` has for it, and its weights, stored in int8, an axis-0 scale each.
    Every zero point is 0; biases stay float.

    scales  of every convolution of the network (layer_names). MdeError when they are not those of this graph.
    """
    graph = _load(source)
    names = [node.name for node in _convolutions(graph)]
    if len(names) != len(scales):
        raise MdeError(f"{source}: {len(names)} convolutions, {len(scales)} activation scales; export it again")
    scale_of = dict(zip(convolutions_of(scales, names, is_onnx_layer, source), scales.values(), strict=True))
    pairs = _Pairs(graph.graph)
    nodes = list(graph.graph.node)
    del graph.graph.node[:]
    for node in nodes:
        if node.op_type == "Conv":
            node.input[0] = pairs.activation(node.input[0], scale_of[node.name])
            node.input[1] = pairs.weight(node.input[1])
        graph.graph.node.append(node)
    pairs.drop_float_weights()
    _save(graph, path)
    check_symmetric(path)


class _Pairs:
    """Q/DQ pairs, appended to a graph's nodes where they are first asked for. A tensor that several convolutions read
    at the same scale has one."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.weights = {tensor.name: tensor for tensor in graph.initializer}
        self.made: dict[tuple[str, float | None], str] = {}  # tensor, scale (None: a weight) -> what replaces it
        self.zero = self._constant("zero_point", np.zeros((), np.int8))

    def activation(self, tensor: str, scale: float) -> str:
        """The name of `tensor`, rounded."""
        if (tensor, scale) not in self.made:
            name = f"{tensor}_{len(self.made)}"
            ends = [self._constant(f"{name}_scale", np.float32(scale)), self.zero]
            self._node("QuantizeLinear", [tensor, *ends], f"{name}_quantized")
            self.made[tensor, scale] = self._node("DequantizeLinear", [f"{name}_quantized", *ends], f"{name}_rounded")
        return self.made[tensor, scale]

    def weight(self, tensor: str) -> str:
        """The name of the constant `tensor`, (C, ...), rounded and stored in int8."""
        if (tensor, None) not in self.made:
            values = torch.from_numpy(numpy_helper.to_array(self.weights[tensor]).copy())
            scale = weight_scale(values)
            rounded = (fake_quantize_weight(values) / scale[:, None, None, None]).round()
            ends = [
                self._constant(f"{tensor}_int8", rounded.numpy().astype(np.int8)),
                self._constant(f"{tensor}_scale", scale.numpy()),
                self._constant(f"{tensor}_zero_point", np.zeros(len(scale), np.int8)),
            ]
            self.made[tensor, None] = self._node("DequantizeLinear", ends, f"{tensor}_rounded")
            self.graph.node[-1].attribute.append(onnx.helper.make_attribute("axis", 0))
        return self.made[tensor, None]

    def drop_float_weights(self) -> None:
        """Those that no node reads any more."""
        for tensor, scale in self.made:
            if scale is None:
                self.graph.initializer.remove(self.weights[tensor])

    def _constant(self, name: str, value: np.ndarray | np.generic) -> str:
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], output: str) -> str:
        self.graph.node.append(onnx.helper.make_node(kind, inputs, [output], name=output))
        return output


def check_symmetric(path: Path) -> None:
    """MdeError names the first tensor of `path` with a zero point other than 0: TensorRT takes no such graph."""
    graph = _load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2:
            zero_point = constants.get(node.input[2])
            # Unsigned around 0 covers half an axis. A zero point that is computed is not known to be 0.
            if zero_point is None or zero_point.any() or zero_point.dtype == np.uint8:
                raise MdeError(
                    f"{path}: {node.input[0]} has the zero point {_first(zero_point)}; TensorRT takes symmetric "
                    "quantization only (signed, around 0): quantize with symmetric=True"
                )


def half_onnx(source: Path, path: Path) -> None:
    """Writes the FP32 graph `source` to `path` in float16, weights and arithmetic, as a strongly typed TensorRT takes
    its precision. Input and output keep their types.
    """
    # The converter's own list of operators that stay in float32 has Resize, which TensorRT does in float16.
    _save(convert_float_to_float16(_load(source), keep_io_types=True, op_block_list=[]), path)


def dynamic_onnx(source: Path, path: Path) -> None:
    """Writes the FP32 graph `source` to `path` in ONNX Runtime's dynamic INT8: weights are stored as integers, scales
    of activations are found during each run. Nothing is calibrated. It is small, and slow: every convolution becomes
    ConvInteger.
    """
    with tempfile.TemporaryDirectory() as folder, quiet():
        prepared, quantized = Path(folder) / "prepared.onnx", Path(folder) / "quantized.onnx"
        _prepare(source, prepared)
        quantize_dynamic(
            prepared, quantized, op_types_to_quantize=["Conv"], weight_type=QuantType.QInt8, reduce_range=True
        )
        _save(onnx.load(quantized), path)


class _Frames(CalibrationDataReader):
    def __init__(self, name: str, frames: Sequence[np.ndarray]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter([{name: frame} for frame in frames])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _load(path: Path) -> onnx.ModelProto:
    try:
        return onnx.load(path)
    except Exception as error:  # a missing file, a truncated one, another format: no class in common
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(f"{path}: not a readable ONNX file ({reason}); export the network again") from error


def _prepare(source: Path, path: Path) -> None:
    """Folds what is constant. Biases that are equal in value are stored once by PyTorch's exporter and reach the others
    through Identity nodes, where the quantizer does not take them for biases and leaves them float."""
    _load(source)  # only for its error; the preparation moves the weights out of a graph that it is given
    quant_pre_process(source, path, skip_symbolic_shape=True)


def _save(graph: onnx.ModelProto, path: Path) -> None:
    """Without the operator sets of ONNX Runtime's own that its tools declare and no node uses."""
    used = {node.domain for node in graph.graph.node}
    kept = [entry for entry in graph.opset_import if entry.domain in used or entry.domain in ("", "ai.onnx")]
    del graph.opset_import[:]
    graph.opset_import.extend(kept)
    onnx.checker.check_model(graph)
    with atomic_file(path) as file:
        file.write(graph.SerializeToString())


def _shifts(graph: onnx.ModelProto) -> list[str]:
    """The additions of a constant, in GELU or as a linear layer's bias: TensorRT refuses a constant that is rounded for
    anything but a convolution, and linear layers are in float.
    """
    constants = {tensor.name for tensor in graph.graph.initializer}
    return [node.name for node in graph.graph.node if node.op_type == "Add" and not constants.isdisjoint(node.input)]


def _convolutions(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    found = [node for node in graph.graph.node if node.op_type == "Conv"]
    if not found:
        raise MdeError("the graph has no convolution: export the network again, in FP32")
    return found


def _closing(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """What follows the last convolution, the last node first."""
    makers = {output: node for node in graph.node for output in node.output}
    nodes = [makers[graph.output[0].name]]
    while nodes[-1].op_type in ("QuantizeLinear", "DequantizeLinear", "Relu", "Resize", "DepthToSpace"):
        nodes.append(makers[nodes[-1].input[0]])
    return nodes[:-1]


def _keep_output_float(graph: onnx.GraphProto) -> None:
    """Takes the rounding out of what follows the last convolution. OpenVINO's and TensorRT's INT8 convolutions write
    floats at no cost; ONNX Runtime's do not, there the last one, of few outputs, runs in float on rounded inputs."""
    makers = {output: node for node in graph.node for output in node.output}
    for node in _closing(graph):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            makers[node.input[0]].output[0] = node.output[0]
            graph.node.remove(node)
    read = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)  # their scales: ONNX Runtime warns of what no node reads


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _first(zero_point: np.ndarray | None) -> str:
    if zero_point is None:
        return "of an unknown value"
    values = zero_point.ravel()
    return f"{values[values.nonzero()[0][0]] if values.any() else 0} ({zero_point.dtype})"
