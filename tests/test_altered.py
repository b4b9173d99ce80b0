"""Every alteration of the ablation changes what it says, and nothing else that can be seen."""

import sys

import pytest
import torch

import mde.data.synthetic as synthetic
from mde.data import transforms
from mde.data.synthetic import rooms, scene, streets
from mde.models import load_model
from tests.conftest import ROOT, TINY, call

sys.path.insert(0, str(ROOT / "benchmarks"))  # as running the script does

import altered

CHANGED = {
    "no_colour_jitter": [(transforms, "_COLOUR")],
    "whole_frames": [(transforms, "_SMALLEST_AREA"), (transforms, "_ASPECT_CHANGE")],
    "one_field_of_view": [(rooms, "FIELD_OF_VIEW"), (streets, "FIELD_OF_VIEW")],
    "plain_textures": [(scene, "KINDS")],
    "one_light": [(rooms, "_lights")],
    "one_exposure": [(synthetic, "expose")],
}
EXACT_DEPTH = {"plain_textures", "one_light", "one_exposure"}


@pytest.mark.parametrize("name", CHANGED)
def test_an_alteration_changes_what_is_seen(name, monkeypatch):
    for module, constant in CHANGED[name]:
        monkeypatch.setattr(module, constant, getattr(module, constant))  # so that it is put back
    frame = synthetic.SyntheticFrames(3, (48, 64), world="rooms")[1]
    before = transforms.augment(frame, (48, 64), seed=3)
    altered.ALTERATIONS[name]()
    again = synthetic.SyntheticFrames(3, (48, 64), world="rooms")[1]
    after = transforms.augment(again, (48, 64), seed=3)
    assert not torch.equal(before.image, after.image)
    assert torch.equal(frame.depth, again.depth) == (name != "one_field_of_view")
    if name == "no_colour_jitter":
        assert torch.equal(before.depth, after.depth)
    if name == "whole_frames":
        assert torch.equal(after.depth, frame.depth) or torch.equal(after.depth, frame.depth.flip(-1))


def test_the_moving_average_is_what_is_kept(tmp_path):
    def weights(*command: str, script: str) -> torch.Tensor:
        options = [
            *TINY,
            "data=synthetic",
            "data.frames=4",
            "data.test=1",
            "data.validation=1",
            "optimizer.warmup_steps=0",
        ]
        done = call(*command, *options, f"hydra.run.dir={tmp_path / script}", steps=3, script=script)
        assert done.returncode == 0, done.stderr
        return load_model(tmp_path / script / "model.safetensors").decoder.head.conv1.weight

    last, mean = weights(script="train.py"), weights("moving_average", script="benchmarks/altered.py")
    assert not torch.equal(last, mean)
    torch.testing.assert_close(last, mean, rtol=0, atol=0.02)


def test_an_unknown_alteration_is_answered_with_the_choices():
    done = call("brighter", script="benchmarks/altered.py")
    assert done.returncode == 1
    assert "brighter: unknown; choose one of no_colour_jitter," in done.stderr
