import pytest
import torch

from mde.models import build_model
from mde.models.health import inner_health, lost_skips, skip_shares

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("midas_small", encoder="lite0")


def test_a_skips_share_is_that_of_the_mean_magnitudes(model):
    with torch.no_grad(), skip_shares(model) as shares:
        model(IMAGE)
        _, _, f3, f4 = model.encoder(IMAGE)
        decoder = model.decoder
        deep = decoder.fusion4(decoder.reduce4(f4))
        skip = decoder.fusion3.refine_skip(decoder.reduce3(f3))
    expected = float(skip.abs().mean() / (skip.abs().mean() + deep.abs().mean()))
    assert list(shares) == ["decoder.fusion3", "decoder.fusion2", "decoder.fusion1"]
    assert shares["decoder.fusion3"] == pytest.approx(expected, rel=1e-4)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_skip_that_rounding_takes_away_is_named(model):
    with torch.no_grad():
        model.decoder.fusion2.project.weight.mul_(1e6)
    health = inner_health(model, IMAGE)
    (sentence,) = lost_skips(health["skip_share"])
    assert sentence.startswith("decoder.fusion1: its skip is ")


def test_the_largest_magnitude_is_found_where_it_is_and_nothing_is_said_of_what_is_no_number(model):
    with torch.no_grad():
        model.decoder.head.conv2.bias[0] = 12345.0
    health = inner_health(model, IMAGE)
    assert health["largest_in"] == "decoder.head.conv2"
    assert health["largest"] == pytest.approx(12345, abs=5)
    with torch.no_grad():
        model.decoder.head.conv2.bias[0] = torch.inf
    assert inner_health(model, IMAGE)["largest"] is None


def test_a_network_without_fusions_has_no_shares():
    assert inner_health(build_model("guidedepth", variant="small"), IMAGE)["skip_share"] == {}
