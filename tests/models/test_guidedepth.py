"""GuideDepth, against the figures in its paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mde.errors import MdeError
from mde.models import build_model
from mde.models.guidedepth import Guided, GuideDepth, PyramidPooling

PUBLISHED = {"full": (5.82, 2.63), "small": (5.72, 1.52)}  # M parameters, G operations at 240 x 320


@pytest.mark.parametrize("variant", PUBLISHED)
def test_counts_are_the_published_ones(variant: str) -> None:
    """Published are multiply-adds of convolutions and two operations for each value that a BatchNorm passes on."""
    model = GuideDepth(variant).eval()
    operations = 0

    def convolution(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal operations
        assert isinstance(module, nn.Conv2d)
        operations += output.numel() * module.weight[0].numel()

    def norm(_: nn.Module, __: object, output: torch.Tensor) -> None:
        nonlocal operations
        operations += 2 * output.numel()

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(norm)
    image = torch.zeros(1, 3, 240, 320)  # 240 is no multiple of 32, which the network itself asks for
    with torch.no_grad():
        assert model.decoder(model.encoder(image), image).shape == (1, 1, 240, 320)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (round(parameters / 1e6, 2), round(operations / 1e9, 2)) == PUBLISHED[variant]


@pytest.mark.parametrize("size", [(32, 32), (96, 160)])  # whose sides are no multiples of 64
def test_a_fresh_network_predicts_alive_and_in_float32_under_autocast(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, image = GuideDepth("small"), torch.randn(2, 3, *size)
    for training in (True, False):
        output = model.train(training)(image)
        assert output.shape == (2, 1, *size)
        assert (output > 0.3).float().mean() > 0.99
    with torch.autocast("cpu", torch.bfloat16):
        assert model(image).dtype == torch.float32


def test_the_gate_is_squeeze_and_excitation() -> None:
    torch.manual_seed(0)
    block, x, image = Guided(8, 8).eval(), torch.randn(1, 8, 6, 5), torch.randn(1, 3, 6, 5)
    squeeze, _, excite, _ = block.gate
    both = torch.cat([block.features(x), block.guide(image)], 1)
    hidden = F.relu(F.linear(both.mean((2, 3)), squeeze.weight[:, :, 0, 0]))
    gate = torch.sigmoid(F.linear(hidden, excite.weight[:, :, 0, 0]))
    expected = x + block.combine(both * gate[:, :, None, None])
    torch.testing.assert_close(block(x, image), expected)


def test_the_pyramids_coarsest_branch_is_the_same_everywhere() -> None:
    """Each branch against the sum it is published as, the global one upsampled instead of broadcast."""
    torch.manual_seed(0)
    pyramid, x = PyramidPooling(16, 8).eval(), torch.randn(1, 16, 5, 7)
    maps = [nn.AvgPool2d(5, 2, 2)(x), nn.AvgPool2d(9, 4, 4)(x), nn.AvgPool2d(17, 8, 8)(x), nn.AdaptiveAvgPool2d(1)(x)]
    branches = [pyramid.scales[0](x)]
    for number, each in enumerate(maps):
        upsampled = F.interpolate(pyramid.scales[number + 1](each), size=(5, 7), mode="bilinear", align_corners=False)
        branches.append(pyramid.process[number](upsampled + branches[-1]))
    expected = pyramid.compress(torch.cat(branches, 1)) + pyramid.shortcut(x)
    torch.testing.assert_close(pyramid(x), expected)


def test_training_on_single_images_is_refused_unless_batchnorm_is_frozen() -> None:
    model, image = GuideDepth("small").train(), torch.zeros(1, 3, 64, 64)
    with pytest.raises(MdeError, match="batch_size=2"):
        model(image)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert model(image).shape == (1, 1, 64, 64)


def test_there_are_no_imagenet_weights_and_no_other_order() -> None:
    with pytest.raises(MdeError, match="weights=none"):
        build_model("guidedepth", weights="imagenet")
    assert build_model("guidedepth", reference=True).options == {"variant": "full"}
