"""`deploy.py data=l515`: networks against a depth sensor, live or recorded; recording; calibration in metres."""

import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from torch import Tensor

from mde.data.sample import Sample
from mde.deploy.camera.calibrate import calibrate, first_frames
from mde.deploy.camera.observed import FrameTable, Observed, spread_of
from mde.deploy.camera.view import new_view
from mde.deploy.compare import Candidate, left, out_on_error, short_names
from mde.deploy.job import build, check_job, prepare, recorded
from mde.deploy.options import given, only
from mde.deploy.predict.run import DEPLOYED, CheckedRuntime
from mde.engines.runtime import Runtime
from mde.errors import MdeError
from mde.progress import track
from mde.records import new_record
from mde.report.camera_page import show_sensor, write_sensor_page
from mde.report.dispensable import dispensable
from mde.report.pictures import comparison_sheet, picture_sheet, save_picture
from mde.report.terminal import say
from mde.runs import save_options
from mde.sensors.ahead import Ahead
from mde.sensors.frame import SensorFrame, SensorStream
from mde.sensors.realsense import LIVE, RECORDINGS, Settings
from mde.sensors.recorder import BundleRecorder, FolderRecorder, Recorder
from mde.sensors.source import open_sensor

SHOWN = 6  # frames in the picture sheet, at most
WATCHING = {"record", "view", "data", "checkpoint"}
OBSERVING = WATCHING | {"compare", "calibrate", "threads", "seed"}
EXPORTING = OBSERVING | {"model", "target", "quantize", "size", "parity_frames"}


def observe(config: DictConfig) -> Path:
    """Evaluates networks on what `data.source` shows, records it, or both; returns the run directory.

    MdeError for what cannot be opened, and, when everything is written, for a camera that went away in between or a
    network that failed.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if config.compare or (config.record is not None and not any(map(given, ("checkpoint", "calibrate", "view")))):
        config.checkpoint = None  # the shipped network has no part in it
    check_options(config)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)  # of pre- and post-processing, whatever the engines
    record = new_record("running", candidates=entries_of(config), parent=config.checkpoint or "")
    page = partial(write_sensor_page, record=record)
    with recorded(run_dir, record, page), tempfile.TemporaryDirectory() as folder:
        candidates = opened(config, run_dir, Path(folder), record["candidates"])
        save_options(run_dir, config)
        settings = read_settings(config)
        if config.calibrate is not None:
            settings = calibrated(config, settings, [each for each, _ in candidates], run_dir)
        follow(config, settings, run_dir, candidates, record)
        show_sensor(record)
        complain(record)
    return run_dir


def calibrated(config: DictConfig, settings: Settings, candidates: Sequence[Candidate], run_dir: Path) -> Settings:
    """Calibrates the candidates; returns the settings for the frames that are left to evaluate."""
    count = first_frames(config.calibrate)
    if count is None:
        if Path(config.calibrate).resolve() == Path(config.data.source).resolve():
            raise MdeError(f"calibrate={config.calibrate}: is what is evaluated; give another recording, or a number")
        other = replace(settings, preset=None, confidence=0, warmup=None)
        calibrate(candidates, config.calibrate, None, other, run_dir, config.threads)
        return settings
    calibrate(candidates, config.data.source, count, settings, run_dir, config.threads)
    if config.data.source == LIVE:
        return settings
    return replace(settings, warmup=(settings.warmup or 0) + count)


def check_options(config: DictConfig) -> None:
    """MdeError for options that mean nothing together."""
    if config.source is not None:
        raise MdeError("source=: only predicts; data.source= evaluates")
    if config.compare or (config.checkpoint and Path(config.checkpoint).suffix in DEPLOYED):
        only(OBSERVING, "data=l515 with deployed files")
    elif config.checkpoint is not None:
        check_job(config)
        only(EXPORTING, "data=l515")
    elif config.record is not None or config.view is not None:
        only(WATCHING, "data=l515 without a network")
    else:
        raise MdeError(
            "data=l515 checkpoint=null: give compare=[FILE,...] to evaluate, record=PATH to record, view= to watch"
        )
    if config.record is not None and Path(config.record).suffix in RECORDINGS and config.data.source != LIVE:
        raise MdeError(f"record={config.record}: is written of a live camera; of a recording, a folder or a .npz")


def entries_of(config: DictConfig) -> list[dict[str, Any]]:
    """The record's `candidates`, before anything is known of them."""
    files = list(config.compare) or ([config.checkpoint] if config.checkpoint else [])
    names = short_names(files)
    return [{"name": name, "file": file, "status": "incomplete"} for name, file in zip(names, files, strict=True)]


def opened(
    config: DictConfig, run_dir: Path, folder: Path, entries: Sequence[dict[str, Any]]
) -> list[tuple[Candidate, Runtime | None]]:
    """The candidates, each with the network in PyTorch that it is to agree with: none, where a file was given."""
    if config.checkpoint and not config.compare and Path(config.checkpoint).suffix not in DEPLOYED:
        job = prepare(config, run_dir, folder)
        build(job)
        entries[0] |= {"name": job.file.name, "file": str(job.file)}
        return [(Candidate(1, entries[0], config.threads), job.expected)]
    candidates: list[tuple[Candidate, Runtime | None]] = []
    for number, entry in enumerate(entries, start=1):
        with out_on_error(entry):
            candidates.append((Candidate(number, entry, config.threads), None))
    return candidates


def read_settings(config: DictConfig) -> Settings:
    """How the camera is read. MdeError for values out of range."""
    data = config.data
    settings = Settings(**{field.name: data[field.name] for field in fields(Settings)})
    if data.frames is not None and data.frames < 1:
        raise MdeError(f"data.frames={data.frames}: must be at least 1")
    return settings


def follow(
    config: DictConfig,
    settings: Settings,
    run_dir: Path,
    candidates: Sequence[tuple[Candidate, Runtime | None]],
    record: dict[str, Any],
) -> None:
    """Frame after frame, to the end, data.frames of them, or Ctrl-C at a camera. What was seen is kept in any case."""
    library_records = config.record is not None and Path(config.record).suffix in RECORDINGS
    with ExitStack() as stack:
        stream = open_sensor(config.data.source, settings, Path(config.record) if library_records else None)
        stack.enter_context(stream)
        say(f"{stream.account.device or stream.account.source}" + "; Ctrl-C ends it" * stream.account.live)
        recorder: Recorder | None = None
        if config.record is not None and not library_records:
            recorder = stack.enter_context(new_recorder(Path(config.record), stream))
        view = stack.enter_context(new_view(config.view, stream)) if config.view is not None else None
        table = stack.enter_context(FrameTable(run_dir / "frames.csv")) if candidates else None
        seen = Seen(stream, candidates, config.parity_frames)
        frames = stack.enter_context(closing(Ahead(stream).__iter__()))
        try:
            for frame in track(
                islice(frames, config.data.frames), stream.name, stream.count or config.data.frames, transient=True
            ):
                if recorder is not None:
                    recorder.add(frame)
                rows, predicted = seen.add(frame)
                for row in rows:
                    assert table is not None
                    table.add(row)
                if view is not None:
                    view.show(frame, predicted, rows[0] if rows else {})
                if record["candidates"] and recorder is None and not left(seen.candidates):
                    break
        except KeyboardInterrupt:
            if not stream.account.live:
                raise
        finally:
            frames.close()  # the stream's account then says no more than was seen
            seen.fill(record)
            with dispensable("pictures"):
                seen.draw(run_dir / "pictures")
    if config.record is not None:
        say(f"recorded: {config.record}, {record['sensor']['frames']} frames")


class Seen:
    """What was seen so far, and what became of it."""

    def __init__(self, stream: SensorStream, candidates: Sequence[tuple[Candidate, Runtime | None]], parity: int):
        self.stream, self.candidates = stream, [candidate for candidate, _ in candidates]
        self.observed = {
            candidate.number: Observed(
                candidate.name, CheckedRuntime(candidate.runtime, network, parity), stream.name, stream.cap
            )
            for candidate, network in candidates
        }
        self.frames, self.skipped = 0, 0
        self.coverage: list[float] = []
        self.times: dict[str, list[float]] = {"capture": [], "align": []}
        self.shown: list[tuple[Sample, dict[str, Tensor]]] = []
        self._step, self._draw = 1, random.Random(0)

    def add(self, frame: SensorFrame) -> tuple[list[dict[str, Any]], np.ndarray | None]:
        """Rows of frames.csv, one for each network that is still in, and what the first of them sees: metres (h, w),
        aligned to the sensor; None where that shows nothing.
        """
        if not self.frames:
            self.start = time.perf_counter()
        self.times["capture"].append(frame.capture_ms)
        self.times["align"].append(frame.align_ms)
        self.coverage.append(float((frame.depth > 0).mean()))
        self.skipped += not self.coverage[-1]
        rows: dict[int, dict[str, Any]] = {}
        answers, predicted = {}, {}
        candidates = left(self.candidates)
        for candidate in self._draw.sample(candidates, len(candidates)):  # none always follows the same one
            with out_on_error(candidate.record):
                number, observed = candidate.number, self.observed[candidate.number]
                answer = observed.predict(frame)
                rows[number], predicted[number] = observed.compare(frame, answer)
                answers[candidate.name] = torch.from_numpy(answer)[None, None]
        if self.frames % self._step == 0 and self.coverage[-1]:
            self.shown.append((frame.sample(self.stream.name), answers))
            if len(self.shown) > SHOWN:
                self.shown, self._step = self.shown[::2], self._step * 2
        self.frames += 1
        return [rows[number] for number in sorted(rows)], predicted[min(rows)] if rows else None

    def fill(self, record: dict[str, Any]) -> None:
        """The record's `sensor`, and what it says of each network."""
        account = asdict(self.stream.account)
        elapsed = time.perf_counter() - self.start if self.frames else 1.0
        del account["_last"], account["live"]
        record["sensor"] = account | {
            "frames": self.frames,
            "skipped": self.skipped,
            "rate": self.frames / elapsed,
            "coverage": float(np.mean(self.coverage)) if self.frames else None,
            **{stage: spread_of(times) for stage, times in self.times.items()},
        }
        for candidate in left(self.candidates):
            candidate.record.setdefault("calibration", None)
            candidate.record |= self.observed[candidate.number].summary()
            if self.frames > self.skipped:
                candidate.record["status"] = "complete"

    def draw(self, folder: Path) -> None:
        """Image | L515 | prediction | error of a few frames: the paper's figures 4 and 5."""
        names = [candidate.name for candidate in left(self.candidates)]
        if not self.shown or not names:
            return
        samples = [sample for sample, _ in self.shown]
        answers = {id(sample): answer for sample, answer in self.shown}
        predictors = {name: partial(_answer, answers, name) for name in names}
        if len(names) == 1:
            sheet = picture_sheet(samples, predictors[names[0]], self.stream.cap)
        else:
            sheet = comparison_sheet(samples, predictors, self.stream.cap)
        save_picture(sheet, folder / "frames.png")


def _answer(answers: dict[int, dict[str, Tensor]], name: str, sample: Sample) -> Tensor:
    return answers[id(sample)][name]


def new_recorder(path: Path, stream: SensorStream) -> Recorder:
    kind = BundleRecorder if path.suffix == ".npz" else FolderRecorder
    return kind(path, stream.account, path.stem, stream.cap)


def complain(record: dict[str, Any]) -> None:
    """MdeError, in one line, for what went wrong while all that was seen has been kept."""
    sensor = record["sensor"]
    for note in sensor["notes"]:
        say(note)
    failed = [f"{entry['name']}: {entry['error']}" for entry in record["candidates"] if entry["status"] == "failed"]
    if sensor["problem"]:
        raise MdeError(f"data.source={sensor['source']}: {sensor['problem']}; {sensor['frames']} frames are kept")
    if not sensor["frames"]:
        raise MdeError(f"data.source={sensor['source']}: no frame with colour and depth in it")
    if record["candidates"] and sensor["frames"] == sensor["skipped"]:
        raise MdeError(
            f"data.source={sensor['source']}: no frame has a depth from data.min_depth to data.max_depth, "
            f"with counts of {sensor['unit']:g} m; is that the unit?"
        )
    if failed:
        raise MdeError(f"{len(failed)} of {len(record['candidates'])} networks failed: {'; '.join(failed)}")
