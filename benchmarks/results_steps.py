"""The commands that docs/results.md's tables and figures are made from, each in a run directory of its own."""

import hashlib
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mde.report.merged import read_jobs
from mde.report.record import read_record

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = Path("weights")
SHARED = os.environ.get("MDE_SHARED", "../shared")
NYU = f"data=folder data.root={SHARED}/data/nyu"
ZERO_SHOT = ("redkitchen", "desk_lidar", "office", "kitti", "classroom", "tabletop", "mixed_rgbd", "redwood", "sun3d")
# Zero-shot, indoors, and without a say in any choice (redkitchen had one).
OTHER_INDOOR = tuple(name for name in ZERO_SHOT if name not in ("kitti", "redkitchen"))
EVALUATE = f"evaluate=[{','.join(f'{SHARED}/data/{name}' for name in ZERO_SHOT)}]"
PEER = f"{SHARED}/peers/fast_depth_224.tflite"
FASTDEPTH = "FastDepth INT8 (peer)"
SUFFIX = {"onnxruntime": ".onnx", "openvino": ".xml", "litert": ".tflite"}
ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
# Name in the tables: file in weights/, without its ending.
NETWORKS = {
    "dense": "midas_small",
    "channel 0.5": "midas_small_half",
    "channel 0.75": "midas_small_quarter",
    "channel 0.9": "midas_small_tenth",
}
FREE = {"free": "midas_small_free"}
FREE_LEARNED = ("mixed_rgbd", "redwood", "sun3d")  # the sets that the free network has learned from
# Pruned without training after, for the Pareto figure: zeros, which no engine here is faster for.
ZEROED = {"single weights 0.5": "prune=fine_grained sparsity=0.5", "2:4": "prune=two_four sparsity=0.5"}
# (network, engine, precision) of the Pareto figure.
POINTS = [
    *((network, engine, "int8") for network in NETWORKS for engine in SUFFIX),
    *((network, "litert", "fp32") for network in NETWORKS),
    *(("dense", "onnxruntime", "fp32"), ("dense", "openvino", "fp32"), ("dense", "openvino", "float16")),
    *((network, "onnxruntime", "fp32") for network in (*FREE, *ZEROED)),
]
# Of the table against the sensor.
SENSOR = [("dense", "litert", "fp32"), ("dense", "litert", "int8"), ("channel 0.9", "litert", "int8")]
OUT = Path("outputs/results")
RECORDING = OUT / "room.db3"


@dataclass(frozen=True)
class Step:
    """A command. Its run directory (of a sweep: the folder of its jobs) is named after what goes into it: with other
    weights, or another command, it begins anew.
    """

    name: str
    command: str
    weights: Path | None = None
    sweep: bool = False

    @property
    def path(self) -> Path:
        digest = hashlib.sha256(self.command.encode())
        if self.weights is not None and (ROOT / self.weights).exists():
            digest.update((ROOT / self.weights).read_bytes())
        return OUT / f"{self.name}-{digest.hexdigest()[:8]}"

    @property
    def complete(self) -> bool:
        if self.sweep:
            jobs = read_jobs(self.path) if self.path.is_dir() else []
            return (self.path / "summary.json").exists() and all(job.complete for job in jobs)
        return (self.path / "metrics.json").exists() and read_record(self.path)["status"] == "complete"

    def run(self) -> None:
        folder = f"hydra.{'sweep' if self.sweep else 'run'}.dir={self.path}"
        print(f"$ python {self.command} {folder}", flush=True)
        subprocess.run([sys.executable, *self.command.split(" "), folder], check=True)


def deployed(network: str, engine: str, precision: str) -> Step:
    quantize = "none" if precision == "fp32" else precision
    if network in ZEROED:
        weights, source = None, zeroed(network).path / "model.safetensors"
    else:
        weights = source = WEIGHTS / f"{(NETWORKS | FREE)[network]}.safetensors"
    command = f"deploy.py checkpoint={source} target={engine} quantize={quantize} {NYU}"
    return Step(f"deployed/{slug(network)}-{engine}-{precision}", command, weights)


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def dense() -> Step:
    """In a run directory, whose figures a sweep takes instead of measuring the dense network in each of its jobs."""
    return Step("dense", f"deploy.py target=pytorch {NYU}", WEIGHTS / "midas_small.safetensors")


def zeroed(name: str) -> Step:
    checkpoint = dense().path / "model.safetensors"
    return Step(f"zeroed/{slug(name)}", f"prune.py checkpoint={checkpoint} {ZEROED[name]} recovery=none {NYU}")


def model_file(point: tuple[str, str, str]) -> str:
    return str(deployed(*point).path / f"model{SUFFIX[point[1]]}")


def files() -> dict[str, tuple[str, str, str]]:
    """Path of every deployed file -> what it is."""
    return {model_file(point): point for point in POINTS}


def steps() -> list[Step]:
    compared = ",".join([*files(), PEER])
    sensor = ",".join(model_file(point) for point in SENSOR)
    checkpoint = f"checkpoint={dense().path}/model.safetensors"
    table = "prune.py experiment=paper_table"
    return [
        dense(),
        *(zeroed(name) for name in ZEROED),
        *(deployed(*point) for point in POINTS),
        Step("photos", "deploy.py source=docs/photos", WEIGHTS / "midas_small.safetensors"),
        Step("compare", f"deploy.py compare=[{compared}] {NYU} {EVALUATE}"),
        Step("figure4", f"deploy.py compare=[{sensor}] data=l515 data.source={RECORDING} calibrate=20"),
        Step("table1", f"{table}1 {checkpoint} {NYU}", sweep=True),
        Step("table2", f"{table}2 {checkpoint} {NYU}", sweep=True),
        Step("figure2", f"{table}1 {checkpoint} sparsity=0.02,0.06,0.10,0.20", sweep=True),
        Step("figure3", f"{table}2 {checkpoint} sparsity=0.10,0.50,0.70,0.90", sweep=True),
    ]


def record_room(path: Path = RECORDING) -> None:
    """Rendered scenes, played through the emulated L515."""
    if not path.exists():
        whole = path.with_name(f"part_of_{path.name}")
        whole.parent.mkdir(parents=True, exist_ok=True)
        whole.unlink(missing_ok=True)
        subprocess.run([sys.executable, "-m", "mde.sensors.emulator", str(whole), "--frames", "100"], check=True)
        whole.rename(path)
