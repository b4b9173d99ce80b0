"""How much each layer suffers from INT8, found in PyTorch, for all engines alike."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.quantization.fake import convolutions, fake_quantize_weight


def layer_sensitivity(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Each convolution's name -> mean absolute change of the output, as a share of its range, when that convolution
    alone is quantized; the mean over `images`.

    model   the deployable network
    images  (N, 3, H, W), as `model` takes them; they also give the range of the activations

    MdeError when the output is the same everywhere.
    """
    layers = convolutions(model)
    with torch.inference_mode():
        expected = model(images)
        low, high = expected.flatten(1).aminmax(dim=1)
        if not (high > low).all():
            raise MdeError(
                "layer sensitivity: the network answers the same everywhere; use a trained network and real images"
            )
        sensitivity = {}
        for name, layer in layers.items():
            with _fake_quantized(layer):
                change = (model(images) - expected).abs().flatten(1).mean(dim=1)
            sensitivity[name] = float((change / (high - low)).mean())
    return sensitivity


def fake_quantize_activation(x: Tensor) -> Tensor:
    """Unsigned 8 bits, one scale for all of `x`, from its own extremes widened to hold 0 exactly:
    s = (max - min) / 255, z = round(-min / s), x' = s (clamp(round(x / s) + z, 0, 255) - z).
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    scale = torch.where(scale > 0, scale, 1)
    zero = (-low / scale).round().int()
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


@contextlib.contextmanager
def _fake_quantized(layer: nn.Conv2d) -> Iterator[None]:
    """`layer` with its weights, and what comes in, rounded to 8 bits."""

    def round_input(_layer: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
        return (fake_quantize_activation(inputs[0]),)

    weight = layer.weight
    layer.weight = nn.Parameter(fake_quantize_weight(weight), requires_grad=False)
    hook = layer.register_forward_pre_hook(round_input)
    try:
        yield
    finally:
        hook.remove()
        layer.weight = weight
