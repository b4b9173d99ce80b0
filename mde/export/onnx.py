"""ONNX files."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.onnx.symbolic_helper import parse_args

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.export.image_graph import ImageGraph
from mde.quiet import quiet

if TYPE_CHECKING:
    import onnx


def export_onnx(
    model: nn.Module, path: Path, size: tuple[int, int], opset: int = 17, as_published: bool = False
) -> None:
    """Writes `model`, in eval mode, to `path` for one image of `size` (height, width); every shape is a constant.

    Input "image": as an ImageGraph takes it, else (1, 3, H, W), normalised as the network takes it. Output
    "inverse_depth": (1, 1, H, W).

    as_published  leaves the graph as torch writes it; otherwise paddings become constants and the graph is simplified,
                  both exactly: the baseline of a speed figure must not gain by our rewrites

    MdeError when the network cannot be exported at this size, when the file's opset is not `opset`, or the checker
    refuses it.
    """
    import onnx
    import onnxslim

    image = model.example(size) if isinstance(model, ImageGraph) else torch.zeros(1, 3, *size)
    image = image.to(next(model.parameters()).device)
    content = io.BytesIO()
    try:
        # dynamo=False is old, and sizes become constants: both are wanted, and the exporter need not warn of them.
        with quiet(), contextlib.nullcontext() if as_published else _constant_padding(opset):
            # The newer exporter (dynamo=True) writes opset 18 whatever is asked for.
            torch.onnx.export(
                model,
                (image,),
                content,  # type: ignore[arg-type]
                dynamo=False,
                opset_version=opset,
                input_names=["image"],
                output_names=["inverse_depth"],
            )
        graph = onnx.load_from_string(content.getvalue())
        if not as_published:
            graph = onnxslim.slim(graph)
        onnx.checker.check_model(graph, full_check=True)
    except Exception as error:  # tracing runs the network's own code, which can fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(
            f"{path}: this network cannot be exported to ONNX opset {opset} at {size[0]} x {size[1]} ({reason}); "
            "choose another size or opset"
        ) from error
    written = opset_of(graph)
    if written != opset:
        raise MdeError(f"{path}: the exporter wrote opset {written} instead of {opset}; choose another opset")
    with atomic_file(path) as file:
        file.write(graph.SerializeToString())


def opset_of(graph: "onnx.ModelProto") -> int:
    """The version of ONNX's own operators that `graph` uses."""
    return next(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))


@contextlib.contextmanager
def _constant_padding(opset: int) -> Iterator[None]:
    """Pads are written as constants. The exporter's own rule computes them in the graph by six operators, and no shape
    after the first padding is known any more.
    """
    torch.onnx.register_custom_op_symbolic("aten::pad", _pad, opset)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::pad", opset)


@parse_args("v", "is", "s", "f")
def _pad(graph: Any, x: Any, pads: list[int], mode: str, value: float | None) -> Any:
    """Padding of (N, C, H, W). torch lists (before, after) from the last axis on, ONNX all befores, then all afters."""
    unpadded = [0] * (4 - len(pads) // 2)
    widths = torch.tensor(unpadded + pads[-2::-2] + unpadded + pads[-1::-2])
    if mode == "replicate":
        return graph.op("Pad", x, graph.op("Constant", value_t=widths), mode_s="edge")
    constants = [graph.op("Constant", value_t=constant) for constant in (widths, torch.tensor(value or 0.0))]
    return graph.op("Pad", x, *constants, mode_s=mode)
