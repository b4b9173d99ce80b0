from pathlib import Path
from typing import Any

import pytest
import torch

from mde.errors import MdeError
from mde.models import build_model, save_model
from mde.models.midas_small import Fusion
from mde.models.registry import as_published
from mde.speed.published import published_graph
from tests.models.conftest import official_state


@pytest.mark.parametrize("weights", [None, "none"])
def test_random_weights_are_the_default(weights: str | None) -> None:
    model = build_model("midas_small", weights=weights, encoder="lite0")
    assert not model.training
    assert model.options == {"encoder": "lite0", "reference": False, "border": "zeros"}


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
        ({"border": "mirror"}, r"model\.border=mirror: unknown; choose one of zeros, replicate"),
        ({"border": "mirror", "weights": "shipped"}, r"model\.border=mirror: unknown; choose one of zeros, replicate"),
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
        assert model.options == {"encoder": "lite1", "reference": reference, "border": "zeros"}
        assert {m.reference for m in model.modules() if isinstance(m, Fusion)} == {reference}
    with pytest.raises(MdeError, match=r"model\.encoder=lite0.*holds encoder=lite1"):
        build_model("midas_small", weights=file, encoder="lite0")


def test_weights_fit_both_borders_and_a_file_keeps_its_own(file: Path, tmp_path: Path) -> None:
    model = build_model("midas_small", weights=file, border="replicate")
    assert model.options["border"] == "replicate"
    save_model(model, tmp_path / "again.safetensors")
    assert build_model(None, weights=tmp_path / "again.safetensors").options["border"] == "replicate"
    published = build_model(None, weights=tmp_path / "again.safetensors", border="zeros")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        published.decoder.head.conv3.weight.mul_(100)  # a fresh network's answer hardly varies
        model.decoder.head.conv3.weight.mul_(100)
        different = model(image) != published(image)
    assert not different[..., 1:-1, 1:-1].any()
    assert different[..., 0].any()


def test_a_baseline_is_the_network_as_published_whatever_is_measured_against_it() -> None:
    model = build_model("midas_small", encoder="lite0", border="replicate")
    assert as_published(model.options) == {"encoder": "lite0", "reference": True, "border": "zeros"}
    assert published_graph("midas_small", model.options).network.options == as_published(model.options)
    assert as_published({"variant": "dense", "reference": False}) == {"variant": "dense", "reference": True}
