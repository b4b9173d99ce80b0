"""Residual blocks taken out of a network."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mde.errors import MdeError
from mde.models import build_model, load_model, save_model
from mde.models.checkpoints import METADATA_KEY
from mde.models.residual import residual_blocks, take_out
from mde.pruning.depth import check_blocks, take_out_blocks
from mde.pruning.structure import channel_groups, keep_channels
from tests.pruning.test_structure import images, lively, output_of, some


def silence(block: nn.Module) -> None:
    """Makes it add nothing."""
    last = list(block.modules())[-1] if hasattr(block, "conv2") else block.get_submodule("bn3")
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)


@pytest.mark.parametrize("number", range(16))
def test_taking_a_block_out_is_what_a_block_that_adds_nothing_does(number):
    model = lively()
    names = residual_blocks(model)
    assert len(names) == 9 + 7, "EfficientNet-Lite0 has 9 blocks that add to their input, the decoder 7 units"
    silence(model.get_submodule(names[number]))
    expected = output_of(model)
    take_out(model, [names[number]])
    assert torch.equal(output_of(model), expected)


@pytest.mark.parametrize("network", ["fastdepth", "guidedepth"])
def test_networks_without_such_blocks_are_told_so(network):
    model = build_model(network)
    check_blocks(model, 0)
    with pytest.raises(MdeError, match=r"prune\.blocks=1: .* has 0 residual blocks"):
        check_blocks(model, 1)


def test_what_changes_least_goes_first(capsys):
    model = lively()
    idle, names = ["encoder.blocks.4.1", "decoder.fusion2.refine_skip"], residual_blocks(model)
    for name in idle:
        silence(model.get_submodule(name))
    expected = output_of(model)
    take_out_blocks(model, images(2), 2)
    assert set(names) - set(residual_blocks(model)) == set(idle) == set(model.taken_out)
    torch.testing.assert_close(output_of(model), expected)
    said = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}, predictions 0.000 of their spread away" in said for name in idle)
    take_out_blocks(model, images(2), 1)
    assert len(residual_blocks(model)) == len(names) - 3
    assert not torch.allclose(output_of(model), expected), "the third was not idle"


def test_a_file_holds_which_blocks_are_left(tmp_path):
    model, path = lively(), tmp_path / "model.safetensors"
    take_out_blocks(model, images(2), 3)
    groups = channel_groups(model)
    keep_channels(model, groups, some(groups))
    save_model(model, path)
    loaded = load_model(path)
    assert loaded.taken_out == model.taken_out
    assert residual_blocks(loaded) == residual_blocks(model)
    assert torch.equal(output_of(loaded), output_of(model))


def test_a_file_that_lacks_a_block_without_saying_so_is_damaged(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(lively(), path)
    with safe_open(path, framework="pt") as file:
        metadata = {METADATA_KEY: file.metadata()[METADATA_KEY]}  # without checksums, as another program writes it
    save_file({k: v for k, v in load_file(path).items() if not k.startswith("encoder.blocks.4.1.")}, path, metadata)
    with pytest.raises(MdeError, match=r"missing: encoder\.blocks\.4\.1\."):
        load_model(path)
    header = json.loads(metadata[METADATA_KEY]) | {"taken_out": ["encoder.blocks.9.1"]}
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(header)})
    with pytest.raises(MdeError, match=r"another version of this program .*; update it"):
        load_model(path)


def test_the_optimizer_trains_what_is_left():
    model = lively()
    decoder = list(model.decoder.parameters())
    encoder = list(model.encoder.parameters())
    optimizer = torch.optim.AdamW([{"params": encoder, "lr": 1e-3}, {"params": decoder, "lr": 1e-2}])
    model(images(2)).sum().backward()
    optimizer.step()
    take_out_blocks(model, images(2), 4, optimizer)
    left = set(map(id, model.parameters()))
    assert {id(parameter) for options in optimizer.param_groups for parameter in options["params"]} == left
    assert set(map(id, optimizer.state)) <= left
    model(images(2)).sum().backward()
    optimizer.step()
