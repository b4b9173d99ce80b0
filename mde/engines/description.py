"""What a deployed file says of itself, in `<file>.json` beside it: what goes in and what comes out."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mde.atomic_file import atomic_file
from mde.engines import ENGINES
from mde.engines.litert import LITERT
from mde.errors import MdeError
from mde.json_file import REQUIRED, read_json

# Of a description's entries, all that they may be.
CHOICES = {
    "precision": ("fp32", "fp16", "int8", "dynamic"),
    "layout": ("nhwc", "nchw"),
    "dtype": ("uint8", "float32"),
    "output": ("inverse_depth", "depth"),
}
LARGEST = 65536  # pixels of a side


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
        LITERT.name,
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
    if not description_file(path).exists():
        raise MdeError(
            f"{path}: no {description_file(path).name} beside it says what it takes; deploy it again, "
            "or describe it by mde.deploy.description.write_description when it is not ours"
        )
    content = read_json(description_file(path), "deploy it again")
    sides = content.entry("input", list)
    if [type(side) for side in sides] != [int, int] or not all(0 < side <= LARGEST for side in sides):
        raise content.error("input", f"must be height and width, whole numbers of pixels up to {LARGEST}")
    calibration = content.entry("calibration", dict, None)
    if calibration is not None:
        scale, shift, cap = (calibration.entry(key, float) for key in ("scale", "shift", "cap"))
        if not all(map(math.isfinite, (scale, shift, cap))) or cap <= 0:
            raise content.error("calibration", "must be finite, its cap positive")
        calibration = Calibration(scale, shift, cap)
    older = {"output": "inverse_depth"}  # which older ones do not mention
    described = Description(
        network=content.entry("network", str),
        engine=content.choice("engine", tuple(ENGINES)),
        input=(sides[0], sides[1]),
        calibration=calibration,
        licence=content.entry("licence", str, None),
        **{key: content.choice(key, choices, older.get(key, REQUIRED)) for key, choices in CHOICES.items()},
    )
    if graph_hash(path) != content.entry("graph_sha256", str):
        raise MdeError(
            f"{path}: not the file that {description_file(path).name} describes, or damaged; deploy it again"
        )
    return described


def graph_hash(path: Path) -> str:
    """SHA-256 of the file and of its weights where they are in others, see `files_of`. MdeError: one is missing."""
    digest = hashlib.sha256()
    for file in files_of(path):
        try:
            with file.open("rb") as opened:
                while block := opened.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise MdeError(f"{file}: cannot be read ({error.strerror}); deploy it again") from error
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """The file, and those that hold its weights: OpenVINO's .bin, the external data of an ONNX file. MdeError for data
    outside its folder.
    """
    return [path, *_weights_beside(path)]


def _weights_beside(path: Path) -> list[Path]:
    if path.suffix == ".xml":
        return [path.with_suffix(".bin")]
    if path.suffix != ".onnx":
        return []
    import onnx
    from onnx.external_data_helper import ExternalDataInfo, _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # no graph, or no file: whoever reads or opens it says so
        return []
    try:
        tensors = filter(uses_external_data, _get_all_tensors(model))
        locations = dict.fromkeys(ExternalDataInfo(tensor).location for tensor in tensors)
    except ValueError as error:
        raise MdeError(f"{path}: says wrongly where its weights are ({error}); export it again") from error
    for location in map(PurePosixPath, locations):
        if location.is_absolute() or ".." in location.parts:
            raise MdeError(f"{path}: keeps weights in {location}, outside its folder; export it again, in one file")
    return [path.parent / location for location in locations]
