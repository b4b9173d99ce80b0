"""What the networks share."""

import pytest
import torch

from mde.models import build_model
from mde.models.network import closing_relu


@pytest.mark.parametrize("training", [True, False])
def test_the_closing_relu_is_a_relu(training):
    x = torch.linspace(-2, 2, 9)
    assert torch.equal(closing_relu(x, training), x.clamp(min=0))


def test_in_training_its_zeros_can_be_lifted_and_not_pushed_down():
    x = torch.tensor([-1.0, -1.0, 0.0, 1.0, 1.0], requires_grad=True)
    wanted = torch.tensor([-2.0, 3.0, -4.0, -5.0, 6.0])
    (closing_relu(x, True) * wanted).sum().backward()
    assert x.grad.tolist() == [-2, 0, -4, -5, 6]
    x.grad = None
    (closing_relu(x, False) * wanted).sum().backward()
    assert x.grad.tolist() == [0, 0, 0, -5, 6]


@pytest.mark.parametrize("name", ["midas_small", "fastdepth", "guidedepth"])
def test_a_dead_network_comes_back_in_training(name):
    """Its output is zero everywhere, the target is 1."""
    torch.manual_seed(0)
    model = build_model(name, weights="none").train()
    closing = {"midas_small": "head.conv3", "fastdepth": "head.norm", "guidedepth": "predict"}[name]
    bias = model.decoder.get_submodule(closing).bias
    with torch.no_grad():
        bias.fill_(-1)
    image = torch.randn(2, 3, 64, 64)
    assert model(image).max() == 0
    optimizer = torch.optim.SGD([bias], lr=1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(image) - 1).abs().mean().backward()
        optimizer.step()
    assert model(image).mean() > 0.1
