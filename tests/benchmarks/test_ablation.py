"""The ablation's rows: each differs from the first, and an alteration changes what it says and nothing else."""

import json
from random import Random

import pytest
import torch
from omegaconf import DictConfig

from benchmarks import ablation, altered
from mde.data import synthetic, transforms
from mde.data.sample import Sample
from mde.data.synthetic import SyntheticFrames
from mde.models import load_model
from mde.renderer import furniture, photo, rooms, scene, streets
from mde.training.run import RATES
from tests.conftest import TINY, call
from tests.test_config import composed

CHANGED = {
    "no_colour_jitter": [(transforms, "_COLOUR")],
    "whole_frames": [(transforms, "_SMALLEST_AREA"), (transforms, "_ASPECT_CHANGE")],
    "one_field_of_view": [(rooms, "FIELD_OF_VIEW"), (streets, "FIELD_OF_VIEW")],
    "one_object_scale": [(synthetic, "Random")],
    "plain_textures": [(scene, "KINDS")],
    "one_light": [(rooms, "_lights"), (streets, "_sun"), (streets, "_sky")],
    "one_exposure": [(photo, "_chance")],
}


@pytest.mark.parametrize("world", ["rooms", "streets"])
@pytest.mark.parametrize("name", CHANGED)
def test_an_alteration_changes_what_it_says_and_nothing_else(name, world, monkeypatch):
    def views() -> list[tuple[Sample, Sample]]:
        frames = [SyntheticFrames(6, (48, 64), world=world)[index] for index in range(6)]
        return [(frame, transforms.augment(frame, (48, 64), seed=3)) for frame in frames]

    before = views()
    for module, constant in CHANGED[name]:
        monkeypatch.setattr(module, constant, getattr(module, constant))  # so that it is put back
    altered.ALTERATIONS[name]()
    for (frame, view), (again, changed) in zip(before, views(), strict=True):
        assert not torch.equal(view.image, changed.image)
        assert torch.equal(frame.depth, again.depth) == (name not in ("one_field_of_view", "one_object_scale"))
        in_augmentation = name in ("no_colour_jitter", "whole_frames")
        assert torch.equal(frame.image, again.image) == in_augmentation
        if name == "no_colour_jitter":
            assert torch.equal(view.depth, changed.depth)
        if name == "whole_frames":
            assert any(torch.equal(changed.depth, depth) for depth in (frame.depth, frame.depth.flip(-1)))


def test_one_object_scale_fixes_sizes_alone(monkeypatch):
    def depths() -> set[float]:
        return {furniture.shelf(scene.Builder(synthetic.Random(seed)), 0.5, 1.8) for seed in range(4)}

    assert len(depths()) == 4
    monkeypatch.setattr(synthetic, "Random", synthetic.Random)
    altered.one_object_scale()
    assert len(depths()) == 1
    assert synthetic.Random("any").uniform(1, 2) == Random("any").uniform(1, 2), "not asked for a size"


@pytest.mark.whole
def test_the_moving_average_is_what_is_kept(tmp_path):
    def weights(*command: str, script: str) -> torch.Tensor:
        options = [*TINY, "data=synthetic", "data.frames=4", "data.test=1", "data.validation=1"]
        done = call(*command, *options, f"hydra.run.dir={tmp_path / script}", steps=3, script=script)
        assert done.returncode == 0, done.stderr
        return load_model(tmp_path / script / "model.safetensors").decoder.head.conv1.weight

    last, mean = weights(script="train.py"), weights("moving_average", script="-m benchmarks.altered")
    assert not torch.equal(last, mean)
    largest = RATES["decoder_lr"]  # of a step of Adam
    torch.testing.assert_close(last, mean, rtol=0, atol=3 * largest)
    record = json.loads((tmp_path / "-m benchmarks.altered/metrics.json").read_text())
    assert record["environment"]["command"].startswith("-m benchmarks.altered moving_average size=[64,64]")


@pytest.mark.parametrize("name", [name for name in ablation.ROWS if name != ablation.BASE])
def test_a_row_differs_from_the_first(name):
    def config(row: str) -> tuple[str, DictConfig]:
        command = ablation.ROWS[row]
        script = ablation.ALTERED if command.startswith(ablation.ALTERED) else "train.py"
        options = command.removeprefix(script).split()
        change = options.pop(0) if script == ablation.ALTERED else ""
        assert change in ("", *altered.ALTERATIONS)
        return change, composed(*options)

    assert config(name) != config(ablation.BASE)


def test_an_unknown_alteration_is_answered_with_the_choices():
    done = call("brighter", script="-m benchmarks.altered")
    assert done.returncode == 1
    assert "brighter: unknown; choose one of no_colour_jitter," in done.stderr
