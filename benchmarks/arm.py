"""How far the answers of networks' files on the boards' own processors, Arm, are from those on this one: emulated.

    apt-get install debootstrap qemu-user-static binfmt-support
    update-binfmts --enable qemu-aarch64                     # where the package's own service does not run
    python -m benchmarks.arm /var/tmp/arm                    # as root, on Debian; minutes

The folder gets Debian for aarch64, unless it is there, with the engines in the versions installed here. The files that
ship for ONNX Runtime and LiteRT, the Jetson folder's graph and a network's exports in float then answer docs/photos
there as here, and the Jetson folder evaluates its stored outputs. QEMU does what each instruction of the processor
does, so the answers are a board's; times would say nothing.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.answers import answers
from mde.engines import ENGINES, write_target
from mde.engines.request import Request
from mde.export import ImageGraph, deployable
from mde.jetson import depth
from mde.jetson.runner import load_description
from mde.models import load_model, read_metadata
from mde.models.shipped import FOLDER
from mde.records import environment

ROOT = Path(__file__).resolve().parents[1]
SUITE, PYTHON = "bookworm", "3.11"
KINDS = {".onnx": "onnxruntime", ".tflite": "litert"}
WHEELS = {"ai_edge_litert": "LiteRT", "onnxruntime": "ONNX Runtime", "numpy": "numpy"}
PLATFORMS = [f"--platform=manylinux{libc}_aarch64" for libc in ("2014", "_2_27", "_2_28", "_2_34")]
BUNDLE = "midas_small_tenth_jetson"
EXPORTS = (("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("litert", "fp32"))

# QEMU's name -> the board, Arm's part number, and the features as Linux calls them, by which engines choose kernels.
V8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32"
PROCESSORS = {
    "cortex-a57": ("Jetson Nano", "0xd07", V8),
    "cortex-a76": ("as Orin's A78AE", "0xd0b", f"{V8} atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"),
}
CPUINFO = """processor\t: 0
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x1
CPU part\t: {part}
CPU revision\t: 1
"""

Answers = Mapping[str, np.ndarray]


def build(root: Path) -> None:
    """Debian for aarch64 with Python and the engines, as far as they are not there. Nothing is mounted in it."""
    if not (root / "usr/bin/python3").exists() or (root / "debootstrap").exists():  # the latter while it is unfinished
        options = ["--arch=arm64", "--variant=minbase", "--include=python3"]
        subprocess.run(["debootstrap", *options, SUITE, root], check=True)
    wanted = {name: version(name.replace("_", "-")) for name in WHEELS}
    if not all((root / f"site/{name}-{number}.dist-info").exists() for name, number in wanted.items()):
        shutil.rmtree(root / "site", ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--only-binary=:all:", "--target", root / "site"]
        pip += ["--implementation=cp", f"--python-version={PYTHON}", *PLATFORMS]
        subprocess.run([*pip, *(f"{name}=={number}" for name, number in wanted.items())], check=True)


def stage(work: Path, checkpoint: Path) -> list[Path]:
    """Puts what is to be run into the folder, which is emptied; returns the networks' files in it."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(ROOT / "mde", work / "mde", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "benchmarks/answers.py", work)
    photos = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in (ROOT / "docs/photos").glob("*.jpg")}
    np.savez(work / "images.npz", **photos)
    for path in (path for suffix in KINDS for path in FOLDER.glob(f"*{suffix}*")):  # and their descriptions
        shutil.copy(path, work)
    shutil.copytree(FOLDER / BUNDLE, work / BUNDLE)
    for path in (work / BUNDLE).glob("model.onnx*"):
        shutil.copy(path, work / path.name.replace("model", BUNDLE, 1))
    export(checkpoint, work)
    return sorted(path for suffix in KINDS for path in work.glob(f"*{suffix}"))


def export(checkpoint: Path, folder: Path) -> None:
    """Writes the network's files in float, as deploy.py does."""
    model, (height, width) = load_model(checkpoint), read_metadata(checkpoint)["input"]
    graph = ImageGraph(deployable(model), model.mean, model.std)
    for target, precision in EXPORTS:
        with tempfile.TemporaryDirectory() as scratch:
            request = Request(model.name, graph, (height, width), precision, Path(scratch))
            write_target(target, request, folder / f"{checkpoint.stem}_{precision}{ENGINES[target].suffix}")


def emulate(root: Path, processor: str, *command: str) -> None:
    """Runs Python in the root's /work on that processor. Engines read the files written here, which are no mounts: the
    real ones tell of this machine's processor, and without any they use other kernels than on a board.
    """
    _, part, features = PROCESSORS[processor]
    told = {"proc/cpuinfo": CPUINFO.format(part=part, features=features)}
    told |= {f"sys/devices/system/cpu/{name}": "0\n" for name in ("possible", "present")}
    for name, content in told.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    variables = {"PATH": "/usr/sbin:/usr/bin", "PYTHONPATH": "/site", "QEMU_CPU": processor}
    subprocess.run(["chroot", root, "/usr/bin/env", "--chdir=/work", "python3", *command], check=True, env=variables)


def evaluated(bundle: Path) -> dict[str, float]:
    """Every figure that `runner.py evaluate` left of its one set."""
    (quality,) = json.loads((bundle / "metrics.json").read_text())["quality"].values()
    return {name: value for name, value in quality.items() if isinstance(value, float)}


def differences(file: str, here: Answers, there: Answers) -> tuple[float, float]:
    """Of all images: the largest and the mean, as shares of the range of what the file answers here."""
    names = [name for name in here if name.startswith(f"{file}:") and not name.endswith(":taken")]
    found = [depth.differences(there[name], here[name]) for name in names]
    return max(largest for largest, _ in found), float(np.mean([mean for _, mean in found]))


def table(paths: Sequence[Path], here: Answers, there: Mapping[str, Answers]) -> str:
    heads = [f"{processor} ({PROCESSORS[processor][0]}), largest | mean" for processor in there]
    lines = [
        f"| file | engine | precision | {' | '.join(heads)} |",
        "| --- | --- | --- |" + " ---: | ---: |" * len(heads),
    ]
    for path in paths:
        cells: list[Any] = [f"`{path.name}`", KINDS[path.suffix], load_description(str(path))["precision"]]
        cells += [f"{share:.2g}" for found in there.values() for share in differences(path.name, here, found)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(here: Answers, there: Mapping[str, Answers], figures: Mapping[str, Mapping[str, float]]) -> str:
    """In words: how far images and evaluation are from those here; when it was, and of what versions."""
    taken = [name for name in here if name.endswith(":taken")]
    pixels = max(int((found[name] != here[name]).sum()) for found in there.values() for name in taken)
    first, *others = figures.values()
    apart = max(abs(other[name] / value - 1) for other in others for name, value in first.items() if value)
    qemu = subprocess.run(["qemu-aarch64-static", "--version"], check=True, capture_output=True, text=True).stdout
    versions = ", ".join(f"{called} {version(name.replace('_', '-'))}" for name, called in WHEELS.items())
    machine = environment()
    return (
        f"Images as the files take them: {pixels} bytes differ at most. `runner.py evaluate --outputs stored`: its "
        f"figures differ by {apart:.2g} of themselves at most. {date.today():%d %B %Y}, {versions}, "
        f"QEMU {qemu.split()[2]}, against {machine['cpu']} ({', '.join(machine['instructions'])})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder that holds, or gets, Debian for aarch64")
    parser.add_argument("--checkpoint", type=Path, default=FOLDER / "midas_small_tenth.safetensors", help="to export")
    options = parser.parse_args()
    root: Path = options.root
    if os.geteuid() or not all(map(shutil.which, ("debootstrap", "qemu-aarch64-static"))):
        parser.error("needs root, and Debian's packages debootstrap, qemu-user-static and binfmt-support")
    build(root)
    work = root / "work"
    paths = stage(work, options.checkpoint)
    evaluate, figures = [f"{BUNDLE}/runner.py", "evaluate", "--outputs", "stored", "--folder", BUNDLE], {}
    here, there = answers(np.load(work / "images.npz"), paths), {}
    subprocess.run([sys.executable, *evaluate], check=True, cwd=work)
    figures["here"] = evaluated(work / BUNDLE)
    for processor in PROCESSORS:
        emulate(root, processor, "answers.py", "images.npz", "answers.npz", *(path.name for path in paths))
        there[processor] = dict(np.load(work / "answers.npz"))
        emulate(root, processor, *evaluate)
        figures[processor] = evaluated(work / BUNDLE)
    print(f"\n{table(paths, here, there)}\n\n{summary(here, there, figures)}")


if __name__ == "__main__":
    main()
