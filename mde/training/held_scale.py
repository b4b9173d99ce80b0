"""What keeps a training's numbers small: invariant losses do not see a prediction's scale, and AdamW lets it grow."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

# Root mean squares over a batch: of the prediction, at least and at most; of the decoder's other maps, at most. Half
# precision ends at 65,504, and the largest value of a map is some ten times its root mean square. What
# mde.models.scale makes of a network lies inside.
LEAST, MOST = 2.0**-10, 2.0**8
WEIGHT = 0.1  # beside losses that are some tenths


def scale_term(maps: Mapping[str, Tensor]) -> Tensor:
    """WEIGHT times the squared distance of the maps' scale to the held range, in powers of two, summed over `maps`, of
    which the last is the prediction; a scalar.

    0 inside the range, where accuracy is the loss's matter alone. Outside, only scales move it, to which an invariant
    loss is blind: the two do not compete.
    """
    *_, last = maps
    with torch.no_grad():
        scales = torch.stack([_scale(values) for values in maps.values()])
        least = torch.tensor([LEAST if name == last else 0 for name in maps]).to(scales)
        outside = ((scales > MOST) | (scales < least)).tolist()
    term = scales.new_zeros(())
    for values in (values for values, is_outside in zip(maps.values(), outside, strict=True) if is_outside):
        power = _scale(values).log2()
        term = term + (power - power.detach().clamp(math.log2(LEAST), math.log2(MOST))).square()
    return WEIGHT * term


def _scale(values: Tensor) -> Tensor:
    """Root mean square; of zeros so much that the logarithm is a number."""
    return (values.float().square().mean() + 1e-12).sqrt()
