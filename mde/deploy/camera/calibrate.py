"""`calibrate=`: relative depth becomes metres, by one scale and shift fitted on frames of a depth sensor."""

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import torch

from mde.atomic_file import atomic_file
from mde.deploy.compare import Candidate, out_on_error
from mde.engines.description import Calibration, description_file, files_of, write_description
from mde.engines.runtime import load_runtime
from mde.errors import MdeError
from mde.evaluation.metres import check_calibration, fit_calibration
from mde.metrics import truth_mask
from mde.progress import track
from mde.report.terminal import say
from mde.sensors.ahead import Ahead
from mde.sensors.frame import SensorFrame
from mde.sensors.realsense import Settings
from mde.sensors.source import open_sensor

MOST = 100  # frames of a recording that are looked at


def first_frames(calibrate: str) -> int | None:
    """How many of the evaluated source's own first frames are meant; None where it is a recording."""
    if not calibrate.isdecimal() or Path(calibrate).exists():
        return None
    if not int(calibrate):
        raise MdeError("calibrate=0: give the number of frames, or a recording")
    return int(calibrate)


def calibrate(
    candidates: Sequence[Candidate], source: str, count: int | None, settings: Settings, run_dir: Path, threads: int
) -> None:
    """Fits every candidate to the first frames of `source`, and opens it anew from a copy that knows metres.

    A file in the run directory gets the calibration itself; others are copied to calibrated/<number>/.
    """
    with open_sensor(source, settings) as stream, closing(Ahead(stream).__iter__()) as frames:
        limit = count or MOST
        seen = list(track(islice(frames, limit), f"calibrating on {stream.name}", limit, transient=True))
    if not seen:
        raise MdeError(f"calibrate={source}: no frame in it; {stream.account.problem or 'is it whole?'}")
    for candidate in candidates:
        with out_on_error(candidate.record):
            calibration = fitted(candidate, seen, settings.max_depth)
            freeze(candidate, calibration, run_dir, threads)


def fitted(candidate: Candidate, frames: Sequence[SensorFrame], cap: float) -> Calibration:
    """Scale and shift over all frames, noted in the candidate's record."""
    answers, depths, masks = [], [], []
    for frame in frames:
        runtime, size = candidate.runtime, (frame.depth.shape[0], frame.depth.shape[1])
        answer = runtime.postprocess(runtime.infer(runtime.preprocess(frame.rgb)), size)
        answers.append(torch.from_numpy(answer)[None, None])
        depths.append(torch.from_numpy(frame.depth)[None, None])
        masks.append(truth_mask(depths[-1], depths[-1] > 0, cap))
    scale, shift = fit_calibration(answers, depths, masks, cap)
    check = check_calibration(scale, shift, answers, depths, masks, cap)
    candidate.record["calibration"] = {"scale": scale, "shift": shift, "cap": cap} | asdict(check)
    say(
        f"{candidate.name}: metres = 1 / ({scale:.4g} x prediction {shift:+.4g}), within 10 % on {check.inliers:.0%} "
        f"of the pixels of {len(frames)} frames"
    )
    return Calibration(scale, shift, cap)


def freeze(candidate: Candidate, calibration: Calibration, run_dir: Path, threads: int) -> None:
    """Writes the calibration into the description of the candidate's file, a copy of it if it is not of this run."""
    if candidate.path.suffix == ".safetensors":
        raise MdeError(f"calibrate: {candidate.name} has no description to hold metres; deploy it, target=onnxruntime")
    path = candidate.path
    if path.resolve().parent != run_dir.resolve():
        folder = run_dir / "calibrated" / str(candidate.number)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files_of(path):
            copy = folder / file.relative_to(path.parent)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        path = folder / path.name
    # A TensorRT engine's description is its build record too.
    about = json.loads(description_file(candidate.path).read_text())
    write_description(path, replace(candidate.runtime.description, calibration=calibration))
    about |= json.loads(description_file(path).read_text())
    with atomic_file(description_file(path)) as written:
        written.write(json.dumps(about, indent=1).encode())
    candidate.path, candidate.record["file"] = path, str(path)
    candidate.runtime = load_runtime(path, threads=threads)
