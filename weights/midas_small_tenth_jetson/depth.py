"""From an image to depth through the deployed graph, and how good that depth is.

Python 3.6 syntax and NumPy: the Jetson bundle ships this file. A description is a dict of what stands beside the graph:

    input        [height, width]                      layout  "nhwc" or "nchw"      dtype  "uint8" or "float32"
    calibration  None, or {"scale", "shift", "cap"}   precision, network
"""

from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Sequence, Tuple

import numpy as np

if TYPE_CHECKING or __package__:
    from mde.jetson.arithmetic import METRICS, depth_metrics, metric_depth, resize_antialiased, resize_bilinear
else:
    from arithmetic import METRICS, depth_metrics, metric_depth, resize_antialiased, resize_bilinear

PARITY = {"fp32": 1e-3, "fp16": 1e-2}  # largest difference from the reference, as a share of its range
MAX_DROP = 0.01  # of delta1, what int8 may lose against the reference on the same frames

Json = Dict[str, Any]
Network = Callable[[Any], Any]  # the graph: an image as `prepare` gives it -> inverse depth (1, 1, height, width)


class RunnerError(Exception):
    """What the user can mend, in one line."""


def prepare(rgb: Any, description: Json) -> Any:
    """Image uint8 (H, W, 3) of any size -> the graph's input: resized, rounded to bytes, in its layout and dtype."""
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise RunnerError(f"image {rgb.dtype} {rgb.shape}: must be uint8 RGB (height, width, 3); convert it")
    image = np.rint(resize_antialiased(rgb, description["input"])).clip(0, 255)[None]
    if description["layout"] == "nchw":
        image = image.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(image, description["dtype"])


def predict(network: Network, description: Json, rgb: Any) -> Any:
    """Inverse depth float32 (H, W) of an image uint8 (H, W, 3), up to scale and shift."""
    return resize_bilinear(network(prepare(rgb, description))[0, 0], rgb.shape[:2])


def depth(network: Network, description: Json, rgb: Any) -> Any:
    """Depth float32 (H, W) in metres of an image uint8 (H, W, 3). RunnerError when the network is not calibrated."""
    return calibrated(predict(network, description, rgb), description)


def calibrated(inverse_depth: Any, description: Json) -> Any:
    """Depth in metres of inverse depth as the network gives it, any shape."""
    calibration = description["calibration"]
    if calibration is None:
        raise RunnerError("no calibration: this network's depth is relative, model.onnx.json holds no scale and shift")
    return metric_depth(inverse_depth, calibration["scale"], calibration["shift"], calibration["cap"])


def evaluate(frames: Json, outputs: Iterable[Any], description: Json) -> Dict[str, Json]:
    """The `quality` entries of metrics.json: the frames' own, aligned per frame, and `<dataset>_calibrated`, as the
    calibration has it, where there is one.

    outputs: inverse depth (height, width) at the network's size, a frame each
    """
    rows: Dict[str, List[Json]] = {frames["dataset"]: []}
    for number, output in enumerate(outputs):
        truth, mask, cap = frames["depth"][number], frames["mask"][number], frames["cap"]
        answer = resize_bilinear(output, truth.shape)
        rows[frames["dataset"]].append(depth_metrics(answer, truth, mask, cap))
        if description["calibration"] is not None:
            metric = 1 / calibrated(answer, description)
            name = frames["dataset"] + "_calibrated"
            rows.setdefault(name, []).append(depth_metrics(metric, truth, mask, cap, align=False))
    pixels = frames["mask"].size
    return {
        name: summarise(found, pixels, "frozen" if name != frames["dataset"] else "per_frame")
        for name, found in rows.items()
    }


def summarise(rows: List[Json], pixels: int, alignment: str) -> Json:
    """One quality entry from `depth_metrics` of each frame; frames without a valid pixel are counted and skipped."""
    used = [row for row in rows if row["pixels"]]
    valid = sum(row["pixels"] for row in used)
    entry: Json = {"protocol": "inverse_depth", "alignment": alignment, "frames": len(used)}
    entry.update((name, float(np.mean([row[name] for row in used])) if used else None) for name in METRICS)
    squares = sum(row["rmse"] ** 2 * row["pixels"] for row in used)
    entry["pooled_rmse"] = (squares / valid) ** 0.5 if valid else None
    entry["coverage"] = valid / pixels
    entry["negative_scale_frames"] = sum(row["scale"] < 0 for row in used)
    entry["skipped_frames"] = len(rows) - len(used)
    return entry


def parity(outputs: Sequence[Any], references: Sequence[Any]) -> Json:
    """{"largest", "frame"}: the largest difference from the reference, as a share of its frame's range, and where."""
    shares = [differences(output, reference)[0] for output, reference in zip(outputs, references)]
    worst = int(np.argmax(shares))
    return {"largest": shares[worst], "frame": worst}


def differences(output: Any, expected: Any) -> Tuple[float, float]:
    """The largest and the mean difference, as shares of the range of `expected`; infinite where something is NaN.

    A hundredth of the largest value stands for a smaller range: float32's own rounding must not fail a network that
    answers nearly the same everywhere, having hardly trained or lost most of its weights.
    """
    reach = max(float(np.ptp(expected)), 1e-2 * float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    difference = np.abs(output - expected)
    if not np.isfinite(difference).all():
        return float("inf"), float("inf")
    return float(difference.max()) / reach, float(difference.mean()) / reach


def check_parity(frames: Json, outputs: Sequence[Any], description: Json) -> Json:
    """`parity` with the reference; RunnerError when it is too far off. int8 is held to delta1 instead: kernels round
    differently, and what counts is that no accuracy is lost.
    """
    if frames["reference"] is None:
        raise RunnerError("these frames have no reference outputs, a recording has none; check with the bundle's own")
    found, precision = parity(outputs, frames["reference"]), description["precision"]
    if precision in PARITY:
        if found["largest"] > PARITY[precision]:
            raise RunnerError(
                f"the engine differs from the host's {precision} network by {found['largest']:.2g} of the range in "
                f"frame {found['frame']}, {PARITY[precision]:g} is allowed; build it again, or with --precision fp32"
            )
        return found
    before, after = (
        evaluate(frames, answers, description)[frames["dataset"]]["delta1"]
        for answers in (frames["reference"], outputs)
    )
    if before is not None and not before - after <= MAX_DROP:
        raise RunnerError(f"delta1 falls from {before:.3f} on the host to {after:.3f} here; use --precision fp16")
    return found
