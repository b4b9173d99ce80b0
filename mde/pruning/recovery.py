"""Getting accuracy back: BatchNorm's statistics corrected, and a dense teacher beside the depth losses."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mde.models.network import DepthNetwork
from mde.pruning.structure import OUT, ChannelGroup

DEAD = 1e-5  # variance of a channel that says nothing


@contextmanager
def corrected_statistics(model: DepthNetwork, images: Tensor) -> Iterator[None]:
    """Around a pruning of `model`, in evaluation mode: what a BatchNorm is fed changes, and its statistics follow.

    They are moved so that, over `images` (N, 3, H, W), every BatchNorm's output keeps its mean and variance. Not set to
    what the images show: a network may owe its accuracy to statistics of other images (ImageNet's, frozen, with
    trainer=cpu), and only what the pruning did is made good.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):  # a transformer
        yield
        return
    relative_statistics(model, images)
    yield
    absolute_statistics(model, images)


def relative_statistics(model: DepthNetwork, images: Tensor) -> None:
    """Counts BatchNorm's statistics from what its input shows for `images`, in its units: narrowing narrows both."""
    before: list[tuple[Any, Tensor, Tensor]] = []
    _observe(model, images, lambda norm, mean, variance: before.append((norm, mean, variance)))
    for norm, mean, variance in before:
        norm.running_mean.sub_(mean).div_(variance.sqrt())
        norm.running_var.div_(variance)


def absolute_statistics(model: DepthNetwork, images: Tensor) -> Tensor:
    """Undoes `relative_statistics` where the inputs may have changed; returns what `model` predicts then."""
    return _observe(model, images, _make_absolute)


def _make_absolute(norm: Any, mean: Tensor, variance: Tensor) -> None:
    norm.running_mean.mul_(variance.sqrt()).add_(mean)
    norm.running_var.mul_(variance)


@torch.no_grad()
def _observe(model: DepthNetwork, images: Tensor, act: Callable[[Any, Tensor, Tensor], None]) -> Tensor:
    """Runs `model` once and calls act(norm, mean, variance of its input) just before each BatchNorm computes: those
    that follow see what it then does. Returns the prediction.
    """

    def hook(norm: Any, inputs: tuple[Tensor]) -> None:
        variance, mean = torch.var_mean(inputs[0], dim=(0, 2, 3), correction=0)
        act(norm, mean, variance.clamp(min=DEAD))

    hooks = [norm.register_forward_pre_hook(hook) for norm in model.modules() if isinstance(norm, nn.BatchNorm2d)]
    try:
        return model(images)
    finally:
        for handle in hooks:
            handle.remove()


def difference(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Mean |prediction - wanted| over wanted's mean absolute deviation from its median, per image (N, 1, H, W); their
    mean, a scalar.
    """
    prediction, wanted = prediction.float(), wanted.float()
    spread = (wanted - wanted.flatten(1).median(dim=1).values[:, None, None, None]).abs()
    spread = spread.mean(dim=(1, 2, 3)).clamp(min=1e-6)
    return ((prediction - wanted).abs().mean(dim=(1, 2, 3)) / spread).mean()


class Distillation:
    """What a student is asked beside the truth: to predict and to represent what its dense teacher does.

    A student's channels are some of its teacher's (`kept`: group name -> their indices there), so features are compared
    channel by channel and no adapter is learned.

    weight  of both terms beside those of the depth losses

    Called with normalised images (N, 3, H, W) and the student's prediction for them, straight after its forward pass;
    returns the weighted terms, scalars:
    distil_output    `difference` between student and teacher
    distil_features  mean over the network's `taps` of the mean squared difference over the mean square of the teacher's
    """

    def __init__(
        self,
        teacher: DepthNetwork,
        student: DepthNetwork,
        groups: list[ChannelGroup],
        kept: Mapping[str, Tensor],
        output: float,
        features: float,
    ):
        self.teacher = teacher.eval().requires_grad_(False)
        self.kept, self.output, self.features = kept, output, features
        self.weight, self.taps = 1.0, student.taps
        self.group = {member: group.name for group in groups for member, axis in group.members if axis == OUT}
        self.seen: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
        for who, network in ("teacher", self.teacher), ("student", student):
            for tap in self.taps:
                network.get_submodule(tap).register_forward_hook(self._remember(who, tap))

    def __call__(self, image: Tensor, prediction: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            wanted = self.teacher(image)
        terms = [self._tap(tap) for tap in self.taps]
        return {
            "distil_output": self.weight * self.output * difference(prediction, wanted),
            "distil_features": self.weight * self.features * torch.stack(terms).mean(),
        }

    def _tap(self, tap: str) -> Tensor:
        student, teacher = self.seen["student"].pop(tap).float(), self.seen["teacher"].pop(tap).float()
        if (indices := self.kept.get(self.group[tap])) is not None:
            teacher = teacher[:, indices.to(teacher.device)]
        return (student - teacher).square().mean() / teacher.square().mean().clamp(min=1e-12)

    def _remember(self, who: str, tap: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self.seen[who][tap] = output

        return hook
