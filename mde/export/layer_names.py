"""A layer's name in PyTorch ("decoder.head.conv1") and what exporters made of it.

ONNX    "/network/decoder/head/conv1/Conv". A container that is indexed instead of called shows as
        "/network/encoder/blocks.1/blocks.1.0/conv_pw/Conv".
TFLite  the output's name: the scopes of what was fused into one operator, activation and convolution, each
        "mde.export.image_graph.ImageGraph/torch.nn...Conv2d_conv1": class and attribute of every module called.
        Containers that are never called are missing: of "encoder.blocks.1.0.conv_pw" it has encoder, 1, 0, conv_pw.

`exclude=["decoder.head.conv1"]` means the layer of the deployable network; ImageGraph, around it, calls it "network".
"""

from collections.abc import Callable, Iterable

from mde.errors import MdeError

WRAPPER = "network"


def onnx_layer(node: str) -> str:
    """The layer of a convolution's node in ONNX."""
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts).removeprefix(f"{WRAPPER}.")


def is_onnx_layer(node: str, layer: str) -> bool:
    """Whether `node`, a convolution in ONNX, is `layer`."""
    return onnx_layer(node) == layer


def is_tflite_layer(tensor: str, layer: str) -> bool:
    """Whether `tensor`, a convolution's output in TFLite, is made by `layer`."""
    return any(_is_scope_of(scope, layer) for scope in tensor.split(";"))


def _is_scope_of(scope: str, layer: str) -> bool:
    modules = [part.rpartition(".")[2].partition("_")[2] for part in scope.split("/")]
    called = [module for module in modules if module and module != WRAPPER]
    parts = layer.split(".")
    rest = iter(parts)
    return bool(called) and called[-1] == parts[-1] and all(module in rest for module in called)


def convolutions_of(
    layers: Iterable[str], convolutions: Iterable[str], is_layer: Callable[[str, str], bool], source: object
) -> list[str]:
    """The names in `convolutions`, a file's, that are `layers`. MdeError when a layer is not exactly one of them."""
    names = list(convolutions)
    found = []
    for layer in layers:
        matching = [name for name in names if is_layer(name, layer)]
        if len(matching) != 1:
            raise MdeError(
                f"{source}: {len(matching)} convolutions are called {layer}; exclude layers by their names in the "
                "network"
            )
        found += matching
    return found
