"""From radiance to an 8-bit picture: exposure, white balance, vignetting, blur, noise, and the tone curve."""

import torch
import torch.nn.functional as F
from torch import Tensor


def expose(radiance: Tensor, generator: torch.Generator) -> Tensor:
    """Linear radiance float32 (3, H, W) -> uint8 RGB (3, H, W). The generator lives on the CPU."""
    height, width = radiance.shape[1:]
    chance = _chance(generator)
    balance = torch.tensor([1 + 0.3 * (chance[0] - 0.25), 1.0, 1 + 0.3 * (chance[1] - 0.65)], device=radiance.device)
    level = 0.09 + 0.17 * chance[2]  # mean luminance that the automatic exposure aims for
    image = radiance * (balance * level / radiance.mean(dtype=torch.float64).float().clamp_min(1e-3))[:, None, None]
    image = _vignette(image, 0.4 * chance[3] ** 2)
    if chance[4] < 0.7:
        image = _blur(image, 0.35 + 0.5 * chance[5])
    noise = torch.randn(3, height, width, generator=generator).to(radiance.device)
    gain = 0.02 * chance[6] ** 2  # shot noise grows with the root of the signal
    image = image + noise * (gain * gain + gain * 0.05 * image).sqrt()
    image = image.clamp(0, 4)
    image = image * (1 + image / 6.25) / (1 + image)  # highlights roll off, white at 2.5
    image = (image * 1.5).clamp(0, 1) ** (1 / (1.9 + 0.6 * chance[7]))
    contrast = 1.15 + 0.6 * chance[8]
    return ((image - 0.45) * contrast + 0.45).clamp(0, 1).mul(255).round().to(torch.uint8)


def _chance(generator: torch.Generator) -> list[float]:
    """What a picture's taking is left to, each in 0 to 1."""
    return torch.rand(9, generator=generator).tolist()


def _vignette(image: Tensor, strength: float) -> Tensor:
    y = torch.linspace(-1, 1, image.shape[1], device=image.device)
    x = torch.linspace(-1, 1, image.shape[2], device=image.device)
    return image * (1 - strength * 0.5 * (x[None, :] ** 2 + y[:, None] ** 2))


def _blur(image: Tensor, sigma: float) -> Tensor:
    taps = torch.exp(-0.5 * (torch.arange(-1, 2, device=image.device) / sigma) ** 2)
    taps = taps / taps.sum()
    padded = F.pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    across = taps[0] * padded[:, :, :-2] + taps[1] * padded[:, :, 1:-1] + taps[2] * padded[:, :, 2:]
    return taps[0] * across[:, :-2] + taps[1] * across[:, 1:-1] + taps[2] * across[:, 2:]
