import copy
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde.models.midas_small import MidasSmall
from mde.pruning.masks import apply_masks
from mde.pruning.recovery import Distillation, corrected_statistics
from mde.pruning.structure import channel_groups, keep_channels
from tests.pruning.test_structure import images, lively, some, writing

BATCH = images(4)
Norms = dict[str, tuple[np.ndarray, np.ndarray]]  # name -> mean and variance


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """In the order in which they run."""
    ran: dict[str, nn.BatchNorm2d] = {}
    hooks = [
        module.register_forward_hook(lambda module, args, out, name=name: ran.__setitem__(name, module))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(images())
    for hook in hooks:
        hook.remove()
    return ran


def moments(model: nn.Module, batch: Tensor, output: bool = False) -> Norms:
    """Of what each BatchNorm reads (or writes), over all images and pixels."""
    seen: Norms = {}

    def note(name: str, values: Tensor) -> None:
        channels = values.double().numpy().swapaxes(0, 1).reshape(values.shape[1], -1)
        seen[name] = channels.mean(axis=1), channels.var(axis=1)

    hooks = [
        norm.register_forward_hook(lambda norm, args, out, name=name: note(name, out if output else args[0]))
        for name, norm in model.named_modules()
        if isinstance(norm, nn.BatchNorm2d)
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return seen


def statistics(model: nn.Module) -> Norms:
    return {
        name: (norm.running_mean.double().numpy().copy(), norm.running_var.double().numpy().copy())
        for name, norm in norms(model).items()
    }


def calibrate(model: nn.Module, batch: Tensor) -> None:
    """One BatchNorm after another gets the statistics of what reaches it, the network run anew for each."""
    for name, norm in norms(model).items():
        mean, variance = moments(model, batch)[name]
        norm.running_mean.copy_(torch.from_numpy(mean))
        norm.running_var.copy_(torch.from_numpy(variance))


@functools.cache
def _calibrated() -> MidasSmall:
    model = lively()
    with torch.no_grad():
        for norm in norms(model).values():
            norm.bias += 1  # few channels are dead, whose statistics would say nothing
    calibrate(model, BATCH)
    return model


def network(off: float) -> MidasSmall:
    """Its statistics are BATCH's, or `off` by about that share of the spread, as if taken from other images."""
    model = copy.deepcopy(_calibrated())
    random = torch.Generator().manual_seed(0)
    for norm in norms(model).values():
        norm.running_mean += off * norm.running_var.sqrt() * torch.randn(norm.num_features, generator=random)
        norm.running_var *= torch.exp(off * torch.randn(norm.num_features, generator=random))
    return model


def prune(model: MidasSmall, least: int = 8) -> dict[str, np.ndarray]:
    """Narrows all groups, corrects the statistics; returns BatchNorm -> channels that stayed."""
    groups = channel_groups(model)
    keep = some(groups, least)
    with corrected_statistics(model, BATCH):
        keep_channels(model, groups, keep)
    members = {name: keep[group.name].numpy() for group in groups for name, _ in group.members}
    return {name: members[name] for name in norms(model)}


def alive(variance: np.ndarray) -> np.ndarray:
    return variance > 1e-3 * variance.max()


def test_a_calibrated_network_stays_calibrated_when_pruned():
    model = network(off=0)
    prune(model)
    found = statistics(model)
    calibrate(model, BATCH)
    for name, (mean, variance) in statistics(model).items():
        there, spread = alive(variance), np.sqrt(variance.max())
        np.testing.assert_allclose(found[name][0][there], mean[there], atol=1e-2 * spread, err_msg=name)
        np.testing.assert_allclose(found[name][1][there], variance[there], rtol=2e-2, err_msg=name)


def test_what_every_batchnorm_hands_on_keeps_its_mean_and_variance():
    model = network(off=0.2)
    for norm in norms(model).values():
        norm.eps = 1e-9  # which the correction does not know of
    before, shown = statistics(model), moments(model, BATCH)
    kept = prune(model)
    after, shown_after = statistics(model), moments(model, BATCH)
    for name, indices in kept.items():
        assert alive(shown_after[name][1]).mean() > 0.5
        old, new = [
            ((seen[0] - running[0]) / np.sqrt(running[1]), seen[1] / (running[1]))
            for running, seen in ((before[name], shown[name]), (after[name], shown_after[name]))
        ]
        there = alive(shown_after[name][1]) & alive(shown[name][1])[indices]
        np.testing.assert_allclose(new[0][there], old[0][indices][there], atol=5e-3, err_msg=name)
        np.testing.assert_allclose(new[1][there], old[1][indices][there], rtol=2e-2, err_msg=name)


def test_a_layer_at_zero_does_not_shout():
    model = network(off=0.2)
    norm = "encoder.blocks.3.1.bn1"
    before = np.abs(moments(model, BATCH, output=True)[norm][0]).max()
    weight = "encoder.blocks.3.1.conv_pw.weight"
    with corrected_statistics(model, BATCH):
        apply_masks(model, {weight: torch.zeros_like(model.get_parameter(weight), dtype=torch.bool)})
    assert np.abs(moments(model, BATCH, output=True)[norm][0]).max() <= 1.5 * before


def test_nothing_changes_when_nothing_is_pruned():
    model = network(off=0.2)
    before = copy.deepcopy(model.state_dict())
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    modes = [module.training for module in model.modules()]
    with corrected_statistics(model, BATCH):
        pass
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-2, atol=1e-2)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert [module.training for module in model.modules()] == modes


def taps(model: MidasSmall, image: Tensor) -> list[np.ndarray]:
    """What each decoder step's 1 x 1 convolution gives, deepest first, computed step by step."""
    decoder = model.decoder
    f1, f2, f3, f4 = model.encoder(image)
    x = decoder.fusion4.refine_sum(decoder.reduce4(f4))
    found = [decoder.fusion4.project(x)]
    for fusion, skip in (
        (decoder.fusion3, decoder.reduce3(f3)),
        (decoder.fusion2, decoder.reduce2(f2)),
        (decoder.fusion1, decoder.reduce1(f1)),
    ):
        deep = F.interpolate(found[-1], scale_factor=2.0, mode="bilinear", align_corners=True)
        found.append(fusion.project(fusion.refine_sum(deep + fusion.refine_skip(skip))))
    return [tap.detach().double().numpy() for tap in found]


def pair(*convolutions: str) -> tuple[MidasSmall, MidasSmall, Distillation]:
    """Teacher, student narrowed in the groups that these write (all when none is named), and what is asked of it."""
    teacher = lively()
    student = copy.deepcopy(teacher)
    groups = channel_groups(student)
    chosen = [writing(groups, name) for name in convolutions] or groups
    keep = some(chosen, least=8)
    keep_channels(student, groups, keep)
    return teacher, student, Distillation(teacher, student, channel_groups(student), keep, output=2.0, features=0.5)


def terms(student: MidasSmall, distillation: Distillation, batch: Tensor) -> dict[str, Tensor]:
    return distillation(batch, student(batch))


def test_a_student_that_equals_its_teacher_is_asked_nothing():
    teacher = lively()
    student = copy.deepcopy(teacher)
    distillation = Distillation(teacher, student, channel_groups(student), {}, 1.0, 1.0)
    found = terms(student, distillation, images(2))
    assert {name: value.item() for name, value in found.items()} == {"distil_output": 0.0, "distil_features": 0.0}


def test_features_are_compared_channel_by_channel():
    _, student, distillation = pair("decoder.fusion1.project")  # read by the head alone: no other tap changes
    assert student.decoder.fusion1.project.out_channels < 64
    found = terms(student, distillation, images(2))
    assert found["distil_features"].item() == pytest.approx(0, abs=1e-9)
    assert found["distil_output"].item() > 1e-3


@pytest.mark.parametrize("convolutions", [(), ("decoder.reduce3", "decoder.fusion1.project")], ids=["all", "some"])
def test_terms_equal_a_slow_reference(convolutions):
    teacher, student, distillation = pair(*convolutions)
    batch = images(3)
    found = terms(student, distillation, batch)

    with torch.no_grad():
        theirs, ours = (model(batch).double().numpy() for model in (teacher, student))
    shares = []
    for image in range(3):
        wanted = theirs[image].ravel()
        deviation = np.mean(np.abs(wanted - np.median(wanted)))
        shares.append(np.mean(np.abs(ours[image].ravel() - wanted)) / deviation)
    assert found["distil_output"].item() == pytest.approx(2.0 * np.mean(shares), rel=1e-4)

    differences = []
    for level, wanted, has in zip((4, 3, 2, 1), taps(teacher, batch), taps(student, batch), strict=True):
        group = distillation.group[f"decoder.fusion{level}.project"]
        if group in distillation.kept:
            wanted = np.take(wanted, distillation.kept[group].numpy(), axis=1)
        assert wanted.shape == has.shape
        differences.append(np.mean((has - wanted) ** 2) / np.mean(wanted**2))
    assert found["distil_features"].item() == pytest.approx(0.5 * np.mean(differences), rel=1e-4)
    assert np.mean(differences) > 1e-3


@pytest.mark.parametrize("term", ["distil_output", "distil_features"])
def test_the_student_learns_from_each_term_and_the_teacher_does_not(term):
    teacher, student, distillation = pair()
    student.train()
    before = copy.deepcopy(teacher.state_dict())
    terms(student, distillation, images(2))[term].backward()
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert student.encoder.conv_stem.weight.grad.abs().max() > 0
    assert student.decoder.fusion1.project.weight.grad.abs().max() > 0
    assert (student.decoder.head.conv3.weight.grad is not None) == (term == "distil_output")
    assert not teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
