"""Proof, from an INT8 file alone, that ONNX Runtime and OpenVINO compute it right on every x86.

A processor without VNNI multiplies unsigned 8 bits by signed 8 bits with VPMADDUBSW, which adds two products in 16 bits
and saturates: 255 x 127 + 255 x 127 becomes 32,767, with no error. Activations that a file holds as signed are shifted
into unsigned ones before. With weights of 7 bits, -64 to 64, no two products can leave 16 bits.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mde.engines.openvino_core import core
from mde.errors import MdeError

PRODUCTS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


def largest_pairs(path: Path) -> dict[str, int]:
    """Each convolution and matrix product of `path` (.onnx or .xml) with weights in 8 bits -> the largest magnitude
    that the sum of two of its products can have: 255 (|w1| + |w2|). Which weights a kernel lays side by side is its own
    affair, so w1 and w2 are any two of the layer's.
    """
    pairs = {}
    for node in core().read_model(path).get_ops():
        if node.get_type_name() in PRODUCTS:
            for stored in map(_stored, node.input_values()):
                if stored is not None:
                    name = node.get_friendly_name().removesuffix("/WithoutBiases")  # OpenVINO's, of an ONNX layer
                    pairs[name] = 255 * int(np.sort(np.abs(stored.astype(int)), axis=None)[-2:].sum())
    return pairs


def check_pairs(path: Path) -> None:
    """MdeError names the first layer of `path` in which two products can leave 16 bits."""
    for name, pair in largest_pairs(path).items():
        if pair > np.iinfo(np.int16).max:
            raise MdeError(
                f"{path}: two products of {name} can add up to {pair:,}, more than 16 bits hold: wrong on x86 "
                "processors without VNNI; quantize its weights to 7 bits"
            )


def _stored(value: Any) -> np.ndarray | None:
    """The constant in 8 bits that `value`, an input of a node, is made of by scaling and reshaping."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    if node.get_type_name() == "Constant" and node.get_element_type().get_size() == 1:
        return node.get_data()
    return None
