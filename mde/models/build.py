"""One way to get a network, whatever its weights come from."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch

from mde.errors import MdeError
from mde.models.checkpoints import load_model, load_official
from mde.models.download import official_midas
from mde.models.imagenet import imagenet_encoder
from mde.models.midas_small import MidasSmall
from mde.models.network import DepthNetwork
from mde.models.registry import find_network, suggest

SOURCES = ("none", "midas", "imagenet")


def build_model(
    name: str, *, weights: str | os.PathLike[str] | None = None, reference: bool = False, **options: Any
) -> DepthNetwork:
    """A network in eval mode.

    name       "midas_small"
    weights    None or "none" (random), "midas" (official, downloaded once), "imagenet" (encoder only), or the path of
               an official `.pt` or of an own `.safetensors` file; a file decides encoder and widths itself
    reference  true keeps the published order of operations, see `MidasSmall`; for every source
    options    the network's own, such as encoder="lite0"; None leaves the choice to the file or the network's default;
               MdeError when a file holds another
    """
    network = find_network(name)
    options = {option: value for option, value in options.items() if value is not None}
    for option in options:
        if option not in inspect.signature(network).parameters:
            raise MdeError(f"model.{option}: {name} has no such option; leave it out")
    if weights is None or weights == "none":
        model: DepthNetwork = network(reference=reference, **options)
    elif weights == "midas":
        model = official_midas(reference=reference)
    elif weights == "imagenet":
        model = _with_imagenet_encoder(MidasSmall(reference=reference, **options))
    else:
        model = _from_file(Path(weights), reference)
    if model.name != name:
        raise MdeError(f"{weights}: holds {model.name}, not {name}; set model={model.name}")
    for option, wanted in options.items():
        if model.options.get(option) != wanted:
            raise MdeError(
                f"model.{option}={wanted}: weights={weights} holds {option}={model.options.get(option)}; "
                f"leave model.{option} out, the file decides"
            )
    return model.eval()


def dense_of(model: DepthNetwork) -> DepthNetwork:
    """The network that `model` was before any pruning, without weights (on the meta device)."""
    with torch.device("meta"):
        return find_network(model.name)(**model.options)


def _from_file(path: Path, reference: bool) -> DepthNetwork:
    if not path.is_file():
        raise MdeError(f"weights={path}: no such file; {suggest(str(path), SOURCES)}, or give a checkpoint's path")
    if path.suffix == ".safetensors":
        return load_model(path, reference=reference)
    return load_official(path, reference=reference)


def _with_imagenet_encoder(model: MidasSmall) -> MidasSmall:
    model.encoder.load_state_dict(imagenet_encoder(model.encoder_name, model.mean, model.std))
    return model
