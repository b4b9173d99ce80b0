"""`deploy.py source=`: depth of a picture, a folder, a video or a camera. Nothing is evaluated, no latency measured."""

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mde.deploy.job import build, check_job, described, prepare, recorded
from mde.deploy.options import only
from mde.deploy.parity import Parity
from mde.deploy.predict.rerun_file import Recording, viewer_installed
from mde.deploy.predict.results import ColourRange, Pictures, Prediction, Result, Sheet, Video
from mde.deploy.predict.source import Source, open_source
from mde.engines import ENGINES, targets
from mde.engines.description import files_of
from mde.engines.runtime import Runtime, load_runtime
from mde.errors import MdeError
from mde.jetson.depth import PARITY, differences
from mde.progress import track
from mde.records import new_record
from mde.report.terminal import say
from mde.runs import save_options

DEPLOYED = {ENGINES[target].suffix for target in targets()} - {".safetensors"}
# The options that mean something here.
OPENING = {"source", "checkpoint", "threads"}
EXPORTING = OPENING | {"model", "data", "target", "quantize", "size", "parity_frames", "seed"}


def predict(config: DictConfig) -> Path:
    """Writes the network's file for the target, unless `checkpoint` is one, and what it predicts of `source`.

    Returns the run directory. MdeError when source or checkpoint cannot be opened, when the file computes something
    else than PyTorch does on the first frames, and, after all others are written, when frames could not be read.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    torch.manual_seed(config.seed)
    check_options(config)
    source = open_source(config.source)
    record = new_record("running", parent=config.checkpoint)
    with recorded(run_dir, record), tempfile.TemporaryDirectory() as temporary:
        record["prediction"] = {"source": config.source}
        if Path(config.checkpoint).suffix in DEPLOYED:
            predictor = open_deployed(config, record)
        else:
            predictor = export(config, run_dir, Path(temporary), record)
        save_options(run_dir, config)
        record["prediction"]["network"] = predictor.runtime.name
        follow(source, predictor, run_dir, record["prediction"])
    return run_dir


def check_options(config: DictConfig) -> None:
    """MdeError for an option that means nothing beside `source`."""
    check_job(config)
    if Path(config.checkpoint).suffix in DEPLOYED:
        only(OPENING, "source= with a deployed file")
    else:
        only(EXPORTING, "source=")


class CheckedRuntime:
    """A runtime that is compared with a network in PyTorch, where there is one, on its first `count` frames."""

    def __init__(self, runtime: Runtime, network: Runtime | None = None, count: int = 0):
        self.runtime, self.network, self.count = runtime, network, count
        self._differences: list[tuple[float, float]] = []

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> inverse depth, float32 (H, W). MdeError where it is not finite, or not PyTorch's."""
        output = self.runtime.infer(self.runtime.preprocess(rgb))
        self.check(rgb, output)
        return self.runtime.postprocess(output, (rgb.shape[0], rgb.shape[1]))

    def check(self, rgb: np.ndarray, output: np.ndarray) -> None:
        """MdeError where `output`, what the engine makes of the image, is not finite, or not PyTorch's."""
        if not np.isfinite(output).all():
            raise MdeError(f"{self.runtime.name}: answers NaN or infinity; deploy it again, in another precision")
        if self.network is not None and len(self._differences) < self.count:
            self._compare(output, self.network.infer(self.network.preprocess(rgb)))

    def parity(self) -> Parity | None:
        """On the frames so far; None where nothing was compared."""
        if not self._differences:
            return None
        largest, means = np.array(self._differences).T
        engine = self.runtime.description.engine
        return Parity(float(largest.max()), float(means.mean()), len(means), int(largest.argmax()), engine)

    def _compare(self, output: np.ndarray, expected: np.ndarray) -> None:
        self._differences.append(differences(output, expected))
        largest, limit = self._differences[-1][0], PARITY.get(self.runtime.description.precision)
        if limit is not None and largest > limit:
            raise MdeError(
                f"{self.runtime.name}: differs from PyTorch by {largest:.2g} of the output's range on frame "
                f"{len(self._differences) - 1}, {limit:g} is allowed; choose another target or precision"
            )


def open_deployed(config: DictConfig, record: dict[str, Any]) -> CheckedRuntime:
    """A file that was deployed earlier: there is nothing to compare it with."""
    record["prediction"]["compared_with"] = None
    path = Path(config.checkpoint)
    runtime = load_runtime(path, threads=config.threads)
    record["model"] = {
        "name": runtime.description.network,
        "input": list(runtime.description.input),
        "file_bytes": sum(file.stat().st_size for file in files_of(path)),
    }
    return CheckedRuntime(runtime)


def export(config: DictConfig, run_dir: Path, folder: Path, record: dict[str, Any]) -> CheckedRuntime:
    """The target's file of a checkpoint, written to the run directory and opened."""
    job = prepare(config, run_dir, folder)
    record["model"] = described(job)
    say(f"{job.target}, {job.request.precision}, {job.request.size[0]} x {job.request.size[1]}")
    runtime, gated = build(job)
    record["model"]["file_bytes"] = sum(path.stat().st_size for path in files_of(job.file))
    if gated is not None:
        record["prediction"]["float_layers"] = list(gated.excluded)
    if not job.runs_here:
        say(f"{job.file.name} is built and does not run here: {runtime.name} predicts, from the same graph")
    record["prediction"]["compared_with"] = "PyTorch" + ", where it is fake-quantized" * bool(job.request.scales)
    return CheckedRuntime(runtime, job.expected, config.parity_frames)


def follow(source: Source, predictor: CheckedRuntime, run_dir: Path, entry: dict[str, Any]) -> None:
    """Predicts and writes frame after frame, to the end or until Ctrl-C, and notes in `entry` what it did.

    Ctrl-C is how a camera ends; elsewhere it is raised again, when everything is closed. MdeError, at the end, where
    frames could not be read.
    """
    results = results_of(source, predictor.runtime, run_dir)
    entry |= {"frames": 0, "seconds": 0.0, "failed": source.failed, "parity": None}
    colours = ColourRange(source.rate)
    frames = track(source.frames, source.name, source.count, transient=True)
    with ExitStack() as stack:
        for result in results:
            stack.enter_context(result)
        start = time.perf_counter()
        try:
            for frame in frames:
                inverse_depth = predictor(frame.rgb)
                prediction = Prediction(frame, inverse_depth, *colours(inverse_depth))
                for result in results:
                    result.add(prediction)
                entry["frames"] += 1
        except KeyboardInterrupt:
            if source.kind != "camera":
                raise
        finally:
            entry["seconds"] = time.perf_counter() - start
            entry["parity"] = asdict(parity) if (parity := predictor.parity()) else None
    check_read(source, entry)


def check_read(source: Source, entry: dict[str, Any]) -> None:
    """Says how many frames there were, and MdeError names what could not be read."""
    frames, seconds = entry["frames"], entry["seconds"]
    say(f"{source.name}: {frames} frames, {frames / seconds:.1f} a second with reading and writing")
    for reason in source.failed.values():
        say(f"left out: {reason}")
    if source.failed:
        raise MdeError(f"source={entry['source']}: could not be read: {', '.join(source.failed)}")
    if not frames:
        raise MdeError(f"source={entry['source']}: no frame in it; is it whole?")


def results_of(source: Source, runtime: Runtime, run_dir: Path) -> list[Result]:
    """What is written of a source of this kind, and where."""
    results: list[Result] = [Sheet(run_dir / "pictures" / "depth.png")]
    if source.rate is None:
        results.append(Pictures(run_dir))
        say(f"pictures: {run_dir / 'depth'}")
    else:
        results.append(Video(run_dir / "depth.mp4", source.rate))
        say(f"video: {run_dir / 'depth.mp4'}" + "; Ctrl-C ends it" * (source.kind == "camera"))
    if viewer_installed():
        results.append(Recording(run_dir / "depth.rrd", runtime.description.calibration))
        say(f"3-D points: rerun {run_dir / 'depth.rrd'}")
    else:
        say("no recording with 3-D points: pip install -e '.[viewer]'")
    return results
