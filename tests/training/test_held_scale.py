"""A training's numbers are held, at whatever scale it begins."""

import pytest
import torch

from mde.models import build_model, load_model, shipped
from mde.models.scale import scaled_maps
from mde.training.held_scale import LEAST, MOST, WEIGHT, scale_term
from mde.training.objective import Objective
from tests.models.test_scale import run_away

generator = torch.Generator().manual_seed(0)
IMAGES = torch.randn(4, 3, 32, 32, generator=generator)
DEPTH = 1 + 3 * torch.rand(4, 1, 32, 32, generator=generator)
MASK = torch.ones_like(DEPTH, dtype=torch.bool)


def trained(start: float, steps: int, held: bool = True) -> dict[str, torch.Tensor]:
    """The maps of a network whose prediction began `start` times too large, each of eight groups of maps by its part,
    after so many steps.
    """
    torch.manual_seed(0)
    model = build_model("midas_small", encoder="lite0").train()
    with torch.no_grad():
        model.decoder.head.conv3.bias.zero_()
        model.decoder.head.conv3.weight.mul_(10)
    run_away(model, start ** (1 / 8))
    objective, optimizer = Objective("trimmed", 0.5, 0), torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(steps):
        with scaled_maps(model) as maps:
            prediction = model(IMAGES)
        loss = objective(prediction, DEPTH, MASK, step)["loss"]
        optimizer.zero_grad()
        (loss + scale_term(maps) if held else loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return maps


def last(maps: dict[str, torch.Tensor]) -> torch.Tensor:
    """The prediction."""
    return list(maps.values())[-1]


def rms(values: torch.Tensor) -> float:
    return float(values.detach().square().mean().sqrt())


def test_a_run_that_starts_a_thousand_times_too_large_comes_back():
    assert rms(last(trained(3e4, 1))) > 1000  # of a network whose prediction is about 1
    maps = trained(3e4, 60)
    assert all(rms(values) < 2 * MOST for values in maps.values())


def test_a_run_that_starts_a_thousand_times_too_small_comes_back():
    assert rms(last(trained(1e-3, 1))) < LEAST / 8
    assert rms(last(trained(1e-3, 20))) > LEAST


def test_without_it_what_is_too_large_stays_so():
    assert rms(last(trained(3e4, 60, held=False))) > 2 * MOST


def test_inside_the_range_nothing_pulls_and_outside_the_squared_distance_in_powers_of_two_does():
    inner = torch.full((2, 3), 1.0, requires_grad=True)
    last = torch.full((2, 1), MOST, requires_grad=True)
    assert scale_term({"inner": inner, "last": last}) == 0
    assert scale_term({"inner": inner * 0, "last": last}) == 0  # a map of zeros is no map that ran away
    assert float(scale_term({"inner": inner * 8 * MOST, "last": last})) == pytest.approx(WEIGHT * 9)
    assert float(scale_term({"inner": inner, "last": last / MOST * LEAST / 4})) == pytest.approx(WEIGHT * 4, rel=1e-3)
    for size in (0, 1e-12, 1e-7):
        last.grad = None
        faint = scale_term({"inner": inner, "last": last * size})
        faint.backward()
        assert torch.isfinite(faint)
        assert torch.isfinite(last.grad).all()
        assert (last.grad < 0).all() == (size > 0), "what is not quite zero is lifted"


@pytest.mark.parametrize("path", sorted(shipped.FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def test_nothing_pulls_on_a_network_that_is_saved_in_range(path):
    model = load_model(path)
    with torch.no_grad(), scaled_maps(model) as maps:
        model(IMAGES)
    assert scale_term(maps) == 0


def test_plain_regression_has_a_scale_of_its_own():
    assert [Objective(data, 0.5, 0).blind_to_scale for data in ("trimmed", "ssi", "l1", "mse")] == [1, 1, 0, 0]


def test_half_precision_trains_from_shipped_weights():
    """As trainer.precision=16-mixed computes on a GPU: what was NaN from the first step on."""
    model = build_model(None, weights="shipped").train()
    with torch.autocast("cpu", dtype=torch.float16), scaled_maps(model) as maps:
        prediction = model(IMAGES)
    loss = Objective("trimmed", 0.5, 0)(prediction, DEPTH, MASK, 0)["loss"] + scale_term(maps)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
