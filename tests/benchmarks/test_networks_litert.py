"""LiteRT's row of test_networks.py, where a converter takes ten seconds and more; MiDaS small's is in deploy/."""

from pathlib import Path

import pytest
import torch

from benchmarks.networks import CHECKS, lively, lose_channels
from mde.models import build_model

torch.set_num_threads(1)


@pytest.mark.parametrize("network", ["fastdepth", pytest.param("guidedepth", marks=pytest.mark.whole)])
def test_litert_agrees_with_the_network(network: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    CHECKS["LiteRT"](lose_channels(lively(build_model(network)), (64, 64)), (64, 64), tmp_path)
