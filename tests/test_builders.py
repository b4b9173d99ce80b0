from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from mde.builders import BUILDERS, builder, built
from mde.errors import MdeError
from mde.pruning import build_pruner
from tests.conftest import ROOT, write_frames
from tests.test_config import composed


class Payload:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_the_groups_own_builders_are_called(tmp_path):
    frames = write_frames(tmp_path / "tiny")
    assert built("data", composed("data=folder", f"data.root={frames}").data).name == "tiny"
    assert builder("prune", composed("prune=channel", "sparsity=0.5").prune) is build_pruner


def test_nothing_else_is_called_at_any_depth_or_behind_an_interpolation(tmp_path):
    (tmp_path / "kept").write_text("precious")
    torch.save(Payload(tmp_path / "ran"), tmp_path / "payload.pt")
    empties = {"_target_": "builtins.open", "file": str(tmp_path / "kept"), "mode": "w"}
    runs = {"_target_": "torch.load", "f": str(tmp_path / "payload.pt"), "weights_only": False}
    torch.load(tmp_path / "payload.pt", weights_only=False)
    assert (tmp_path / "ran").exists(), "the payload is none"
    mix = {"_target_": "mde.data.mix.mix_splits"}
    for data in (
        empties,
        runs,
        mix | {"parts": {"a": empties}},
        mix | {"parts": {"a": {"b": [runs]}}},
        mix | {"parts": {"a": "${other}"}},
        {"_target_": "${named}"},
        mix | {"parts": {}, "_partial_": True},
        mix | {"_args_": [{}]},
        {"_target_": next(iter(BUILDERS["prune"]))},
        {"root": "x"},
        None,
    ):
        config = OmegaConf.create({"data": data, "other": runs, "named": "os.getcwd"})
        (tmp_path / "ran").unlink(missing_ok=True)
        for use in (built, builder):
            with pytest.raises(MdeError, match=r"^data: "):
                use("data", config.data)
        assert (tmp_path / "kept").read_text() == "precious"
        assert not (tmp_path / "ran").exists()


def test_what_calls_what_a_configuration_names_is_used_in_one_place():
    named = [path.name for path in (ROOT / "mde").rglob("*.py") if "hydra.utils" in path.read_text()]
    assert named == ["builders.py"]
