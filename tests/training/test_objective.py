import pytest
import torch

from mde.errors import MdeError
from mde.losses import (
    gradient_matching_loss,
    inverse_depth_target,
    l1_loss,
    mse_loss,
    ssi_loss,
    trimmed_mae_loss,
)
from mde.training.objective import Objective, grey_depth_target


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    prediction = torch.rand(3, 1, 16, 24, generator=generator)
    depth = 1 + 3 * torch.rand(3, 1, 16, 24, generator=generator)
    mask = torch.rand(3, 1, 16, 24, generator=generator) > 0.3
    return prediction, depth, mask


@pytest.mark.parametrize(
    ("data", "term", "align"),
    [("trimmed", trimmed_mae_loss, "median"), ("ssi", ssi_loss, "least_squares"), ("l1", l1_loss, "none")],
)
def test_the_loss_is_the_data_term_plus_weighted_gradient_matching(batch, data, term, align):
    prediction, depth, mask = batch
    target = inverse_depth_target(depth, mask)
    expected = term(prediction, target, mask) + 0.5 * gradient_matching_loss(prediction, target, mask, align=align)
    assert torch.allclose(Objective(data, 0.5, 0)(*batch, step=0)["loss"], expected)


def test_plain_regression_is_used_until_start_steps_and_the_invariant_form_from_then_on(batch):
    prediction, depth, mask = batch
    objective = Objective("ssi", 0.0, start_steps=10)
    target = inverse_depth_target(depth, mask)
    assert torch.equal(objective(*batch, step=9)["loss"], l1_loss(prediction, target, mask))
    assert torch.equal(objective(*batch, step=10)["loss"], ssi_loss(prediction, target, mask))


def test_the_papers_target_is_depth_as_a_grey_picture(batch):
    prediction, depth, mask = batch
    depth[0, 0, 0, 0], mask[0, 0, 0, 0] = torch.inf, True  # sky
    target = grey_depth_target(depth, mask)
    assert target[~mask].eq(0).all()
    assert target[0, 0, 0, 0] == 0
    assert torch.allclose(target.amax(dim=(1, 2, 3)), torch.tensor(255.0))
    known = mask & depth.isfinite()
    for image in range(3):  # larger is farther, in proportion
        ratio = target[image][known[image]] / depth[image][known[image]]
        assert torch.allclose(ratio, ratio[0].expand_as(ratio))
    assert torch.equal(Objective("mse", 0, 0)(prediction, depth, mask, 0)["loss"], mse_loss(prediction, target, mask))


def test_low_precision_predictions_are_compared_in_float32(batch):
    prediction, depth, mask = batch
    low = prediction.bfloat16()
    objective = Objective("trimmed", 0.5, 0)
    assert torch.equal(objective(low, depth, mask, 0)["loss"], objective(low.float(), depth, mask, 0)["loss"])


@pytest.mark.parametrize("options", [("nonsense", 0.5, 0), ("ssi", -1.0, 0), ("ssi", 0.5, -1)])
def test_impossible_options_are_refused(options):
    with pytest.raises(MdeError, match="loss"):
        Objective(*options)
