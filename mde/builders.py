"""What a configuration may have called: this project's own builders, and nothing else.

A configuration can come from somebody else, with a run directory (`resume=`) or in a command to copy, and Hydra's
`instantiate` and `get_method` import and call whatever it names. So they are used here only, behind one check.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from hydra.utils import get_method, instantiate
from omegaconf import DictConfig, OmegaConf

from mde.config import CHOICES, SCHEMAS
from mde.errors import MdeError

# Group -> builder -> the schema of its arguments.
BUILDERS: dict[str, dict[str, type]] = {}
for _groups in (CHOICES, SCHEMAS):
    for _group, _nodes in _groups.items():
        for _node in _nodes.values():
            if hasattr(_node, "_target_"):
                BUILDERS.setdefault(_group, {})[_node._target_] = _node if isinstance(_node, type) else type(_node)


def built(group: str, config: Any) -> Any:
    """What the builder that `config` names makes of the rest of it; builders inside are called first.

    Raises MdeError for any other than the group's own.
    """
    _check(group, config)
    return instantiate(config)


def builder(group: str, config: Any) -> Callable[..., Any]:
    """The builder that `config` names. Raises MdeError for any other than the group's own."""
    _check(group, config)
    return get_method(config._target_)


def typed(group: str, config: Any) -> Any:
    """`config` held to the schema of the builder that it names. Raises MdeError and OmegaConf's errors."""
    _check(group, config)
    return OmegaConf.merge(OmegaConf.structured(BUILDERS[group][config._target_]), config)


def _check(group: str, config: Any) -> None:
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise MdeError(f"{group}: names nothing to build; choose {group}=...")
    # Resolved: what an interpolation stands for is what would be called.
    for key, value in _instructions(OmegaConf.to_container(config, resolve=True)):
        if key != "_target_" or value not in BUILDERS[group]:
            raise MdeError(f"{group}: {key}={value} is none of this project's builders, and no other code is run")


def _instructions(content: Any) -> Iterator[tuple[str, Any]]:
    """The keys that Hydra takes for instructions (`_target_`, `_args_`, `_partial_`, ...), at any depth."""
    if isinstance(content, dict):
        for key, value in content.items():
            if re.fullmatch("_.+_", str(key)):
                yield str(key), value if isinstance(value, str) else repr(value)
            yield from _instructions(value)
    elif isinstance(content, list):
        for item in content:
            yield from _instructions(item)
