"""`deploy.py compare=[...]`: networks' files on the same frames, timed in turn in one process."""

import contextlib
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mde.benchmark import interleave, latency_entry
from mde.data.sample import Frames, Splits
from mde.deploy.job import files_of
from mde.deploy.reference import open_published, published_graph
from mde.deploy.runtime import Runtime, load_runtime, runtime_predictor
from mde.deploy.speed import WARMUP, camera_image, rounds, time_around
from mde.deploy.targets import Request
from mde.engine_memory import peak_memory
from mde.engines import Engine, engine_version
from mde.errors import MdeError
from mde.evaluation import evaluate, evaluation_sets, frame_limit, ramp_predictor, spread
from mde.models import read_metadata
from mde.report.comparison import show_comparison, write_comparison
from mde.report.pictures import comparison_sheet
from mde.report.record import new_record, write_record
from mde.report.terminal import say

SHOWN = 4  # frames in the picture sheet
OPTIONS = {"compare", "data", "evaluate", "threads", "seed", "size", "sweep"}  # that mean something here


@dataclass
class Candidate:
    """One file, the runtime that opened it, and its entry in the record; without a runtime it is out."""

    name: str
    path: Path
    record: dict[str, Any]
    runtime: Runtime | None = None

    @property
    def engine(self) -> str:
        return self.opened.description.engine

    @property
    def opened(self) -> Runtime:
        assert self.runtime is not None, "asked only of candidates that are in"
        return self.runtime


def compare(config: DictConfig) -> Path:
    """Evaluates and measures the files, writes one page of all, and returns the run directory.

    MdeError, after that, when a file could not be opened or run; the others are on the page.
    """
    _check_options()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    torch.manual_seed(config.seed)
    candidates = [
        Candidate(name, Path(file), {"name": name, "file": file, "status": "running"})
        for name, file in zip(short_names(config.compare), config.compare, strict=True)
    ]
    for candidate in candidates:
        with _out_on_error(candidate):
            candidate.runtime = load_runtime(candidate.path, threads=config.threads)
            candidate.record |= _described(candidate)
    if config.size is None:  # at which synthetic frames are rendered
        config.size = next((list(c.opened.description.input) for c in candidates if c.runtime), [256, 256])
    splits: Splits = instantiate(config.data)
    sets = evaluation_sets(splits, config.evaluate)
    OmegaConf.save(config, run_dir / "config.yaml")
    record = new_record("running", candidates=[candidate.record for candidate in candidates])
    write_record(run_dir, record)
    record["baselines"] = _quality(candidates, sets)
    if any(map(_is_in, candidates)):
        _latency(candidates, config.threads)
        _pictures(candidates, sets[0], run_dir)
    failed = [candidate.record for candidate in candidates if candidate.runtime is None]
    for candidate in candidates:
        if candidate.runtime is not None:
            candidate.record["status"] = "complete"
    error = "; ".join(f"{entry['name']}: {entry['error']}" for entry in failed)
    record |= {"status": "failed", "error": error} if failed else {"status": "complete"}
    write_record(run_dir, record)
    page = write_comparison(run_dir, record)
    show_comparison(record)
    say(f"report: {page}")
    if failed:
        raise MdeError(f"compare: {len(failed)} of {len(candidates)} files failed: {error}")
    return run_dir


def short_names(files: Sequence[str]) -> list[str]:
    """The files' names, each with as many folders as tell it from the others. MdeError when one is given twice."""
    paths = [Path(file).resolve() for file in files]
    for file, path in zip(files, paths, strict=True):
        if paths.count(path) > 1:
            raise MdeError(f"compare: {file} is given twice; leave one out")
    return [_short_name(path, [other for other in paths if other != path]) for path in paths]


def _short_name(path: Path, others: Sequence[Path]) -> str:
    parts = 1
    while any(other.parts[-parts:] == path.parts[-parts:] for other in others):
        parts += 1
    return "/".join(path.parts[-parts:])


def _check_options() -> None:
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        raise MdeError("compare: makes one page of all its files by itself; leave out -m")
    for override in hydra.overrides.task:
        key = override.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in OPTIONS:
            raise MdeError(f"{key}: means nothing to compare=, which takes files as they are; leave it out")


@contextlib.contextmanager
def _out_on_error(candidate: Candidate) -> Iterator[None]:
    """A candidate that raises is out, and the others go on."""
    try:
        yield
    except Exception as error:
        line = str(error)
        if not isinstance(error, MdeError):  # nobody foresaw it
            traceback.print_exc()
            line = f"{type(error).__name__}: {' '.join(line.split())}"
        say(f"failed: {candidate.name}: {line}")
        candidate.runtime = None
        candidate.record |= {"status": "failed", "error": line}


def _described(candidate: Candidate) -> dict[str, Any]:
    description = candidate.opened.description
    size = sum(path.stat().st_size for path in files_of(candidate.path))
    return {
        "engine": description.engine,
        "precision": description.precision,
        "model": {"name": description.network, "input": list(description.input), "file_bytes": size},
        "quality": {},
        "latency": {},
    }


def _quality(candidates: Sequence[Candidate], sets: Sequence[Frames]) -> dict[str, Any]:
    """Every candidate's on every set; returns the baseline that knows nothing."""
    ramp = {}
    for frames in sets:
        run = partial(evaluate, frames=frames, limit=frame_limit())
        ramp[frames.name] = run(ramp_predictor)
        for candidate in filter(_is_in, candidates):
            with _out_on_error(candidate):
                predict = runtime_predictor(candidate.opened)
                title = f"{candidate.name} on {frames.name}"
                candidate.record["quality"][frames.name] = run(predict, progress=title)
    return {"vertical_ramp": ramp}


def _latency(candidates: Sequence[Candidate], threads: int) -> None:
    """All in one round after the other, the published graphs that they are compared with among them."""
    timed = list(filter(_is_in, candidates))
    with tempfile.TemporaryDirectory() as folder:
        images = {candidate.name: candidate.opened.preprocess(camera_image()) for candidate in timed}
        calls: dict[str, Callable[[], object]] = {c.name: partial(c.opened.infer, images[c.name]) for c in timed}
        baselines = {}
        for candidate in timed:
            baselines[candidate.name] = timed[0].name
            label = published_label(candidate)
            if label is None:
                continue
            try:
                if label not in calls:
                    place = Path(folder) / str(len(calls))
                    calls[label] = partial(_open_published(candidate, place, threads), images[candidate.name])
                baselines[candidate.name] = label
            except MdeError as error:
                say(f"{candidate.name}: no speed-up against the {label}: {error}")
        times = interleave(calls, WARMUP, rounds())
    for candidate in timed:
        with _out_on_error(candidate):
            baseline = baselines[candidate.name]
            entry = latency_entry(times[candidate.name], times[baseline])
            entry |= {"precision": candidate.record["precision"], "threads": threads, "warmup": WARMUP}
            entry |= {"engine_version": engine_version(candidate.engine), "baseline": baseline}
            entry |= time_around(candidate.opened)
            entry["peak_rss_mb"] = peak_memory(candidate.engine, candidate.path, images[candidate.name], threads)
            candidate.record["latency"][candidate.engine] = entry


def published_label(candidate: Candidate) -> str | None:
    """The baseline of the candidate's speed-up; None where nothing says which network it was.

    That its own file says, or model.safetensors beside it, where deploy.py leaves it.
    """
    metadata = _metadata(candidate.path)
    about = candidate.opened.description
    if metadata is None or metadata["network"] != about.network:
        return None
    options = " ".join(str(value) for name, value in metadata["options"].items() if name != "reference")
    size = f"{about.input[0]} x {about.input[1]} {about.layout} {about.dtype}"
    return f"published graph of {about.network} {options}, {size}, fp32 in {about.engine}"


def _metadata(path: Path) -> dict[str, Any] | None:
    source = path.with_name("model.safetensors") if path.suffix != ".safetensors" else path
    return read_metadata(source) if source.is_file() else None


def _open_published(candidate: Candidate, folder: Path, threads: int) -> Engine:
    metadata, about = _metadata(candidate.path), candidate.opened.description
    assert metadata is not None, "published_label read it"
    graph = published_graph(about.network, metadata["options"], about.layout, about.dtype)
    folder.mkdir()
    return open_published(about.engine, Request(about.network, graph, about.input, "fp32", folder), threads)


def _pictures(candidates: Sequence[Candidate], frames: Frames, run_dir: Path) -> None:
    predict = {
        f"{number}  {candidate.name}": runtime_predictor(candidate.opened)
        for number, candidate in enumerate(candidates, start=1)
        if candidate.runtime is not None
    }
    samples = [frames[index] for index in spread(len(frames), SHOWN)]
    (run_dir / "pictures").mkdir(exist_ok=True)
    (run_dir / "pictures" / f"{frames.name}.png").write_bytes(comparison_sheet(samples, predict, frames.cap))


def _is_in(candidate: Candidate) -> bool:
    return candidate.runtime is not None
