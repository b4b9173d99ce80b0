"""One way to get a network, whatever its weights come from."""

import inspect
import os
from pathlib import Path
from typing import Any

import torch

from mde.errors import MdeError
from mde.models.checkpoints import load_model, load_official
from mde.models.download import official_midas
from mde.models.imagenet import load_imagenet_encoder
from mde.models.midas_small import BORDERS
from mde.models.network import DepthNetwork
from mde.models.registry import DEFAULT, find_network, suggest
from mde.models.shipped import SHIPPED, located

SOURCES = ("none", "midas", "imagenet", SHIPPED)
UNTRAINED = ("none", "imagenet")  # whose decoder knows nothing


def build_model(
    name: str | None, *, weights: str | os.PathLike[str] | None = None, reference: bool = False, **options: Any
) -> DepthNetwork:
    """A network in eval mode.

    name       one of NETWORKS; None: what the weights hold, midas_small where they leave it open
    weights    None or "none" (random), "midas" (official, downloaded once), "imagenet" (encoder only), "shipped" (the
               dense one of `weights/`), or the path of an official `.pt` or of an own `.safetensors` file; a file
               decides encoder and widths itself
    reference  true keeps the published order of operations, where a network has another, see `Fusion`; for every source
    options    the network's own, such as encoder="lite0"; None leaves the choice to the file or the network's default;
               MdeError when a file holds another, unless weights fit both (border="replicate")
    """
    options = {option: value for option, value in options.items() if value is not None}
    border = options.get("border")
    if border not in (None, *BORDERS):
        raise MdeError(f"model.border={border}: unknown; choose one of {', '.join(BORDERS)}")
    file = None if weights is None else located(weights)
    opened = None if file in (None, *SOURCES) else network_in(Path(file), reference, border)
    if opened is not None and name not in (None, opened.name):
        find_network(name)  # an unknown name is reported as such
        raise MdeError(f"weights={weights}: holds {opened.name}, not {name}; set model={opened.name}, or other weights")
    network = find_network(name or DEFAULT) if opened is None else type(opened)
    known = inspect.signature(network).parameters
    for option in options:
        if option not in known:
            raise MdeError(f"model.{option}: {network.name} has no such option; leave it out")
    if opened is not None:
        model = opened
    elif weights == "midas":
        with torch.device("meta"):
            check_options(network(), {**options, "border": None}, weights)  # before anything is downloaded
        model = official_midas(network.name, reference=reference, border=border)
    else:
        model = network(**options, **({"reference": reference} if "reference" in known else {}))
        if weights == "imagenet":
            load_imagenet_encoder(model)
    check_options(model, options, weights)
    return model.eval()


def check_options(model: DepthNetwork, options: dict[str, Any], weights: object) -> None:
    """MdeError unless `model`, the network in `weights`, was built with `options`."""
    for option, wanted in options.items():
        if wanted is not None and model.options[option] != wanted:
            raise MdeError(
                f"model.{option}={wanted}: weights={weights} holds {option}={model.options[option]}; "
                f"leave model.{option} out, or start from other weights"
            )


def dense_of(model: DepthNetwork) -> DepthNetwork:
    """The network that `model` was before any pruning, without weights (on the meta device)."""
    with torch.device("meta"):
        return find_network(model.name)(**model.options)


def network_in(path: Path, reference: bool = False, border: str | None = None) -> DepthNetwork:
    """The network in an own .safetensors or an official file. MdeError when there is none."""
    if not path.is_file():
        raise MdeError(f"weights={path}: no such file; {suggest(str(path), SOURCES)}, or give a checkpoint's path")
    if path.suffix == ".safetensors":
        return load_model(path, reference=reference, border=border)
    return load_official(path, reference=reference, border=border)
