import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mde.models.checkpoints import NEVER_EXECUTED, official_name
from mde.models.midas_small import MidasSmall

torch.set_num_threads(1)  # tiny images: on a busy machine two threads spend their time waiting for each other


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("MDE_SHARED", "../shared"))
    if not (folder / "reference").is_dir():
        pytest.skip("set MDE_SHARED to the folder with the reference values")
    return folder


def official_state(encoder: str) -> dict[str, Tensor]:
    """A state with the official names, built here; the golden tests check those names against the official list."""
    torch.manual_seed(0)
    state = {official_name(name): tensor for name, tensor in MidasSmall(encoder).state_dict().items()}
    never_executed = {name: torch.zeros((512, 512, 3, 3) if "weight" in name else 512) for name in NEVER_EXECUTED}
    return {**state, **never_executed}


@pytest.fixture(scope="session")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the published network's names, shapes and size, with random values."""
    path = tmp_path_factory.mktemp("official") / "midas_v21_small_256.pt"
    torch.save(official_state("lite3"), path)
    return path
