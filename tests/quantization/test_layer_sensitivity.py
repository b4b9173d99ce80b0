import numpy as np
import pytest
import torch

from mde.errors import MdeError
from mde.quantization.layer_sensitivity import fake_quantize_activation, fake_quantize_weight, layer_sensitivity
from tests.quantization.small_network import SIZE, difference, layers, small_graph


def rounded(x, scale, zero, low, high):
    """The quantization formula, one element at a time."""
    out = [scale * (min(max(round(value / scale) + zero, low), high) - zero) for value in x.ravel().tolist()]
    return np.array(out, dtype=np.float32).reshape(x.shape)


def reference_weight(weight):
    return np.stack([rounded(channel, np.abs(channel).max() / 64, 0, -64, 64) for channel in weight])


def reference_activation(x):
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = np.float32((high - low) / np.float32(255))
    return rounded(x, scale, round(float(-low / scale)), 0, 255)


def test_fake_quantization_is_the_formula():
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(fake_quantize_weight(x), reference_weight(x.numpy()), atol=1e-6)
    for shifted in (x, x + 10, x - 10, x.relu()):
        np.testing.assert_allclose(fake_quantize_activation(shifted), reference_activation(shifted.numpy()), atol=1e-5)


def test_fake_quantization_keeps_channels_and_inputs_of_zeros():
    weight = torch.randn(3, 4, 1, 1)
    weight[1] = 0
    assert not fake_quantize_weight(weight)[1].any()
    assert fake_quantize_weight(weight).isfinite().all()
    assert torch.equal(fake_quantize_activation(torch.zeros(2, 2)), torch.zeros(2, 2))


def test_sensitivity_is_that_of_one_layer_quantized_by_the_formula():
    network = small_graph().network
    images = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    sensitivity = layer_sensitivity(network, images)
    assert set(sensitivity) == layers(network)
    expected = network(images).numpy()
    for name in sensitivity:
        changed = small_graph().network
        layer = changed.get_submodule(name)
        layer.weight.copy_(torch.from_numpy(reference_weight(layer.weight.numpy())))
        layer.register_forward_pre_hook(lambda _, inputs: torch.from_numpy(reference_activation(inputs[0].numpy())))
        shares = [difference(one, other) for one, other in zip(changed(images).numpy(), expected, strict=True)]
        assert sensitivity[name] == pytest.approx(np.mean(shares), rel=0.02), name
        assert sensitivity[name] > 0


def test_sensitivity_leaves_the_network_as_it_was_and_is_repeatable():
    network = small_graph().network
    images = torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    before = network(images)
    assert layer_sensitivity(network, images) == layer_sensitivity(network, images)
    assert torch.equal(network(images), before)


def test_sensitivity_of_a_dead_network_is_an_error():
    network = small_graph().network
    network.head.conv3.bias.fill_(-1e6)
    with pytest.raises(MdeError, match="the same everywhere"):
        layer_sensitivity(network, torch.randn(1, 3, *SIZE))
