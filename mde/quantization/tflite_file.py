"""TFLite files in INT8 and float16, for LiteRT."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.export.layer_names import convolutions_of, is_tflite_layer
from mde.quantization.between import Node, between_floats
from mde.quantization.calibration import check_calibration
from mde.quiet import quiet

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
# The image's SUB and MUL (normalisation) lose accuracy in INT8 and cost next to nothing, the output stays float32, and
# XNNPACK does not take a RELU between two scales: each cuts the graph in pieces that LiteRT's slow kernels connect.
FLOAT = ("OUTPUT", "SUB", "MUL", "RELU")


def quantize_tflite(source: Path, path: Path, calibration: Sequence[np.ndarray], exclude: Sequence[str] = ()) -> None:
    """Writes the FP32 graph `source` (.tflite) to `path` in static INT8, weights per output channel. Input and output
    keep their types.

    calibration  arrays as the graph takes them
    exclude      layers of the network (layer_names) that stay float, and what lies between them

    MdeError for calibration frames that are no good, an unknown layer, or a missing package.
    """
    edge = _import_quantizer()
    signature, image = _signature(edge, source)
    check_calibration(calibration, tuple(image["shape"]), image["dtype"])
    nodes = _nodes(edge, source)
    excluded = convolutions_of(exclude, [n.name for n in nodes if n.is_convolution], is_tflite_layer, source)

    recipe = edge.RecipeManager()
    recipe.add_static_config(".*", edge.Operation.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8)
    for operation in FLOAT:
        recipe.add_quantization_config(".*", edge.Operation[operation], algorithm_key="no_quantize")
    for scope in excluded + between_floats(nodes, excluded):
        recipe.add_quantization_config(
            f"^{re.escape(scope)}", edge.Operation.ALL_SUPPORTED, algorithm_key="no_quantize"
        )
    quantizer = edge.Quantizer(str(source), recipe.get_quantization_recipe())
    frames = {signature: [{image["name"]: frame} for frame in calibration]}
    with quiet():
        calibrated = quantizer.calibrate(frames, num_threads=1)
    safe = _with_safe_steps(edge, source, calibrated)
    _save(edge.Quantizer(safe, recipe.get_quantization_recipe()), calibrated, path)


def half_tflite(source: Path, path: Path) -> None:
    """Writes the FP32 graph `source` (.tflite) to `path` with weights in float16: half the file. LiteRT widens them
    when it opens the file and computes in FP32 on x86. MdeError when the package is missing.
    """
    edge = _import_quantizer()
    recipe = edge.RecipeManager()
    config = edge.OperationConfig(
        weight_tensor_config=edge.TensorConfig(num_bits=16, dtype=edge.DataType.FLOAT),
        compute_precision=edge.Precision.FLOAT,
        explicit_dequantize=True,
    )
    for operation in CONVOLUTIONS:
        recipe.add_quantization_config(".*", edge.Operation[operation], config, algorithm_key="float_casting")
    _save(edge.Quantizer(str(source), recipe.get_quantization_recipe()), None, path)


def _import_quantizer() -> Any:
    """The parts of ai_edge_quantizer and LiteRT that are needed here."""
    try:
        from ai_edge_litert.interpreter import Interpreter
        from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray
        from ai_edge_quantizer import qtyping
        from ai_edge_quantizer.quantizer import Quantizer
        from ai_edge_quantizer.recipe_manager import RecipeManager
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils
    except ImportError as error:
        raise MdeError("quantizing for LiteRT needs more packages: pip install -e '.[tflite]'") from error
    return SimpleNamespace(
        Interpreter=Interpreter,
        Quantizer=Quantizer,
        RecipeManager=RecipeManager,
        Operation=qtyping.TFLOperationName,
        OperationConfig=qtyping.OpQuantizationConfig,
        TensorConfig=qtyping.TensorQuantizationConfig,
        DataType=qtyping.TensorDataType,
        Precision=qtyping.ComputePrecision,
        flatbuffer=tfl_flatbuffer_utils,
        serialized=convert_object_to_bytearray,
    )


def _signature(edge: Any, source: Path) -> tuple[str, dict[str, Any]]:
    """The graph's signature, and name, shape and dtype of its one input there."""
    try:
        interpreter = edge.Interpreter(str(source))
    except ValueError as error:
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(f"{source}: LiteRT cannot read it ({reason}); export the network again") from error
    signature = next(iter(interpreter.get_signature_list()))
    [(name, details)] = interpreter.get_signature_runner(signature).get_input_details().items()
    return signature, {"name": name, "shape": details["shape"], "dtype": details["dtype"]}


def _nodes(edge: Any, source: Path) -> list[Node]:
    """The file's operators, named by their scopes, which is what the regular expressions of recipes see."""
    model = edge.flatbuffer.read_model(source)
    graph = model.subgraphs[0]
    return [
        Node(
            edge.flatbuffer.get_op_scope(operator, graph.tensors),
            [str(tensor) for tensor in operator.inputs],
            [str(tensor) for tensor in operator.outputs],
            _is_convolution(edge, model, operator),
        )
        for operator in graph.operators
    ]


def _is_convolution(edge: Any, model: Any, operator: Any) -> bool:
    code = model.operatorCodes[operator.opcodeIndex].builtinCode
    return edge.flatbuffer.TFL_OP_CODE_TO_NAME.get(code) in CONVOLUTIONS


def _with_safe_steps(edge: Any, source: Path, ranges: dict[str, dict[str, Any]]) -> bytes:
    """The graph, and (changed in place) the `ranges` of the tensors of its integer layers, by name, with what is dead
    after pruning moved so little from zero that the steps, 1/255 of a range, are not too fine:

    An output that never left zero gets steps as large as those of the sum that it rounds. XNNPACK creates no
    convolution whose output has 256 times finer steps, and LiteRT then dies in its clean-up
    (https://github.com/tensorflow/tensorflow/pull/75702, closed).

    A filter of zeros gets one weight. Its bias is counted in steps of input times steps of weights; in finer ones it
    would not fit into 32 bits and be cut off without a word.
    """
    model = edge.flatbuffer.read_model(source)
    tensors = model.subgraphs[0].tensors
    for operator in model.subgraphs[0].operators:
        if not _is_convolution(edge, model, operator):
            continue
        image, weights, output = (tensors[i] for i in (*operator.inputs[:2], operator.outputs[0]))
        taken, given = (ranges.get(edge.flatbuffer.get_tensor_name(tensor)) for tensor in (image, output))
        if taken is None or given is None:  # of a layer that stays float
            continue
        span = max(taken["max"].max(), 0) - min(taken["min"].min(), 0)
        if span == 0:  # nothing but zeros comes in: the quantizer's own least range will do
            continue
        filters = edge.flatbuffer.get_tensor_data(weights, model.buffers).copy()
        if len(operator.inputs) == 3 and operator.inputs[2] >= 0:
            bias = edge.flatbuffer.get_tensor_data(tensors[operator.inputs[2]], model.buffers)
            least = 127 * 255 * np.abs(bias) / (2**30 * span)
            rows = filters if len(filters) == len(bias) else np.moveaxis(filters, -1, 0)  # depthwise: (1, h, w, C)
            for row in np.flatnonzero(np.abs(rows).reshape(len(rows), -1).max(axis=1) < least):
                rows[row].flat[0] = least[row]
            model.buffers[weights.buffer].data = filters.view(np.uint8).ravel()
        given["max"] = np.maximum(given["max"], min(given["min"].min(), 0) + np.abs(filters).max() / 127 * span)
    return bytes(edge.serialized(model))


def _save(quantizer: Any, calibrated: Any, path: Path) -> None:
    with quiet():
        result = quantizer.quantize(calibrated, enable_progress_bar=False, enable_progress_report=False)
    with atomic_file(path) as file:
        file.write(result.quantized_model)
