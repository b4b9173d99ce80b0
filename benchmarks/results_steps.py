"""The commands that docs/results.md's tables and figures are made from, each in a run directory of its own."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mde.engines import OPENVINO_DEFAULT
from mde.models import read_metadata
from mde.records import read_record
from mde.report.sweep_table import read_jobs

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path("weights")
SHARED = os.environ.get("MDE_SHARED", "../shared")
NYU = f"data=folder data.root={SHARED}/data/nyu"
ZERO_SHOT = ("redkitchen", "desk_lidar", "office", "kitti", "classroom", "tabletop", "mixed_rgbd", "redwood", "sun3d")
# Zero-shot, indoors (mixed_rgbd is in part outdoors), and without a say in any choice (redkitchen had one).
OTHER_INDOOR = tuple(name for name in ZERO_SHOT if name not in ("kitti", "redkitchen", "mixed_rgbd"))
EVALUATE = f"evaluate=[{','.join(f'{SHARED}/data/{name}' for name in ZERO_SHOT)}]"
BRIEF = "evaluation.frames=100"  # a later step evaluates what this leaves on all of them
PEER = f"{SHARED}/peers/fast_depth_224.tflite"
FASTDEPTH = ("FastDepth", "litert", "int8")
SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml", "litert": ".tflite"}
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
ENGINES |= {OPENVINO_DEFAULT.name: "OpenVINO by default"}
# Name in the tables: file in weights/, without its ending.
NETWORKS = {
    "dense": "midas_small",
    "channel 0.5": "midas_small_half",
    "channel 0.75": "midas_small_quarter",
    "channel 0.9": "midas_small_tenth",
    "shallow 0.9": "midas_small_shallow",
    "tenfold": "midas_small_tenfold",
}
FREE = {"free": "midas_small_free"}
# Pruned without training after, for the Pareto figure: zeros, which no engine here is faster for.
ZEROED = {"single weights 0.5": "prune=fine_grained sparsity=0.5", "2:4": "prune=two_four sparsity=0.5"}
# (network, engine, precision) of the Pareto figure.
POINTS = [
    *((network, "litert", "fp32") for network in (*NETWORKS, *FREE)),
    *(("dense", "onnxruntime", "fp32"), ("dense", "openvino", "fp32"), ("dense", "openvino", "float16")),
    *((network, engine, "int8") for network in NETWORKS for engine in SUFFIX),
    *((network, "onnxruntime", "fp32") for network in ZEROED),
]
# Of the table against the sensor.
SENSOR = [("dense", "litert", "fp32"), ("dense", "litert", "int8"), ("channel 0.9", "litert", "int8")]
OUT = Path("outputs/results")
RECORDING = OUT / "room.db3"


@dataclass(frozen=True)
class Step:
    """A command. Its run directory (of a sweep: the folder of its jobs) is named after what goes into it: with other
    inputs, or another command, it begins anew.

    inputs  files of `weights/` that it reads
    """

    name: str
    command: str
    inputs: tuple[Path, ...] = ()
    sweep: bool = False

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(self.command.replace(SHARED, "$MDE_SHARED").encode())
        for path in self.inputs:
            digest.update((ROOT / path).read_bytes())
        return OUT / f"{self.name}-{digest.hexdigest()[:8]}"

    @property
    def complete(self) -> bool:
        if self.sweep:
            jobs = read_jobs(self.path) if self.path.is_dir() else []
            return (self.path / "summary.json").exists() and all(job.complete for job in jobs)
        return (self.path / "metrics.json").exists() and read_record(self.path)["status"] == "complete"

    def run(self) -> None:
        arguments = self.arguments()
        print(f"$ python {' '.join(arguments)}", flush=True)
        subprocess.run([sys.executable, *arguments], check=False)

    def arguments(self) -> list[str]:
        """Of Python; what was interrupted goes on, or, where that is no training, begins anew."""
        if (self.path / "checkpoints/last.ckpt").exists():
            return [*(word for word in self.command.split(" ") if "=" not in word), f"resume={self.path}"]
        if self.sweep:
            option = "sweep.resume" if (self.path / "multirun.yaml").exists() else "hydra.sweep.dir"
            return [*self.command.split(" "), f"{option}={self.path}"]
        shutil.rmtree(self.path, ignore_errors=True)
        return [*self.command.split(" "), f"hydra.run.dir={self.path}"]


def weights(network: str) -> Path:
    return WEIGHTS / f"{(NETWORKS | FREE)[network]}.safetensors"


def learned_from(network: str) -> set[str]:
    """The sets that a network has seen frames of."""
    if network == FASTDEPTH[0]:
        return {"nyu"}
    return set(read_metadata(ROOT / weights("dense" if network in ZEROED else network))["trained_on"].split("+"))


def shipped(point: tuple[str, str, str]) -> Path | None:
    """The file of this kind that lies in `weights/`, if one does."""
    network, engine, precision = point
    path = WEIGHTS / f"{(NETWORKS | FREE).get(network)}_{precision}{SUFFIX[engine]}"
    return path if (ROOT / path).exists() else None


def deployed(point: tuple[str, str, str]) -> Step:
    network, engine, precision = point
    quantize = "none" if precision == "fp32" else precision
    source = zeroed(network).path / "model.safetensors" if network in ZEROED else weights(network)
    command = f"deploy.py checkpoint={source} target={engine} quantize={quantize} {NYU} {BRIEF}"
    inputs = () if network in ZEROED else (source,)
    return Step(f"deployed/{slug(network)}-{engine}-{precision}", command, inputs)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def dense() -> Step:
    """In a run directory, whose figures a sweep takes instead of measuring the dense network in each of its jobs."""
    return Step("dense", f"deploy.py target=pytorch {NYU}", (weights("dense"),))


def zeroed(name: str) -> Step:
    checkpoint = dense().path / "model.safetensors"
    return Step(f"zeroed/{slug(name)}", f"prune.py checkpoint={checkpoint} {ZEROED[name]} recovery=none {NYU}")


def model_file(point: tuple[str, str, str]) -> str:
    return str(shipped(point) or deployed(point).path / f"model{SUFFIX[point[1]]}")


def files() -> dict[str, tuple[str, str, str]]:
    """Path of every file that is compared -> what it is."""
    return {model_file(point): point for point in POINTS} | {PEER: FASTDEPTH}


def available(points: Sequence[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Without those that could not be deployed."""
    return [point for point in points if point == FASTDEPTH or shipped(point) or deployed(point).complete]


def compared(name: str, points: Sequence[tuple[str, str, str]], options: str) -> Step:
    """All in one process."""
    listed = {point: PEER if point == FASTDEPTH else model_file(point) for point in available(points)}
    inputs = tuple(path for path in map(shipped, listed) if path is not None)
    return Step(name, f"deploy.py compare=[{','.join(listed.values())}] {options}", inputs)


def steps() -> Iterator[Step]:
    """Each may depend on what those before it left."""
    yield dense()
    yield Step("photos", "deploy.py source=docs/photos", (weights("dense"),))
    yield from (zeroed(name) for name in ZEROED)
    yield from (deployed(point) for point in POINTS if not shipped(point))
    yield compared("compare", [*POINTS, FASTDEPTH], f"{NYU} {EVALUATE} default_precision=true")
    yield compared("figure4", SENSOR, f"data=l515 data.source={RECORDING} calibrate=20")
    start = f"checkpoint={dense().path}/model.safetensors"
    for number, figure_sparsities in (1, "0.02,0.06,0.10,0.20"), (2, "0.10,0.50,0.70,0.90"):
        table = f"prune.py experiment=paper_table{number} {start}"
        yield Step(f"table{number}", f"{table} {NYU}", sweep=True)
        # Of rendered scenes: NYU's photos may not be handed on.
        yield Step(f"figure{number + 1}", f"{table} sparsity={figure_sparsities}", sweep=True)


def record_room(path: Path = RECORDING) -> None:
    """Rendered scenes, played through the emulated L515."""
    if not path.exists():
        whole = path.with_name(f"part_of_{path.name}")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "mde.sensors.emulator", str(whole), "--frames", "100"], check=True)
        whole.rename(path)
