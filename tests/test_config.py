"""Every YAML file in conf/ composes and builds what it describes."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mde.cli import one_line, register
from mde.models import build_model
from mde.training.objective import Objective
from tests.conftest import ROOT, write_frames

CONF = ROOT / "conf"
register()


def composed(*overrides: str, script: str = "train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, list(overrides))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def groups_of(script: str) -> set[str]:
    """The groups from which a script's defaults list chooses."""
    return {
        key for entry in OmegaConf.load(CONF / f"{script}.yaml").defaults if not isinstance(entry, str) for key in entry
    }


CHOICES = [
    (script, path)
    for script in ("train", "prune", "deploy")
    for path in sorted(CONF.glob("*/*.yaml"))
    if path.parent.name in groups_of(script)
    # Most experiments are of training; what one changes of deploy.py lies in a folder of its own.
    and (script != "deploy" or path.parent.name != "experiment" or (path.parent / "deploy" / path.name).exists())
]


def test_every_group_belongs_to_a_script():
    assert {path.parent.name for path in CONF.glob("*/*.yaml")} == {path.parent.name for _, path in CHOICES}


@pytest.mark.parametrize(
    ("script", "path"), CHOICES, ids=[f"{path.parent.name}/{path.stem}-{s}" for s, path in CHOICES]
)
def test_every_choice_of_every_group_composes_and_resolves(script: str, path: Path):
    needed = {"mix": ["data.parts.folder.root=/x"], "synthetic": [], "l515": ["data.source=/x"]}
    needed["mix_photos"] = ["data.parts.photos.root=/x"]
    root = needed.get(path.stem, ["data.root=/x"]) if path.parent.name == "data" else []
    config = composed(f"{path.parent.name}={path.stem}", *root, script=script)
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("name", choices("loss"))
def test_every_loss_builds(name):
    loss = composed(f"loss={name}").loss
    assert Objective(loss.data, loss.gradient, loss.start_steps or 0).data == name


@pytest.mark.parametrize("name", choices("model"))
def test_every_model_builds(name):
    small = {"blocks": 1} if name.startswith("dpt") else {}
    assert build_model(composed(f"model={name}").model.name, **small).name == name


def test_a_models_variant_is_an_option():
    assert build_model(**composed("model=fastdepth", "model.variant=pruned").model).options["variant"] == "pruned"


def test_synthetic_data_builds_at_the_size_of_the_run():
    splits = instantiate(composed("data=synthetic", "size=[64,96]").data)
    assert splits.train[0].image.shape == (3, 64, 96)


def test_folder_and_mixture_build(tmp_path):
    root = write_frames(tmp_path / "tiny")
    assert instantiate(composed("data=folder", f"data.root={root}").data).name == "tiny"
    weights = ["data.weights.synthetic=1", "data.weights.folder=3"]
    mixed = instantiate(composed("data=mix", f"data.parts.folder.root={root}", "size=[64,96]", *weights).data)
    assert [part.name for part in mixed.train.parts] == ["synthetic", "tiny"]
    assert mixed.weights == [0.25, 0.75]


@pytest.mark.parametrize(
    ("group", "option", "near"),
    [
        ("folder", "data.rooot", "data.root"),
        ("mix", "data.parts.folder.roott", "data.root"),
        ("synthetic", "trainer.precison", "trainer.precision"),
        ("synthetic", "optimiser.encoder_lr", "optimizer.encoder_lr"),
    ],
)
def test_an_unknown_option_is_named_beside_the_nearest_known_one(group, option, near):
    with pytest.raises(Exception, match="Could not override") as caught:
        composed(f"data={group}", f"{option}=1")
    assert one_line(caught.value) == f"unknown option '{option}'; did you mean '{near}'?"


@pytest.mark.parametrize("override", ["batch_size=many", "trainer.max_steps=1.5", "size=256", "data.cap=deep"])
def test_an_option_of_the_wrong_type_is_named_in_one_line(override):
    with pytest.raises(Exception, match="Error merging") as caught:
        composed("data=folder", override)
    line = one_line(caught.value)
    assert line.startswith(f"option {override.partition('=')[0]}")
    assert "\n" not in line


@pytest.mark.parametrize("script", ["train", "prune", "deploy"])
def test_a_quick_experiment_shortens_every_script_and_yields_to_the_command_line(script):
    config = composed("experiment=quick", "measure.rounds=5", script=script)
    assert (config.evaluation.frames, config.measure.rounds, config.measure.memory) == (8, 5, False)
    assert (config.parity_frames if script == "deploy" else config.importance.images) == 4
    assert (
        script == "deploy" or composed("experiment=quick", "trainer.max_steps=7", script=script).trainer.max_steps == 7
    )
    assert composed(script=script).evaluation.frames is None
