"""Which loss is minimised at which step."""

import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.losses import gradient_matching_loss, inverse_depth_target, l1_loss, mse_loss, ssi_loss, trimmed_mae_loss

# Data term, and the alignment inside gradient matching that goes with it.
TERMS = {
    "trimmed": (trimmed_mae_loss, "median"),
    "ssi": (ssi_loss, "least_squares"),
    "l1": (l1_loss, "none"),
    "mse": (mse_loss, "none"),
}
# Where plain regression puts what a teacher sees farthest, its nearest being 1: as in a room whose far wall is four
# times as far as its nearest thing. At 0, no infinity in a teacher's scale, a plain closing ReLU dies within ten steps.
FARTHEST = 0.25


class Objective(nn.Module):
    """data term + gradient x multi-scale gradient matching, on inverse depth scaled to the frame's nearest pixel.

    data         "trimmed" | "ssi" | "l1" | "mse". "mse" is the paper's: its target is the depth image as 8-bit grey
                 (0 at the camera, 255 at the frame's deepest pixel): larger means farther, and nothing is aligned
    gradient     weight of gradient matching
    start_steps  plain L1 and unaligned gradients for that many steps: from a random decoder the invariant forms alone
                 do not leave the constant predictor
    teacher      weight of a teacher's term, of the same form: trimmed, whatever `data` is, since a teacher errs, and
                 its scale and shift mean nothing
    """

    def __init__(self, data: str, gradient: float, start_steps: int, teacher: float = 1.0):
        super().__init__()
        if data not in TERMS:
            raise MdeError(f"loss.data={data}: unknown; choose one of {', '.join(TERMS)}")
        if gradient < 0 or start_steps < 0 or teacher < 0:
            raise MdeError("loss.gradient, loss.start_steps and loss.teacher must not be negative")
        self.data, self.gradient, self.start_steps, self.teacher = data, gradient, start_steps, teacher

    @property
    def blind_to_scale(self) -> bool:
        """Whether the data term is the same for a prediction of any scale."""
        return TERMS[self.data][1] != "none"

    def forward(
        self, prediction: Tensor, depth: Tensor, mask: Tensor, step: int, teacher: Tensor | None = None
    ) -> dict[str, Tensor]:
        """prediction, depth (metres) and teacher (as `relative_inverse_depth` scales it) float (N, 1, H, W), mask bool
        -> scalars: loss, data, gradient, and teacher where there is one.
        """
        prediction = prediction.float()  # also under autocast: sums over 10^5 pixels
        starting = step < self.start_steps
        data = "l1" if starting else self.data
        target = grey_depth_target(depth, mask) if data == "mse" else inverse_depth_target(depth, mask)
        parts = self._terms(data, prediction, target, mask)
        if teacher is not None:
            wanted, everywhere = FARTHEST + (1 - FARTHEST) * teacher, torch.ones_like(mask)
            parts["teacher"] = self._terms("l1" if starting else "trimmed", prediction, wanted, everywhere)["loss"]
            parts["loss"] = parts["loss"] + self.teacher * parts["teacher"]
        return parts

    def _terms(self, data: str, prediction: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        term, align = TERMS[data]
        parts = {"data": term(prediction, target, mask)}
        parts["loss"] = parts["data"]
        if self.gradient > 0:
            parts["gradient"] = gradient_matching_loss(prediction, target, mask, align=align)
            parts["loss"] = parts["data"] + self.gradient * parts["gradient"]
        return parts


def grey_depth_target(depth: Tensor, mask: Tensor) -> Tensor:
    """Depth as a grey picture in [0, 255], 255 at the frame's deepest known pixel; unknown and sky are 0."""
    known = mask & depth.isfinite() & (depth > 0)
    depth = depth.where(known, 0)
    return 255 * depth / depth.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
