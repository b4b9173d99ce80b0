from pathlib import Path

import numpy as np
import torch

from mde.models.checkpoints import fill, load_official
from mde.models.dpt import DptLarge
from mde.models.network import DepthNetwork
from mde.models.official import NEVER_EXECUTED, official_name
from tests.models.conftest import published_state


def test_the_hybrids_output_is_the_published_networks(shared: Path, tmp_path: Path) -> None:
    torch.save(published_state(shared, "dpt_hybrid"), tmp_path / "official.pt")
    check_golden(load_official(tmp_path / "official.pt"), shared)


def test_the_large_networks_output_is_the_published_networks(shared: Path) -> None:
    state = published_state(shared, "dpt_large")
    with torch.device("meta"):
        model = DptLarge(reference=True)  # from a file, as above, takes a minute
    for name in NEVER_EXECUTED["dpt_large"]:
        del state[name]
    fill(model, state, Path("golden"), lambda name: official_name("dpt_large", name))
    check_golden(model.eval(), shared)


def check_golden(model: DepthNetwork, shared: Path) -> None:
    golden = np.load(shared / "reference" / f"{model.name}_golden.npz")
    with torch.no_grad():
        output = model(torch.from_numpy(golden["image"]))
    expected = golden["inverse_depth"]
    assert output.shape == (1, *expected.shape)
    assert np.abs(output[0].numpy() - expected).max() <= 1e-4 * expected.max()
