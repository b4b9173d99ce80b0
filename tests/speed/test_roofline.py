"""The roofline estimate against work that was counted by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mde.errors import MdeError
from mde.export import deployable
from mde.models import build_model
from mde.models.counts import multiply_adds
from mde.pruning.structure import channel_groups, keep_channels
from mde.speed.roofline import BYTES, Roofline, Work, estimate, work_of
from tests.export import random_network
from tests.test_config import composed

torch.set_num_threads(1)
BOARDS = ("jetson_nano", "jetson_xavier_nx", "orin_nano", "orin_agx")


class TwoLayers(nn.Module):
    """A strided convolution that is padded at one end, a depthwise one added to what it reads, an upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2)
        self.second = nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.first(F.pad(image, (0, 1, 0, 1))))
        return F.interpolate(F.relu(x + self.second(x)), scale_factor=2.0, mode="bilinear")


def roofline(name: str, precision: str) -> Roofline:
    device = composed("checkpoint=/x", f"device={name}", script="deploy").device
    return Roofline.of(device.peak, device.bandwidth, precision)


def test_two_layers_count_as_they_do_by_hand() -> None:
    image, half = 32 * 48, 16 * 24
    first = Work(half * 8 * 3 * 9, 3 * image + 8 * 3 * 9 + 8 + 8 * half)
    second = Work(half * 8 * 25, 8 * half + 8 * 25 + 8 * half)
    addition = Work(0, 8 * half)
    upsampling = Work(0, 8 * half + 8 * image)
    assert work_of(TwoLayers(), (32, 48)) == [first, second, addition, upsampling]
    # 10^9 operations and bytes a second, two bytes a number: which of the two is longer, layer by layer.
    assert first.macs > first.elements
    assert second.macs > second.elements
    expected = 2 * (first.macs + second.macs + addition.elements + upsampling.elements) / 1e6
    entry = estimate(TwoLayers(), (32, 48), Roofline.of({"fp16": 1.0}, 1.0, "fp16"), "fp16")
    assert entry["p50_ms"] == pytest.approx(expected, rel=1e-12)
    assert (entry["status"], entry["speedup_vs_reference"]) == ("estimate", None)


def test_the_multiply_adds_are_those_of_the_network() -> None:
    model = random_network()
    for network in (model, deployable(model)):
        assert sum(layer.macs for layer in work_of(network, (64, 96))) == multiply_adds(network, (64, 96))


@pytest.mark.parametrize("name", BOARDS)
def test_less_precision_takes_no_longer_and_the_data_sheets_units_are_right(name: str) -> None:
    network, size = deployable(random_network()), (64, 64)
    device = composed("checkpoint=/x", f"device={name}", script="deploy").device
    times = [
        estimate(network, size, roofline(name, p), p)["p50_ms"] for p in ("fp32", "fp16", "int8") if p in device.peak
    ]
    assert times == sorted(times, reverse=True)
    assert len(times) == len(device.peak) >= 2
    for precision in device.peak:
        # No less than all arithmetic or all traffic at once, no more than both one after the other.
        work, limits = work_of(network, size), roofline(name, precision)
        arithmetic = 2 * sum(layer.macs for layer in work) / (device.peak[precision] * 1e9)
        traffic = BYTES[precision] * sum(layer.elements for layer in work) / (device.bandwidth * 1e9)
        found = estimate(network, size, limits, precision)["p50_ms"] / 1000
        assert 0.999 * max(arithmetic, traffic) <= found <= arithmetic + traffic


def test_half_the_channels_take_less_and_every_step_counts() -> None:
    model, size = build_model("midas_small", encoder="lite0"), (64, 64)
    narrow = copy.deepcopy(model)
    groups = channel_groups(narrow)
    keep_channels(narrow, groups, {group.name: torch.arange(max(1, group.width // 2)) for group in groups})
    for name in BOARDS:
        limits = roofline(name, "fp16")
        before, after = (estimate(deployable(n), size, limits, "fp16")["p50_ms"] for n in (model, narrow))
        assert 0.2 * before < after < 0.6 * before


def test_a_device_without_figures_or_precision_has_no_estimate() -> None:
    for peak, bandwidth, precision in (
        ({"fp16": 472.0}, 25.6, "int8"),
        ({}, None, "fp32"),
        ({"fp32": 1.0}, None, "fp32"),
    ):
        with pytest.raises(MdeError, match=f"device.bandwidth: unknown for {precision}"):
            Roofline.of(peak, bandwidth, precision)
