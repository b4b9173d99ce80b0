"""`deploy.py compare=[...]`: networks' files on the same frames, timed in turn in one process."""

import contextlib
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mde.builders import built
from mde.config import MeasureConfig
from mde.data.sample import Frames, Sample, Splits
from mde.deploy.job import recorded
from mde.deploy.latency import WARMUP, camera_image, library, time_around
from mde.deploy.options import only
from mde.engines import ENGINES, Run
from mde.engines.description import Description, files_of, network_file
from mde.engines.request import Request
from mde.engines.runtime import load_runtime, runtime_predictor
from mde.errors import MdeError
from mde.evaluation.quality import evaluate, evaluation_sets, ramp_predictor, spread
from mde.models import read_metadata
from mde.models.registry import PUBLISHED, as_published
from mde.records import new_record
from mde.report.comparison_page import IN_DEPTH, PerFrame, show_comparison, write_comparison, write_frames
from mde.report.dispensable import dispensable
from mde.report.pictures import comparison_sheet, save_picture, sheet_path
from mde.report.terminal import say
from mde.runs import save_options
from mde.speed.interleaved import interleave, latency_entry
from mde.speed.memory import peak_memory
from mde.speed.published import open_published, published_graph

SHOWN = 4  # frames in the picture sheet
# That mean something here.
OPTIONS = {"compare", "data", "evaluate", "evaluation", "measure", "default_precision", "threads", "seed", "size"}


class Candidate:
    """One file, opened, its number in the list, and its entry in the record, which says when it is out.

    engine  None: that of the file
    """

    def __init__(self, number: int, record: dict[str, Any], threads: int, engine: str | None = None):
        self.number, self.record = number, record
        self.name: str = record["name"]
        self.path = Path(record["file"])
        self.runtime = load_runtime(self.path, threads=threads, engine=engine)
        about = self.runtime.description
        size = sum(path.stat().st_size for path in files_of(self.path))
        record |= {
            "engine": about.engine,
            "precision": ENGINES[about.engine].computes() if about.precision == "fp32" else about.precision,
            "model": {"name": about.network, "input": list(about.input), "file_bytes": size},
            "quality": {},
            "latency": {},
        }


def compare(config: DictConfig) -> Path:
    """Evaluates and measures the files, writes one page of all, and returns the run directory.

    MdeError, after that, when a file could not be opened or run; the others are on the page.
    """
    only(OPTIONS, "compare=")
    if config.measure.rounds < 1:
        raise MdeError(f"measure.rounds={config.measure.rounds}: must be at least 1")
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)  # of pre- and post-processing, whatever the engines
    names = zip(short_names(config.compare), config.compare, strict=True)
    entries = [{"name": name, "file": file, "status": "incomplete"} for name, file in names]
    record = new_record("running", candidates=entries)
    with recorded(run_dir, record, partial(write_comparison, record=record)):
        carry_out(config, run_dir, record)
        show_comparison(record)
        failed = [f"{entry['name']}: {entry['error']}" for entry in entries if entry["status"] == "failed"]
        if failed:
            raise MdeError(f"compare: {len(failed)} of {len(entries)} files failed: {'; '.join(failed)}")
    return run_dir


def carry_out(config: DictConfig, run_dir: Path, record: dict[str, Any]) -> None:
    """Opens, evaluates, measures and draws the candidates of the record; one that fails is left out of what follows."""
    candidates = []
    for number, entry in enumerate(record["candidates"], start=1):
        with out_on_error(entry):
            candidates.append(Candidate(number, entry, config.threads))
    if config.default_precision:
        candidates += by_default(candidates, record["candidates"], config.threads)
    if config.size is None:  # at which synthetic frames are rendered
        config.size = list(candidates[0].runtime.description.input) if candidates else [256, 256]
    save_options(run_dir, config)
    splits: Splits = built("data", config.data)
    sets = evaluation_sets(splits, config.evaluate, config.evaluation.frames)
    per_frame: PerFrame = defaultdict(dict)
    record["baselines"] = quality(candidates, sets, config.evaluation.frames, per_frame)
    write_frames(run_dir, per_frame)
    if candidates := left(candidates):
        latency(candidates, config.threads, config.measure)
    if candidates := left(candidates):
        with dispensable("pictures"):
            record["sheet"] = draw(candidates, sets[0], run_dir)


def by_default(candidates: Sequence[Candidate], entries: list[dict[str, Any]], threads: int) -> list[Candidate]:
    """FP32 files of engines that take a precision by themselves once more, in that; their entries come last."""
    added = []
    for candidate in candidates:
        engine = ENGINES[candidate.record["engine"]].by_default
        if engine is None or candidate.record["precision"] != "fp32":
            continue
        name, file = f"{candidate.name}, default precision", candidate.record["file"]
        entries.append({"name": name, "file": file, "status": "incomplete"})
        with out_on_error(entries[-1]):
            added.append(Candidate(len(entries), entries[-1], threads, engine))
    return added


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


@contextlib.contextmanager
def out_on_error(entry: dict[str, Any]) -> Iterator[None]:
    """A candidate that raises is out, and the others go on."""
    try:
        yield
    except Exception as error:
        entry |= {"status": "failed", "error": _reason(error)}
        say(f"failed: {entry['name']}: {entry['error']}")


def left(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [candidate for candidate in candidates if candidate.record["status"] != "failed"]


def _reason(error: Exception) -> str:
    """In one line; where nobody foresaw it, how it came about goes to the terminal."""
    if isinstance(error, MdeError):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def quality(
    candidates: Sequence[Candidate], sets: Sequence[Frames], limit: int | None, per_frame: PerFrame
) -> dict[str, Any]:
    """Every candidate's on every set, of at most `limit` frames each, in its record, and each frame's delta1; returns
    the baseline that knows nothing.

    What predicts depth is fitted in inverse depth, as all others are, and once more in depth, in an entry of its own.
    """

    def column(name: str) -> Callable[[Sample, dict[str, float]], None]:
        def note(sample: Sample, figures: dict[str, float]) -> None:
            per_frame[sample.dataset, sample.frame, sample.scene][name] = figures["delta1"]

        return note

    ramp = {}
    for frames in sets:
        run = partial(evaluate, frames=frames, limit=limit)
        ramp[frames.name] = run(ramp_predictor, on_frame=column("vertical_ramp"))
        for candidate in left(candidates):
            with out_on_error(candidate.record):
                predict, name = runtime_predictor(candidate.runtime), candidate.name
                figures = run(predict, progress=f"{name} on {frames.name}", on_frame=column(name))
                candidate.record["quality"][frames.name] = figures
                if candidate.runtime.description.output == "depth":
                    figures = run(predict, align="depth", on_frame=column(f"{name}{IN_DEPTH}"))
                    candidate.record.setdefault("quality_in_depth", {})[frames.name] = figures
    return {"vertical_ramp": ramp}


def latency(candidates: Sequence[Candidate], threads: int, measure: MeasureConfig) -> None:
    """All in one round after the other, the published graphs that they are compared with among them.

    With it a candidate's record is complete.
    """
    images = {c.name: c.runtime.preprocess(camera_image()) for c in candidates}
    calls: dict[str, Callable[[], object]] = {c.name: partial(c.runtime.infer, images[c.name]) for c in candidates}
    baselines = dict.fromkeys(calls, candidates[0].name)
    with tempfile.TemporaryDirectory() as folder:
        for candidate in candidates:
            try:
                baseline = published(candidate)
                if baseline is None:
                    continue
                if baseline.label not in calls:
                    engine = baseline.open(Path(tempfile.mkdtemp(dir=folder)), threads)
                    calls[baseline.label] = partial(engine, images[candidate.name])
                baselines[candidate.name] = baseline.label
            except Exception as error:
                say(f"{candidate.name}: no speed-up against the published graph: {_reason(error)}")
        times = interleave(calls, WARMUP, measure.rounds)
    for candidate in candidates:
        with out_on_error(candidate.record):
            about, against = candidate.runtime.description, baselines[candidate.name]
            entry = latency_entry(times[candidate.name], times[against])
            entry |= {
                "precision": candidate.record["precision"],
                "threads": threads,
                "warmup": WARMUP,
                "baseline": against,
            }
            entry |= {"engine_version": library(about.engine, candidate.path)}
            entry |= time_around(candidate.runtime, measure.rounds)
            if measure.memory:
                entry["peak_rss_mb"] = peak_memory(about.engine, candidate.path, images[candidate.name], threads)
            candidate.record["latency"][about.engine] = entry
            candidate.record["status"] = "complete"


@dataclass(frozen=True)
class PublishedGraph:
    """The published form of a candidate's network, FP32 in the candidate's engine.

    about    what the candidate's file says
    options  of the network, as `build_model` takes them
    library  that runs it: of TensorRT there are two, and OpenVINO may compute an FP32 file in less
    """

    about: Description
    options: Mapping[str, Any]
    library: str

    @property
    def label(self) -> str:
        about = self.about
        options = " ".join(str(value) for name, value in self.options.items() if name not in PUBLISHED)
        size = f"{about.input[0]} x {about.input[1]} {about.layout} {about.dtype}"
        return f"published graph of {about.network} {options}, {size}, fp32 in {self.library}"

    def open(self, folder: Path, threads: int) -> Run:
        """Its file is left in the folder, which is empty."""
        about = self.about
        graph = published_graph(about.network, self.options, about.layout, about.dtype)
        request = Request(about.network, graph, about.input, "fp32", folder, library=self.library)
        writing = next(e.name for e in ENGINES.values() if e.writers and about.engine in (e.name, e.by_default))
        return open_published(writing, request, threads, about.engine)


def published(candidate: Candidate) -> PublishedGraph | None:
    """What the candidate's speed-up is against; None where no network's own file says which it was. MdeError when that
    is not ours.
    """
    path, about = candidate.path, candidate.runtime.description
    source = network_file(path)
    metadata = read_metadata(source) if source.is_file() else {}
    if metadata.get("network") != about.network:
        return None
    of_file = ENGINES[about.engine].library
    library = of_file(path)[0] if of_file else about.engine
    return PublishedGraph(about, as_published(metadata["options"]), library)


def draw(candidates: Sequence[Candidate], frames: Frames, run_dir: Path) -> str:
    """Draws a few frames with everybody's predictions; returns the picture's place in the run directory."""
    predict = {f"{c.number}  {c.name}": runtime_predictor(c.runtime) for c in candidates}
    samples = [frames[index] for index in spread(len(frames), SHOWN)]
    sheet = sheet_path(run_dir, frames.name)
    save_picture(comparison_sheet(samples, predict, frames.cap), sheet)
    return str(sheet.relative_to(run_dir))
