from pathlib import Path
from typing import Any

import pytest
import torch

from mde.errors import MdeError
from mde.models import build_model, save_model
from mde.models.midas_small import Fusion
from tests.models.conftest import official_state


@pytest.mark.parametrize("weights", [None, "none"])
def test_random_weights_are_the_default(weights: str | None) -> None:
    model = build_model("midas_small", weights=weights, encoder="lite0")
    assert not model.training
    assert model.options == {"encoder": "lite0", "reference": False}


def test_an_option_of_none_leaves_the_choice() -> None:
    assert build_model("midas_small", encoder=None).options["encoder"] == "lite3"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "midas_smal"}, "did you mean midas_small"),
        ({"name": "x"}, "choose one of midas_small"),
        ({"weights": "imagnet"}, "did you mean imagenet"),
        ({"weights": "shiped"}, r"did you mean shipped\? choose one of none, midas, imagenet, shipped"),
        ({"weights": "missing/model.safetensors"}, "no such file"),
        ({"encoder": "lite5"}, "choose one of lite0"),
        ({"colour": "red"}, "model.colour"),
    ],
)
def test_wrong_arguments_are_refused_with_the_choices(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(MdeError, match=words):
        build_model(**{"name": "midas_small", **arguments})


@pytest.fixture(params=["official.pt", "own.safetensors"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    if path.suffix == ".pt":
        torch.save(official_state("lite1"), path)
    else:
        save_model(build_model("midas_small", encoder="lite1"), path)
    return path


def test_a_file_decides_the_encoder_and_the_caller_the_order(file: Path) -> None:
    for reference in (False, True):
        model = build_model("midas_small", weights=file, reference=reference)
        assert model.options == {"encoder": "lite1", "reference": reference}
        assert {m.reference for m in model.modules() if isinstance(m, Fusion)} == {reference}
    with pytest.raises(MdeError, match=r"model\.encoder=lite0.*holds encoder=lite1"):
        build_model("midas_small", weights=file, encoder="lite0")
