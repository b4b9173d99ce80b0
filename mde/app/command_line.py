"""What a command line may say: it can come from somebody else, to copy, and Hydra imports and calls what its own
options (callbacks, log handlers, folders of further options) name, before anything of ours is asked.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString, Sweep
from hydra.errors import HydraException

from mde.config import CHOICES
from mde.errors import MdeError

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = {*CHOICES, "target", *(path.name for path in CONF.iterdir() if path.is_dir())}
# Hydra's options that say where, how much and how many. Not among them: what holds code or commands, as a launcher's
# `setup` does, and whole tables, in which any key may be.
HYDRAS = re.compile(
    r"""hydra\.(
        run\.dir | sweep\.(dir|subdir) | job\.(name|chdir|num|id) | mode | verbose
        | launcher\.(
            n_jobs | verbose | name | nodes | partition | qos | account | constraint | gres | array_parallelism
            | timeout_min | max_num_timeout | (cpus|gpus|tasks|mem)_per_(node|task|gpu|cpu) | mem_gb
            | ray\.init\.(address|num_cpus|num_gpus|include_dashboard) | ray\.remote\.(num_cpus|num_gpus|max_retries)
        )
        | sweeper\.(
            n_jobs | n_trials | max_batch_size | max_failure_rate | direction | study_name
            | params\.(?!hydra$)\w+ | sampler\.[a-z]\w*
        )
    )|hydra/(launcher|sweeper|sweeper/sampler|job_logging|hydra_logging)""",
    re.VERBOSE,
)
PLACES = re.compile(r"hydra\.(run|sweep|job)\.")  # text, whatever it is interpolated from
ELSEWHERE = ("config_dir", "config_path", "config_name", "experimental_rerun")


def check_arguments(arguments: list[str]) -> None:
    """MdeError for what names code, or options that are not this project's."""
    given, _ = get_args_parser().parse_known_args(arguments)  # Hydra refuses the others
    for name in ELSEWHERE:
        if getattr(given, name) is not None:
            raise MdeError(f"--{name.replace('_', '-')}: options come from conf/ here; put your file there")
    for argument in given.overrides:
        try:
            _check(OverridesParser.create().parse_override(argument))
        except HydraException:  # Hydra refuses it too
            continue


def _check(option: Override) -> None:
    key, argument = option.key_or_group, option.input_line
    texts: list[str] = []
    keys = [key.rpartition(".")[2]]
    for kind, text in _parts(option._value):
        (keys if kind == "key" else texts).append(text)
    if any(re.fullmatch("class|_.*_", each) for each in keys) or re.search(r"oc\.(create|decode)", " ".join(texts)):
        raise MdeError(f"{argument}: names code; a command line chooses among what there is (data=folder, ...)")
    if key == "hydra.output_subdir" and option._value is None:
        return  # which Lightning gives each further process of a run
    hydras = re.split(r"[./]", key)[0] == "hydra"
    if "hydra" in re.split(r"[./]", option.package or "") or (hydras and not HYDRAS.fullmatch(key)):
        raise MdeError(f"{argument}: no option of a command line; put it into a file of conf/")
    if hydras and not PLACES.match(key) and any("${" in text for text in texts):
        raise MdeError(f"{argument}: is not interpolated; give the value itself")
    group = key.removeprefix("hydra.sweeper.params.")
    # Hydra would follow a path, and the file there may hold any option of Hydra's.
    if (group in GROUPS or "/" in group) and not isinstance(option._value, dict):
        for text in texts:
            if re.search(r"[/\\$]", text):
                raise MdeError(f"{argument}: {text} is no choice of {group}; put a file of your own into conf/{group}")


def _parts(value: Any) -> Iterator[tuple[str, str]]:
    """("key", text) of every key in the value, at any depth, and ("text", text) of what else it says."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield "key", str(getattr(key, "text", key))
            yield from _parts(item)
    elif isinstance(value, Sweep):
        for item in vars(value).values():
            yield from _parts(item)
    elif isinstance(value, (list, set, tuple)):
        for item in value:
            yield from _parts(item)
    elif value is not None:
        yield "text", value.text if isinstance(value, QuotedString) else str(value)
