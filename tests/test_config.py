"""Every choice and every YAML file in conf/ composes and builds what it describes."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import instantiate
from omegaconf import OmegaConf

from mde.app.entry import one_line, register
from mde.config import CHOICES
from mde.models import build_model
from mde.training.objective import Objective
from tests.conftest import ROOT, write_frames

CONF = ROOT / "conf"
register()


def composed(*overrides: str, script: str = "train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, list(overrides))


def choices(group: str) -> list[str]:
    """Registered ones and files."""
    store = ConfigStore.instance()
    registered = [name.removesuffix(".yaml") for name in (store.list(group) if group in store.repo else [])]
    return sorted({name for name in registered if not name.endswith("_schema")} | files(group))


def files(group: str) -> set[str]:
    return {path.stem for path in (CONF / group).glob("*.yaml")}


def groups_of(script: str) -> set[str]:
    """The groups from which a script's defaults list chooses."""
    entries = [entry for entry in OmegaConf.load(CONF / f"{script}.yaml").defaults if not isinstance(entry, str)]
    return {key for entry in entries for key in entry if not key.startswith("optional ")}


COMPOSED = [
    (script, group, name)
    for script in ("train", "prune", "deploy")
    for group in sorted(groups_of(script))
    for name in choices(group)
    # Most experiments are of training; what one changes of deploy.py lies in a folder of its own.
    if (script, group) != ("deploy", "experiment") or name in files("experiment/deploy") | {"none"}
]


def test_every_group_belongs_to_a_script():
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert folders | CHOICES.keys() | {"target"} == {group for _, group, _ in COMPOSED}


@pytest.mark.parametrize(("script", "group", "name"), COMPOSED)
def test_every_choice_of_every_group_composes_and_resolves(script: str, group: str, name: str):
    needed = {"mix": ["data.parts.folder.root=/x"], "synthetic": [], "l515": ["data.source=/x"]}
    needed["mix_photos"] = ["data.parts.photos.root=/x"]
    root = needed.get(name, ["data.root=/x"]) if group == "data" else []
    config = composed(f"{group}={name}", *root, script=script)
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
