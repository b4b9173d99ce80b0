import importlib.util
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mde.models.midas_small import MidasSmall
from mde.models.official import NEVER_EXECUTED, official_name

torch.set_num_threads(1)  # tiny images: on a busy machine two threads spend their time waiting for each other


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("MDE_SHARED", "../shared"))
    if not (folder / "reference").is_dir():
        pytest.skip("set MDE_SHARED to the folder with the reference values")
    return folder


def published_state(shared: Path, network: str) -> dict[str, Tensor]:
    """The state that the golden outputs were computed with."""
    spec = importlib.util.spec_from_file_location("make_checkpoint", shared / "reference" / "make_checkpoint.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.state_dict(network)


def official_state(encoder: str) -> dict[str, Tensor]:
    """A state with the official names, built here; the golden tests check those names against the official list."""
    torch.manual_seed(0)
    state = {official_name("midas_small", name): tensor for name, tensor in MidasSmall(encoder).state_dict().items()}
    never_executed = {
        name: torch.zeros((512, 512, 3, 3) if "weight" in name else 512) for name in NEVER_EXECUTED["midas_small"]
    }
    return {**state, **never_executed}


@pytest.fixture(scope="session")
def official_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the published network's names, shapes and size, with random values."""
    path = tmp_path_factory.mktemp("official") / "midas_v21_small_256.pt"
    torch.save(official_state("lite3"), path)
    return path
