"""What INT8 gives for being right on every x86: weights of 7 bits against 8, a float output against a rounded one.

    python -m benchmarks.seven_bits weights/midas_small_tenth.safetensors --data $MDE_SHARED/data/nyu --frames 218

Accuracy on the same frames of a folder's test part, then times, all files in turn in one process; ONNX Runtime and
OpenVINO. "7 bits and float output" is what deploy.py writes; the others are the same functions with that one changed.
levels: distinct values of the output on the farther half of the pixels, the mean over frames. On a processor without
VNNI 8 bits are wrong, and the table shows by how much.
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.quantization import METRICS, as_image
from mde.data.folder import folder_splits
from mde.engines import Run, export_openvino, open_engine
from mde.evaluation.quality import spread
from mde.export import ImageGraph, deployable, export_onnx
from mde.metrics import DepthMetrics, resize_prediction
from mde.models import load_model, read_metadata
from mde.quantization import onnx_file
from mde.speed.interleaved import interleave, latency_entry

FLOAT, BEFORE = "float", "8 bits and rounded output"
VARIANTS = [(7, "float output"), (8, "float output"), (7, "rounded output"), (8, "rounded output")]
SUFFIXES = {"onnxruntime": ".onnx", "openvino": ".xml"}


def quantize(source: Path, path: Path, calibration: list[np.ndarray], bits: int, output: str) -> None:
    """`source` in INT8 with weights of 7 or 8 bits and a "float output" or a "rounded output"."""
    static, closing = onnx_file.quantize_static, onnx_file._closing
    with (
        patch.object(onnx_file, "quantize_static", lambda *a, **k: static(*a, **k | {"reduce_range": bits == 7})),
        patch.object(onnx_file, "_closing", closing if output == "float output" else lambda graph: []),
    ):
        onnx_file.quantize_onnx(source, path, calibration)


def engines(graph: ImageGraph, calibration: list[np.ndarray], folder: Path, threads: int) -> dict[tuple[str, str], Run]:
    """Engine and variant -> the opened file, which is left in `folder`; calibration: uint8 (1, H, W, 3)."""
    height, width = calibration[0].shape[1:3]
    export_onnx(graph, folder / f"{FLOAT}.onnx", (height, width))
    for bits, output in VARIANTS:
        quantize(folder / f"{FLOAT}.onnx", folder / f"{bits} bits and {output}.onnx", calibration, bits, output)
    files = sorted(folder.glob("*.onnx"))
    for file in files:
        export_openvino(file, file.with_suffix(".xml"))
    return {
        (engine, file.stem): open_engine(engine, file.with_suffix(suffix), threads)
        for engine, suffix in SUFFIXES.items()
        for file in files
    }


def far_levels(output: np.ndarray) -> int:
    """Distinct values among the smaller half."""
    return len(np.unique(output[output <= np.median(output)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="a .safetensors file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=int, help="of the test part, spread evenly; default: all")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    model, (height, width) = load_model(options.network), read_metadata(options.network)["input"]
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    splits = folder_splits(options.data)
    frames = splits.test if splits.test is not None else splits.validation
    calibration = [as_image(splits.train[index], (height, width)) for index in spread(len(splits.train), 64)]
    with tempfile.TemporaryDirectory() as folder:
        runs = engines(graph, calibration, Path(folder), options.threads)
    metrics = {name: DepthMetrics(cap=frames.cap, sync_on_compute=False) for name in runs}
    levels: dict[tuple[str, str], list[int]] = {name: [] for name in runs}
    for index in spread(len(frames), options.frames):
        sample = frames[index]
        image = as_image(sample, (height, width))
        for name, run in runs.items():
            output = run(image)
            prediction = resize_prediction(torch.from_numpy(output), sample.depth.shape[-2:])
            metrics[name].update(prediction, sample.depth[None], sample.mask[None], sample.depth_unit)
            levels[name].append(far_levels(output))
    times = interleave({name: partial(run, calibration[0]) for name, run in runs.items()}, 5, options.rounds)
    print(f"| {frames.name} | frames | " + " | ".join(METRICS) + f" | levels | ms | times as fast as {BEFORE} |")
    print("| --- |" + " ---: |" * (len(METRICS) + 4))
    for (engine, variant), metric in metrics.items():
        quality, speed = metric.compute(), latency_entry(times[engine, variant], times[engine, BEFORE])
        figures = " | ".join(f"{quality[key]:.4f}" for key in METRICS)
        print(
            f"| {engine}, {variant} | {quality['frames']} | {figures} | {np.mean(levels[engine, variant]):.0f} "
            f"| {speed['p50_ms']:.2f} | {speed['speedup_vs_reference']:.2f} |"
        )


if __name__ == "__main__":
    main()
