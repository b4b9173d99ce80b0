"""Which loss is minimised at which step."""

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


class Objective(nn.Module):
    """data term + gradient x multi-scale gradient matching, on inverse depth scaled to the frame's nearest pixel.

    data         "trimmed" | "ssi" | "l1" | "mse". "mse" is the paper's: its target is the depth image as 8-bit grey
                 (0 at the camera, 255 at the frame's deepest pixel): larger means farther, and nothing is aligned
    gradient     weight of gradient matching
    start_steps  plain L1 and unaligned gradients for that many steps: from a random decoder the invariant forms alone
                 do not leave the constant predictor
    """

    def __init__(self, data: str, gradient: float, start_steps: int):
        super().__init__()
        if data not in TERMS:
            raise MdeError(f"loss.data={data}: unknown; choose one of {', '.join(TERMS)}")
        if gradient < 0 or start_steps < 0:
            raise MdeError("loss.gradient and loss.start_steps must not be negative")
        self.data, self.gradient, self.start_steps = data, gradient, start_steps

    def forward(self, prediction: Tensor, depth: Tensor, mask: Tensor, step: int) -> dict[str, Tensor]:
        """prediction, depth (metres) float (N, 1, H, W), mask bool -> scalars: loss, data, gradient."""
        data = "l1" if step < self.start_steps else self.data
        term, align = TERMS[data]
        target = grey_depth_target(depth, mask) if data == "mse" else inverse_depth_target(depth, mask)
        # In float32 also under autocast: sums over 10^5 pixels.
        parts = {"data": term(prediction.float(), target, mask)}
        parts["loss"] = parts["data"]
        if self.gradient > 0:
            parts["gradient"] = gradient_matching_loss(prediction.float(), target, mask, align=align)
            parts["loss"] = parts["data"] + self.gradient * parts["gradient"]
        return parts


def grey_depth_target(depth: Tensor, mask: Tensor) -> Tensor:
    """Depth as a grey picture in [0, 255], 255 at the frame's deepest known pixel; unknown and sky are 0."""
    known = mask & depth.isfinite() & (depth > 0)
    depth = depth.where(known, 0)
    return 255 * depth / depth.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
