"""How far INT8 files are from float on a processor without VNNI, with weights of 7 bits and of 8: partly emulated.

    apt-get install qemu-user
    python -m benchmarks.without_vnni weights/midas_small_tenth.safetensors --data $MDE_SHARED/data/nyu

ONNX Runtime answers on an emulated Haswell, OpenVINO here with its kernels held to AVX2; both also as this processor
can. The images are those of docs/photos; calibration is of the data's training part. Figures: the mean difference from
the same engine's float file here, as a share of its range, the mean over the images.
"""

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.quantization import as_image
from benchmarks.seven_bits import FLOAT, SUFFIXES, VARIANTS, quantize
from mde.data.folder import folder_splits
from mde.engines import export_openvino
from mde.engines.description import Description, write_description
from mde.evaluation.quality import spread
from mde.export import ImageGraph, deployable, export_onnx
from mde.jetson.depth import differences
from mde.models import load_model, read_metadata
from mde.records import environment

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = {
    "onnxruntime": (["qemu-x86_64", "-cpu", "Haswell-noTSX"], {}),
    "openvino": ([], {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
}


def stage(network: Path, data: Path, folder: Path) -> None:
    """Writes images.npz and, for each engine, the files in float and in every kind of INT8."""
    photos = {path.stem: np.asarray(Image.open(path).convert("RGB")) for path in (ROOT / "docs/photos").glob("*.jpg")}
    np.savez(folder / "images.npz", **photos)
    model, (height, width) = load_model(network), read_metadata(network)["input"]
    training = folder_splits(data).train
    calibration = [as_image(training[index], (height, width)) for index in spread(len(training), 64)]
    export_onnx(ImageGraph(deployable(model), model.mean, model.std).eval(), folder / f"{FLOAT}.onnx", (height, width))
    for bits, output in VARIANTS:
        quantize(folder / f"{FLOAT}.onnx", folder / f"{bits} bits and {output}.onnx", calibration, bits, output)
    for file in folder.glob("*.onnx"):
        export_openvino(file, file.with_suffix(".xml"))
    for engine, suffix in SUFFIXES.items():
        for file in folder.glob(f"*{suffix}"):
            precision = "fp32" if file.stem == FLOAT else "int8"
            write_description(file, Description(model.name, engine, precision, (height, width)))


def answer(folder: Path, suffix: str, command: list[str], variables: dict[str, str]) -> dict[str, np.ndarray]:
    """What benchmarks/answers.py answers with the files of one engine, run by `command` with further `variables`."""
    python = [os.path.realpath(sys.executable), str(ROOT / "benchmarks/answers.py")]  # QEMU knows no environments
    paths = {"PYTHONPATH": os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))}
    found = folder / "answers.npz"
    files = [folder / "images.npz", found, *folder.glob(f"*{suffix}")]
    subprocess.run([*command, *python, *map(str, files)], check=True, env=os.environ | paths | variables)
    return dict(np.load(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="a .safetensors file")
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        stage(options.network, options.data, folder)
        print(f"| INT8 | here ({', '.join(environment()['instructions'])}) | without VNNI |\n| --- | ---: | ---: |")
        for engine, (command, variables) in WITHOUT.items():
            suffix = SUFFIXES[engine]
            found = [answer(folder, suffix, [], {}), answer(folder, suffix, command, variables)]
            images = [name.partition(":")[2] for name in found[0] if name.startswith(f"{FLOAT}{suffix}:")]
            images = [name for name in images if not name.endswith(":taken")]
            for bits, output in VARIANTS:
                name = f"{bits} bits and {output}"
                shares = [
                    np.mean(
                        [
                            differences(answers[f"{name}{suffix}:{image}"], found[0][f"{FLOAT}{suffix}:{image}"])[1]
                            for image in images
                        ]
                    )
                    for answers in found
                ]
                print(f"| {engine}, {name} | " + " | ".join(f"{share:.4f}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
