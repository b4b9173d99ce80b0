"""Networks that the tests of exported graphs share."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mde.models.checkpoints import narrow_to
from mde.models.midas_small import MidasSmall


def random_network(narrowed: bool = False, reference: bool = True, border: str = "zeros") -> MidasSmall:
    """Lite 0 in eval mode with random weights and BatchNorm statistics, far from those of a fresh network.

    narrowed  every width is five channels smaller, as pruning could leave it: no multiple of anything
    """
    torch.manual_seed(0)
    model = MidasSmall("lite0", reference=reference, border=border).eval()
    if narrowed:
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        narrow_to(model, {name: _narrowed(shape) for name, shape in shapes.items()})
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, _BatchNorm):
                for positive in (module.weight, module.running_var):
                    nn.init.uniform_(positive, 0.5, 1.5)
                for centred in (module.bias, module.running_mean):
                    nn.init.normal_(centred, std=0.3)
        final = model.decoder.head.conv3
        final.weight.abs_()  # some inverse depth everywhere
        final.bias.fill_(1.0)
    return model


def _narrowed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Five channels fewer, but for the image's three, one (depthwise or inverse depth) and the kernel's sides."""
    return tuple(width - 5 if width > 3 else width for width in shape[:2]) + shape[2:]
