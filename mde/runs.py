"""A run directory: one run's own, and its options in `config.yaml`.

It may come from somebody else: it is data, and nothing that it holds is executed.
"""

import copy
import fcntl
import hashlib
import json
import os
import re
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mde.atomic_file import atomic_file
from mde.builders import typed
from mde.errors import MdeError
from mde.overrides import as_text

LAST = "checkpoints/last.ckpt"  # what an interrupted training goes on from
# What another run would write over, go on from, or clear away, also of one that did not come to its end.
RESULTS = ("model.*", LAST, "bundle", "logs", "depth*", "frames.csv", "summary.json")
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")  # where Lightning looks for a process's number
CHECKSUM = "# sha256 of what follows: "


def used(directory: Path) -> bool:
    """Whether it holds results of a run; folders of other runs in it do not count, nor what is left of a run that ended
    before there were any.
    """
    return status(directory) == "complete" or any(True for name in RESULTS for _ in directory.glob(name))


def link_out(directory: Path) -> Path | None:
    """A link in the directory that leads out of it, which a run would write through; W&B's to its cache aside."""
    root = Path(os.path.realpath(directory))
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder, name) for name in [*folders, *files]):
            if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
                return path
        folders[:] = [name for name in folders if name != "wandb"]
    return None


def status(run_dir: Path) -> str:
    """The status in a run's record; "no result" where there is none that can be read."""
    try:
        return json.loads((run_dir / "metrics.json").read_text())["status"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no result"


def leads() -> bool:
    """Whether this process is a run of its own, and not a further process of one (`trainer.strategy=ddp`)."""
    return all(os.environ.get(name) in (None, "", "0") for name in RANKS)


def claim(directory: Path, option: str) -> AbstractContextManager[Any]:
    """Makes the directory that `option` names this process's until the returned context is closed or the process ends,
    however it ends.

    MdeError where another process has it, or where it cannot be written to.
    """
    if not leads():  # its first process has it
        return nullcontext()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = open(directory / ".lock", "a")  # noqa: SIM115 (returned)
    except OSError as error:
        raise MdeError(f"{directory}: cannot be written to ({error.strerror}); choose another {option}") from error
    try:
        # Not flock: what the run forks, its data loaders, would share that, and outlive a killed run by seconds.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise MdeError(
            f"{directory}: another process is writing there; wait for it, or choose another {option}"
        ) from error
    except OSError:  # a file system without locks
        pass
    return lock


def save_options(run_dir: Path, config: DictConfig) -> None:
    """Writes `config.yaml`, whole or not at all, under a checksum that tells a damaged one.

    What depends on the moment or the machine (`${oc.env:...}`) is written as what it is now.
    """
    config = copy.deepcopy(config)
    _settle(config)
    text = OmegaConf.to_yaml(config)
    with atomic_file(run_dir / "config.yaml") as file:
        file.write(f"{CHECKSUM}{_digest(text)}\n{text}".encode())


def load_options(run_dir: Path, schema: type | None) -> DictConfig:
    """The options that a run wrote down, held to `schema` and to those of its frames.

    MdeError where they are not there, not whole, no YAML, of another version, or name code.
    """
    path = run_dir / "config.yaml"
    try:
        first, _, rest = (text := path.read_text()).partition("\n")
        # Versions before wrote none.
        if first.startswith(CHECKSUM) and first != CHECKSUM + _digest(rest):
            raise MdeError("cut or changed since the run wrote it; give options beside resume= to change them")
        config = OmegaConf.merge(OmegaConf.structured(schema), OmegaConf.create(text))
        assert isinstance(config, DictConfig)
        if call := next(filter(_calls, _strings(OmegaConf.to_container(config))), None):
            raise MdeError(f"{call}: a resolver, which is not followed; write there what it stands for")
        config.data = typed("data", config.data)
        OmegaConf.to_container(config, resolve=True)
    except MdeError as error:
        raise MdeError(f"{path}: {error}") from error
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise MdeError(f"{path}: holds no options of this version ({reason})") from error
    return config


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _calls(text: str) -> bool:
    """Whether OmegaConf would do more about the text than look up another option: ${size} is one, and \\${ text."""
    text = re.sub(r"(?<!\\)((?:\\\\)*)\\\$\{", r"\1 ", text)
    return "${" in re.sub(r"\$\{[\w.]+\}", "", text)


def _strings(content: Any) -> list[str]:
    if isinstance(content, dict):
        return [text for item in content.items() for each in item for text in _strings(each)]
    if isinstance(content, list):
        return [text for item in content for text in _strings(item)]
    return [content] if isinstance(content, str) else []


def _settle(config: Any) -> None:
    """Puts what resolvers stand for into their places."""
    for key in list(config) if isinstance(config, DictConfig) else range(len(config)):
        node = config._get_node(key)
        if OmegaConf.is_interpolation(config, key):
            if _calls(node._value()):
                value = config[key]
                config[key] = as_text(value) if isinstance(value, str) else value
        elif OmegaConf.is_config(node) and not node._is_none() and not node._is_missing():
            _settle(node)
