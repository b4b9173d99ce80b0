"""One network beside a depth sensor, frame by frame: its times, its errors, how steady it is."""

import csv
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mde.atomic_file import writing
from mde.deploy.predict.run import CheckedRuntime
from mde.evaluation.breakdown import ErrorBreakdown, Stability
from mde.losses import align_scale_shift
from mde.metrics import DepthMetrics, depth_metrics, predict_depth, truth_mask
from mde.sensors.frame import SensorFrame

STAGES = ("preprocess", "infer", "postprocess")
FIGURES = ("rmse", "mae", "abs_rel", "delta1", "delta2", "delta3")
COLUMNS = ["frame", "time", "candidate", "capture_ms", "align_ms", *(f"{stage}_ms" for stage in STAGES)]
COLUMNS += [*FIGURES, "scale", "shift", "coverage"]


class Observed:
    """Adds up what a runtime makes of frames.

    dataset  name of the frames in the quality entries; metric figures stand under `<dataset>_calibrated`
    cap      metres
    """

    def __init__(self, name: str, predictor: CheckedRuntime, dataset: str, cap: float):
        self.name, self.predictor, self.dataset, self.cap = name, predictor, dataset, cap
        self.runtime = predictor.runtime
        self.metrics = DepthMetrics(cap=cap, sync_on_compute=False)
        self.metric = DepthMetrics(cap=cap, align=False, sync_on_compute=False)
        self.breakdown, self.stability = ErrorBreakdown(cap), Stability()
        self.times: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def predict(self, frame: SensorFrame) -> np.ndarray:
        """Inverse depth float32 (h, w) at the size of the frame's depth; its times are kept."""
        runtime = self.runtime
        if not self.times["infer"]:
            runtime.predict(frame.rgb)  # an engine's first call is not like the others
        marks = [time.perf_counter()]
        image = runtime.preprocess(frame.rgb)
        marks.append(time.perf_counter())
        output = runtime.infer(image)
        marks.append(time.perf_counter())
        answer = runtime.postprocess(output, (frame.depth.shape[0], frame.depth.shape[1]))
        marks.append(time.perf_counter())
        for stage, begin, end in zip(STAGES, marks[:-1], marks[1:], strict=True):
            self.times[stage].append(1000 * (end - begin))
        self.predictor.check(frame.rgb, output)
        return answer

    def compare(self, frame: SensorFrame, answer: np.ndarray) -> tuple[dict[str, Any], np.ndarray | None]:
        """The frame's row of frames.csv, and the prediction in metres (h, w), aligned to the sensor.

        Without a valid pixel the row has no figures, and there is nothing to align to: None.
        """
        sample = frame.sample(self.dataset)
        inverse, depth, mask = torch.from_numpy(answer)[None, None], sample.depth[None], sample.mask[None]
        self.metrics.update(inverse, depth, mask, frame.unit)
        calibration = self.runtime.description.calibration
        if calibration is not None:
            self.metric.update(calibration.scale * inverse + calibration.shift, depth, mask, frame.unit)
        valid = truth_mask(depth, mask, self.cap)
        row: dict[str, Any] = {"frame": frame.number, "time": f"{frame.time:.4f}", "candidate": self.name}
        row |= {"capture_ms": frame.capture_ms, "align_ms": frame.align_ms}
        row |= {f"{stage}_ms": self.times[stage][-1] for stage in STAGES}
        row["coverage"] = valid.float().mean().item()
        if not valid.any():
            return row, None
        scale, shift = (value.item() for value in align_scale_shift(inverse, 1 / torch.where(valid, depth, 1), valid))
        aligned = scale * inverse + shift
        predicted, _ = predict_depth(aligned, depth, valid, self.cap, align=False)
        self.breakdown.update(predicted, depth, valid, resized(sample.image, depth))
        self.stability.update(inverse, depth, valid, scale, shift)
        figures = depth_metrics(aligned, depth, mask, self.cap, align=False)
        row |= {name: figures[name].item() for name in FIGURES} | {"scale": scale, "shift": shift}
        return row, predicted[0, 0].numpy()

    def summary(self) -> dict[str, Any]:
        """What the record says of it, of the frames so far."""
        quality = {self.dataset: self.metrics.compute()}
        if self.runtime.description.calibration is not None:
            quality[f"{self.dataset}_calibrated"] = self.metric.compute()
        stages = {stage: spread_of(times) for stage, times in self.times.items()}
        parity = self.predictor.parity()
        return {
            "quality": quality,
            "stages": stages,
            "breakdown": self.breakdown.compute(),
            "stability": self.stability.compute(),
            "parity": asdict(parity) if parity else None,
        }


class FrameTable:
    """frames.csv, a row for each frame and candidate, each on the disk once it is added."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Self:
        with writing(self.path):
            self._file = self.path.open("w", newline="", buffering=1)
            self._writer = csv.DictWriter(self._file, COLUMNS)
            self._writer.writeheader()
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self.path):
            self._file.close()

    def add(self, row: dict[str, Any]) -> None:
        with writing(self.path):
            self._writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def spread_of(times: list[float]) -> dict[str, float | None]:
    """Mean, median and 95th percentile of milliseconds."""
    if not times:
        return {"mean_ms": None, "p50_ms": None, "p95_ms": None}
    return {
        "mean_ms": float(np.mean(times)),
        "p50_ms": float(np.percentile(times, 50)),
        "p95_ms": float(np.percentile(times, 95)),
    }


def resized(image: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
    """The image (3, H, W) on depth's grid."""
    if image.shape[-2:] == depth.shape[-2:]:
        return image
    size = (depth.shape[-2], depth.shape[-1])
    return torch.nn.functional.interpolate(image[None].float(), size, mode="area")[0].round().to(torch.uint8)
