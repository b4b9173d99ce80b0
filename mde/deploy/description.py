"""What a deployed file says of itself, in `<file>.json` beside it: what goes in and what comes out."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from mde.atomic_file import atomic_file
from mde.errors import MdeError

OUTPUTS = ("inverse_depth", "depth")


@dataclass(frozen=True)
class Calibration:
    """Metric depth = 1 / max(scale x inverse depth + shift, 1 / cap), in metres."""

    scale: float
    shift: float
    cap: float

    def metres(self, inverse_depth: np.ndarray) -> np.ndarray:
        """Depth in metres of inverse depth as the network answers it."""
        return 1 / np.maximum(self.scale * inverse_depth + self.shift, 1 / self.cap)


@dataclass(frozen=True)
class Description:
    """network      as `build_model` calls it; a name of its own for a network of others
    engine       that runs the file
    precision    fp32, fp16, int8 or dynamic
    input        height, width
    layout       "nhwc" or "nchw"
    dtype        of the image: "uint8" or "float32", RGB in 0..255
    calibration  None: inverse depth is known up to scale and shift only
    output       "inverse_depth", or "depth" of a network of others, up to scale
    licence      of the network, where it is known: what learns from it has to name it
    """

    network: str
    engine: str
    precision: str
    input: tuple[int, int]
    layout: str = "nhwc"
    dtype: str = "uint8"
    calibration: Calibration | None = None
    output: str = "inverse_depth"
    licence: str | None = None


# Networks of others that need no description beside them: SHA-256 of the file -> what it is.
KNOWN = {
    "e8957602750f16ac130210868f4403b38b4042f0d10c00b89ec03fc3dc840125": Description(
        "fastdepth",
        "litert",
        "int8",
        (224, 224),
        output="depth",
        licence="Apache-2.0 copy of an MIT-licensed network, trained on NYU Depth v2",
    )
}


def description_file(path: Path) -> Path:
    """Where the description of the network in `path` is."""
    return path.with_name(path.name + ".json")


def network_file(path: Path) -> Path:
    """The file of the network that `path` was made of: model.safetensors beside it, where deploy.py leaves it, or the
    one that it is named after (in `weights/`, a.safetensors of a_int8.onnx); of a network's own file, itself.
    """
    if path.suffix in (".safetensors", ".pt"):
        return path
    named = path.with_name(f"{path.stem.rpartition('_')[0]}.safetensors")
    return named if named.is_file() else path.with_name("model.safetensors")


def write_description(path: Path, description: Description) -> None:
    """Describes the finished file `path`, whose contents the description is tied to by a hash."""
    content = asdict(description) | {"graph_sha256": graph_hash(path)}
    with atomic_file(description_file(path)) as file:
        file.write(json.dumps(content, indent=1).encode())


def read_description(path: Path) -> Description:
    """What stands beside the file, or what is known of it.

    MdeError when there is neither, it cannot be read, or the file is not the one that was described.
    """
    if not description_file(path).exists() and (about := KNOWN.get(graph_hash(path))):
        return about
    try:
        content = json.loads(description_file(path).read_text())
        content = {"output": "inverse_depth", "licence": None} | content  # which older ones do not mention
        known = {field.name: content[field.name] for field in fields(Description)}
        if known["output"] not in OUTPUTS:
            raise ValueError(f"output {known['output']!r}")
        known["input"] = (int(known["input"][0]), int(known["input"][1]))
        if known["calibration"] is not None:
            known["calibration"] = Calibration(**known["calibration"])
        expected = content["graph_sha256"]
    except FileNotFoundError as error:
        raise MdeError(
            f"{path}: no {description_file(path).name} beside it says what it takes; deploy it again, "
            "or describe it by mde.deploy.description.write_description when it is not ours"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise MdeError(
            f"{description_file(path)}: not a description of a network ({error}); deploy it again"
        ) from error
    if graph_hash(path) != expected:
        raise MdeError(
            f"{path}: not the file that {description_file(path).name} describes, or damaged; deploy it again"
        )
    return Description(**known)


def graph_hash(path: Path) -> str:
    """SHA-256 of the file, and of the weights (.bin) that OpenVINO keeps beside an .xml. MdeError: one is missing."""
    try:
        digest = hashlib.sha256(path.read_bytes())
        if path.suffix == ".xml":
            digest.update(path.with_suffix(".bin").read_bytes())
    except OSError as error:
        raise MdeError(f"{path}: cannot be read ({error.strerror}); deploy it again") from error
    return digest.hexdigest()
