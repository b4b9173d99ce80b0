"""What INT8 costs in accuracy, and what training for it brings back, on the same frames of a folder's test part.

    python -m benchmarks.quantization outputs/train/qat --data $MDE_SHARED/data/nyu --frames 218

The argument is the run directory of `train.py quantize=qat`. Post-training quantization is that of deploy.py for
TensorRT (`target=tensorrt quantize=int8`, before its gate), its ONNX file computed in ONNX Runtime; "at the same
places" rounds where quantize=qat does, without training. Beside accuracy: the mean distance of each from the network
trained for INT8 as PyTorch computes it, as a share of the output's range.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from mde.data.folder import folder_splits
from mde.data.sample import Sample
from mde.data.transforms import resize_image
from mde.engines import Run, open_engine
from mde.engines.onnxruntime import open_in_floats
from mde.engines.pytorch import graph_engine
from mde.evaluation.quality import spread
from mde.export import ImageGraph, deployable, export_onnx
from mde.metrics import DepthMetrics, resize_prediction
from mde.models import load_model, read_metadata
from mde.models.network import DepthNetwork
from mde.quantization.fake import activation_scales, fake_quantize, load_fake_quantized, read_scales
from mde.quantization.onnx_file import fake_quantized_onnx, quantize_onnx
from mde.training.quantization_aware import FLOAT

METRICS = ("delta1", "rmse", "mae", "abs_rel")
TRAINED = "trained for INT8, PyTorch"


def as_graph(model: DepthNetwork) -> ImageGraph:
    return ImageGraph(deployable(model, same_kernels=True), model.mean, model.std).eval()


def as_image(sample: Sample, size: tuple[int, int]) -> np.ndarray:
    """uint8 (1, H, W, 3)."""
    return (resize_image(sample.image, size) * 255).round().to(torch.uint8).permute(1, 2, 0)[None].numpy()


def contestants(run_dir: Path, size: tuple[int, int], calibration: list[np.ndarray], folder: Path) -> dict[str, Run]:
    before, after = run_dir / FLOAT, run_dir / "model.safetensors"
    export_onnx(as_graph(load_model(before)), folder / "before.onnx", size)
    quantize_onnx(folder / "before.onnx", folder / "post.onnx", calibration, symmetric=True)
    export_onnx(as_graph(load_model(after)), folder / "after.onnx", size)
    fake_quantized_onnx(folder / "after.onnx", folder / "trained.onnx", read_scales(after))
    same = as_graph(load_model(before))
    images = [(torch.from_numpy(image).permute(0, 3, 1, 2) - same.mean) / same.std for image in calibration]
    fake_quantize(same.network, activation_scales(same.network, images))
    return {
        "float": graph_engine(as_graph(load_model(before)), 1),
        "post-training, ONNX Runtime": open_in_floats(folder / "post.onnx", 1),
        "post-training, at the same places": graph_engine(same, 1),
        TRAINED: graph_engine(as_graph(load_fake_quantized(after)), 1),
        "its file in ONNX Runtime": open_engine("onnxruntime", folder / "trained.onnx", 1),
        "its file in OpenVINO": open_engine("openvino", folder / "trained.onnx", 1),
        "its weights in float": graph_engine(as_graph(load_model(after)), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--frames", type=int, help="of the test part, spread evenly; default: all")
    options = parser.parse_args()
    height, width = read_metadata(options.run_dir / "model.safetensors")["input"]
    size, splits = (height, width), folder_splits(options.data)
    frames = splits.test if splits.test is not None else splits.validation
    calibration = [as_image(splits.train[index], size) for index in spread(len(splits.train), 64)]
    with tempfile.TemporaryDirectory() as folder:
        runs = contestants(options.run_dir, size, calibration, Path(folder))
    metrics = {name: DepthMetrics(cap=frames.cap, sync_on_compute=False) for name in runs}
    distances: dict[str, list[float]] = {name: [] for name in runs}
    for index in spread(len(frames), options.frames):
        sample = frames[index]
        outputs = {name: run(as_image(sample, size)) for name, run in runs.items()}
        for name, output in outputs.items():
            prediction = resize_prediction(torch.from_numpy(output), sample.depth.shape[-2:])
            metrics[name].update(prediction, sample.depth[None], sample.mask[None], sample.depth_unit)
            distances[name].append(float(np.abs(output - outputs[TRAINED]).mean() / np.ptp(outputs[TRAINED])))
    print(f"| {frames.name} | frames | " + " | ".join(METRICS) + " | distance |")
    print("| --- |" + " ---: |" * (len(METRICS) + 2))
    for name, metric in metrics.items():
        quality = metric.compute()
        figures = " | ".join(f"{quality[key]:.4f}" for key in METRICS)
        print(f"| {name} | {quality['frames']} | {figures} | {np.mean(distances[name]):.4f} |")


if __name__ == "__main__":
    main()
