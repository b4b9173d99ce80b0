"""Fake quantization: a network that computes, in floats and with gradients, what its INT8 file will.

Only what enters a convolution is rounded, its weights and its input: sums, biases and all between convolutions stay
float. Everything is signed and symmetric, as TensorRT wants it, and weights take 7 bits, so that the same network is
right in ONNX Runtime and OpenVINO on every x86 (`mde.engines.pairs`).
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models import load_model, read_metadata
from mde.models.checkpoints import SCALES
from mde.models.network import DepthNetwork

LARGEST_WEIGHT = 64  # in steps: 2 x 255 x 64 fits into 16 bits


def weight_scale(weight: Tensor) -> Tensor:
    """Of each output channel c, float (C,): s_c = max |w_c| / 64, and 1 for a channel of zeros."""
    scale = weight.detach().flatten(1).abs().amax(dim=1) / LARGEST_WEIGHT
    return torch.where(scale > 0, scale, 1)


def fake_quantize_weight(weight: Tensor) -> Tensor:
    """Signed 7 bits, symmetric, a scale per output channel c: w' = s_c round(w / s_c). The gradient passes through."""
    scale = weight_scale(weight)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)


class FakeQuantized(nn.Conv2d):
    """What `fake_quantize` makes of a convolution: w' * x', with x' = s clamp(round(x / s), -128, 127), s being
    `input_scale`. The gradient passes through the rounding, and is zero where x is clamped.
    """

    input_scale: float

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rounded = torch.fake_quantize_per_tensor_affine(input, self.input_scale, 0, -128, 127)
        return super()._conv_forward(rounded, fake_quantize_weight(weight), bias)


def fake_quantize(network: nn.Module, scales: Mapping[str, float]) -> None:
    """From here on every convolution of `network` computes as in INT8, in place; parameters and names stay.

    scales  convolution -> scale of its input. MdeError when they are not those of this network.
    """
    layers = convolutions(network)
    if layers.keys() != scales.keys():
        odd = sorted(layers.keys() ^ scales.keys())
        raise MdeError(
            f"activation scales: {odd[0]} and {len(odd) - 1} others do not match the network; train it again with "
            "train.py quantize=qat"
        )
    for name, layer in layers.items():
        # A class and not a new module: whoever holds the layer (an optimizer, a teacher's hook) holds it still.
        layer.__class__ = type(f"FakeQuantized{type(layer).__name__}", (FakeQuantized, type(layer)), {})
        layer.input_scale = scales[name]  # type: ignore[assignment]


def activation_scales(network: nn.Module, images: Iterable[Tensor]) -> dict[str, float]:
    """Each convolution's name -> the scale at which its input, over all of `images` (each (N, 3, H, W)), just fits into
    signed 8 bits: max |x| / 127, and 1 for an input of zeros.

    Nothing is cut off: clipping at percentiles or at the smallest squared error cost accuracy on NYU's validation
    scenes. The image is an input like any other, because TensorRT computes a convolution in INT8 only where both its
    inputs are; rounding it in 8 bits costs little, it came in 8 bits.
    """
    layers = convolutions(network)
    largest = dict.fromkeys(layers, 0.0)

    def watch(name: str) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Tensor]) -> None:
            largest[name] = max(largest[name], float(inputs[0].abs().amax()))

        return hook

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    with torch.no_grad():
        for batch in images:
            network(batch)
    for handle in hooks:
        handle.remove()
    return {name: value / 127 if value else 1.0 for name, value in largest.items()}


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Each convolution by its name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def load_fake_quantized(path: Path) -> DepthNetwork:
    """The network in a file that `train.py quantize=qat` wrote, as INT8 computes it; MdeError for another file."""
    model = load_model(path)
    fake_quantize(model, read_scales(path))
    return model


def read_scales(path: Path) -> dict[str, float]:
    """The activation scales in a file that `train.py quantize=qat` wrote; MdeError for another file."""
    scales = read_metadata(path).get(SCALES) if path.suffix == ".safetensors" else None
    if not scales:
        raise MdeError(
            f"{path}: holds no activation scales for quantize=qat; train it first with train.py quantize=qat"
        )
    return scales
