"""What a call that does less than a deployment says to options that it would ignore."""

from collections.abc import Collection

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from mde.errors import MdeError


def given(option: str) -> bool:
    """Whether the command line sets the option or group."""
    return any(override.lstrip("+~").partition("=")[0] == option for override in HydraConfig.get().overrides.task)


def only(options: Collection[str], what: str) -> None:
    """MdeError when the command line gives an option or group that is not among `options`, or -m.

    what  the call, as the message names it: "source="
    """
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        raise MdeError(f"{what}: is one run, no job of a sweep; leave out -m")
    for override in hydra.overrides.task:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in {*options, "experiment"}:  # which only shortens
            raise MdeError(f"{key}: means nothing to {what}; leave it out")
