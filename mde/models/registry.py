"""Which networks there are, and finding one by name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from mde.errors import MdeError
from mde.models.dpt import DptHybrid, DptLarge
from mde.models.fastdepth import FastDepth
from mde.models.guidedepth import GuideDepth
from mde.models.midas_small import MidasSmall
from mde.models.network import DepthNetwork

NETWORKS: dict[str, type[DepthNetwork]] = {
    network.name: network for network in (MidasSmall, DptHybrid, DptLarge, FastDepth, GuideDepth)
}


DEFAULT = MidasSmall.name
PUBLISHED = {"reference": True, "border": "zeros"}


def find_network(name: str) -> type[DepthNetwork]:
    """The class of the network called `name`; MdeError with the nearest known name otherwise."""
    if name not in NETWORKS:
        raise MdeError(f"model={name}: no such network; {suggest(name, NETWORKS)}")
    return NETWORKS[name]


def as_published(options: Mapping[str, Any]) -> dict[str, Any]:
    """A network's `options`, with those that make it faster as they were published: of a baseline."""
    return {option: PUBLISHED.get(option, value) for option, value in options.items()}


def suggest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the nearest choice if one is near, and all of them."""
    choices = list(choices)
    near = difflib.get_close_matches(name, choices, n=1)
    return (f"did you mean {near[0]}? " if near else "") + f"choose one of {', '.join(choices)}"
