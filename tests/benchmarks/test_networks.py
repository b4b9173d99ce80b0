"""The same matrix for every small network: it trains, loses channels and weights, is saved, and engines agree with it.

LiteRT, whose converter takes ten seconds and more for each of them, is in test_networks_litert.py.
"""

from pathlib import Path

import pytest
import torch

from benchmarks.networks import CHECKS, ON_DENSE, check, lively, lose_channels
from mde.models import build_model
from mde.models.network import DepthNetwork

SIZE = (64, 64)
NETWORKS: dict[str, dict[str, str]] = {
    "midas_small": {"encoder": "lite0", "border": "replicate"},
    "fastdepth": {},
    "guidedepth": {},
}

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[DepthNetwork, DepthNetwork]:
    """A dense network, and the same without some of its channels."""
    torch.manual_seed(0)
    dense = lively(build_model(request.param, **NETWORKS[request.param]))
    return dense, lose_channels(dense, SIZE)


@pytest.mark.parametrize("title", [title for title in CHECKS if title != "LiteRT"])
def test_a_cell_of_the_matrix(pair: tuple[DepthNetwork, DepthNetwork], title: str, tmp_path: Path) -> None:
    dense, narrow = pair
    CHECKS[title](dense if title in ON_DENSE else narrow, SIZE, tmp_path)


def test_the_table_says_why_a_cell_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    for title in CHECKS:
        monkeypatch.setitem(CHECKS, title, fail)
    cells = check("fastdepth", {"variant": "pruned"}, SIZE)
    assert cells == {"channels": "ok"} | dict.fromkeys(CHECKS, "no such operator")
