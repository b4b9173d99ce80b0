"""The networks in `weights/`: they open, are small, say what may be done with them, and are the default."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from mde import jetson
from mde.deploy import load_runtime
from mde.engines.pairs import check_pairs, largest_pairs
from mde.errors import MdeError
from mde.models import build_model, load_model, read_metadata, shipped
from mde.models.checkpoints import provenance, trained_size
from mde.training.teacher import own_metadata
from tests.test_config import composed

FILES = sorted(shipped.FOLDER.glob("*.safetensors"))
DEPLOYED = sorted(path for path in shipped.FOLDER.glob("*") if path.suffix in (".onnx", ".xml", ".tflite"))
BUNDLES = sorted(shipped.FOLDER.glob("*_jetson"))


def test_the_dense_network_is_the_default_everywhere():
    assert (
        composed().weights == composed(script="prune").checkpoint == composed(script="deploy").checkpoint == "shipped"
    )
    network, file = build_model(None, weights="shipped"), load_model(shipped.DENSE)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in file.state_dict().items())
    assert list(trained_size("shipped")) == read_metadata(shipped.DENSE)["input"]
    assert provenance("shipped")["licence"] == read_metadata(shipped.DENSE)["licence"]


def test_where_it_is_missing_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(shipped, "DENSE", Path("/nowhere/midas_small.safetensors"))
    with pytest.raises(
        MdeError, match=r"weights=shipped: /nowhere/midas_small.safetensors is missing; run from a clone"
    ):
        build_model(None, weights="shipped")


def test_another_network_does_not_start_from_it():
    with pytest.raises(
        MdeError, match="weights=shipped: holds midas_small, not fastdepth; set model=midas_small, or other"
    ):
        build_model("fastdepth", weights="shipped")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_is_in_half_precision_and_predicts(path):
    tensors = safetensors.torch.load_file(path).values()
    assert {tensor.dtype for tensor in tensors} <= {torch.float16, torch.float32, torch.int64}
    assert path.stat().st_size < 2.4 * sum(tensor.numel() for tensor in tensors) + 200_000, "mostly in half precision"
    torch.manual_seed(0)
    network = load_model(path)
    with torch.no_grad():
        depth = network(torch.randn(1, 3, 64, 64))
    assert depth.isfinite().all()
    assert depth.std() > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_has_a_card_that_begins_with_its_licence(path):
    text = path.with_suffix(".md").read_text()
    assert re.match(r"# .+\n\n\*\*Licence\.\*\* \w", text)
    assert f"`{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}...`" in text, "the card is of another file"
    for heading in ("What it learned from", "How", "How good it is", "Limits"):
        assert f"\n## {heading}\n" in text
    teachers = read_metadata(path).get("teachers", [])
    assert all(teacher["licence"] in text for teacher in teachers)


def test_they_are_small():
    sizes = [path.stat().st_size for path in shipped.FOLDER.rglob("*") if path.is_file()]
    assert max(sizes) < 40e6
    assert sum(sizes) < 120e6


@pytest.mark.parametrize("path", DEPLOYED, ids=lambda path: path.name)
def test_the_deployed_files_name_the_network_they_are_of(path):
    runtime = load_runtime(path, threads=1)  # which checks the description's hash
    assert runtime.description.network == "midas_small"
    depth = runtime.predict(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    assert np.isfinite(depth).all()
    assert depth.std() > 0
    assert own_metadata(path, "midas_small")["licence"], "whoever learns from it has to name it"


@pytest.mark.parametrize("path", [p for p in DEPLOYED if p.suffix != ".tflite"], ids=lambda path: path.name)
def test_they_are_right_on_every_x86(path):
    assert largest_pairs(path), "no INT8 in it"
    check_pairs(path)


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_the_bundles_hold_the_packages_own_scripts(path):
    """Copies: `cp mde/jetson/*.py` after a change there."""
    assert {script.name for script in path.glob("*.py")} == set(jetson.FILES)
    for script in map(path.joinpath, jetson.FILES):
        assert not script.is_symlink()
        assert script.read_bytes() == Path(jetson.__file__).with_name(script.name).read_bytes(), script


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.name)
def test_the_bundles_evaluate_what_they_hold(path, tmp_path):
    """Copied as rsync -a and git archive do, which keep links; on frames that may be handed on."""
    bundle = shutil.copytree(path, tmp_path / "bundle", symlinks=True)
    done = subprocess.run(
        [sys.executable, "runner.py", "evaluate", "--outputs", "stored"], cwd=bundle, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("synthetic (per_frame, 16 frames): delta1 0.")
