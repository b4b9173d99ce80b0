"""The documents' tables, made from records whose figures are known."""

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # as running the script does

import results
import results_steps as steps
import results_tables as tables

PUBLISHED = "published graph of midas_small lite0, fp32 in litert"


def entry(file: str, engine: str, delta1: float, ms: float, faster: float, datasets, baseline: str = PUBLISHED) -> dict:
    quality = {name: {"delta1": delta1, "rmse": 0.5, "mae": 0.4, "frames": 9} for name in datasets}
    times = {
        "p50_ms": ms,
        "p95_ms": ms,
        "speedup_vs_reference": faster,
        "baseline": baseline,
        "peak_rss_mb": 60,
        "threads": 2,
    }
    model = {"input": [256, 256], "file_bytes": 2 * 10**6}
    about = {"file": file, "status": "complete", "engine": engine, "quality": quality, "latency": {engine: times}}
    return about | {"model": model}


@pytest.fixture
def record(monkeypatch):
    """The dense network is better than FastDepth, channel 0.9 in INT8 is quicker and nearly as good; another one is
    quicker still, but against a baseline that is not its own published graph."""
    learned = {"free": {"synthetic", "mixed_rgbd", "redwood", "sun3d"}}
    for module in (steps, tables):
        monkeypatch.setattr(module, "learned_from", lambda network: learned.get(network, {"nyu", "photos"}))
    monkeypatch.setattr(steps, "weights", lambda network: Path("weights/midas_small.safetensors"))  # not all are there
    datasets = ["nyu", *steps.ZERO_SHOT]
    file = {point: path for path, point in steps.files().items()}
    candidates = [
        entry(file["dense", "litert", "fp32"], "litert", 0.85, 40, 1.1, datasets),
        entry(file["channel 0.9", "litert", "int8"], "litert", 0.845, 3, 12.3, datasets),
        entry(file["channel 0.9", "openvino", "int8"], "openvino", 0.845, 2.9, 99, datasets, baseline="model.tflite"),
        entry(file["free", "litert", "fp32"], "litert", 0.7, 50, 1.1, datasets),
        entry(steps.PEER, "litert", 0.84, 4, 7.7, datasets, baseline="model.onnx"),
    ]
    ramp = {name: {"delta1": 0.6, "frames": 9} for name in datasets}
    machine = {"cpu": "Some CPU", "cores": 2, "commit": "abc1234", "instructions": ["avx2"]}
    return {"candidates": candidates, "baselines": {"vertical_ramp": ramp}, "environment": machine}


def test_the_targets_are_judged_by_what_was_measured(record):
    lines = tables.targets(tables.Figures(record)).split("\n\n")[0].splitlines()[2:]
    assert [line.rsplit("| ", 1)[1] for line in lines] == ["yes |"] * 5
    assert "channel 0.9, INT8, LiteRT: 12.3x, 0.5 points below" in lines[2]
    assert "channel 0.9, INT8, LiteRT: 14.7x, 0.5 points below" in lines[3]
    assert "3.00 ms, 0.845; FastDepth, INT8, LiteRT: 4.00 ms, 0.840" in lines[4]
    for candidate in record["candidates"][:3]:
        candidate["quality"]["nyu"]["delta1"] = 0.83
    record["candidates"][1]["latency"]["litert"]["speedup_vs_reference"] = 9.9
    lines = tables.targets(tables.Figures(record)).split("\n\n")[0].splitlines()[2:]
    assert [line.rsplit("| ", 1)[1] for line in lines] == ["no |", "yes |", "no |", "yes |", "no |"]


def test_a_speed_up_against_another_graph_is_not_shown(record):
    figures = tables.Figures(record)
    row = next(line for line in tables.speed(figures).splitlines() if "FastDepth" in line)
    assert "7.7" not in row
    assert "12.3" in tables.speed(figures)
    assert "99" not in tables.speed(figures)
    assert "other indoor sets |  | 0.600 | 0.850 |" in tables.sets(figures)
    assert "vertical ramp" in tables.summary(figures)


def test_a_network_has_no_figure_on_a_set_that_it_learned_from(record):
    figures = tables.Figures(record)
    table = tables.sets(figures).splitlines()
    column = table[0].split(" | ").index("free, FP32")
    of_free = {row.split(" | ")[0].strip("| "): row.split(" | ")[column] for row in table[2:]}
    assert of_free["mixed_rgbd"] == of_free["mean of the 6 other indoor sets"] == ""
    assert of_free["office"] == of_free["mean of the 4 of these that no network here learned from"] == "0.700"
    with pytest.raises(ValueError, match="free: learned from redwood, sun3d"):
        figures.mean(("free", "litert", "fp32"))


def test_the_tables_name_the_machine(record):
    for table in (tables.targets, tables.speed, tables.summary):
        assert "Some CPU (avx2), 2 cores, with 2 threads, at commit abc1234" in table(tables.Figures(record))


def test_a_step_begins_anew_when_what_goes_into_it_changed(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "a").write_text("1")
    step = steps.Step("name", "command", (Path("a"),))
    first = step.path
    assert step.path == first
    (tmp_path / "a").write_text("2")
    assert step.path != first
    assert steps.Step("name", "other command").path != steps.Step("name", "command").path


def test_a_brief_step_evaluates_few_frames_and_others_all(monkeypatch):
    limits = []
    monkeypatch.setattr(
        steps.subprocess, "run", lambda command, env, **_: limits.append(env.get("MDE_MAX_STEPS", "none"))
    )
    monkeypatch.delenv("MDE_MAX_STEPS", raising=False)
    steps.Step("name", "command").run()
    steps.Step("name", "command", brief=True).run()
    assert limits == ["none", "25"]


def test_the_pareto_figure_is_drawn(record, tmp_path):
    tables.pareto(tables.Figures(record), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_a_part_that_no_document_has_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).write_text("before\n<!-- results: a -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.write("a", "new")
    assert (tmp_path / "README.md").read_text() == "before\n<!-- results: a -->\n\nnew\n\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="results: b"):
        results.write("b", "new")


def test_every_part_that_is_made_has_its_place(record, monkeypatch, tmp_path):
    """And every picture its page."""
    monkeypatch.chdir(ROOT)
    wanted = {"compare": record, "figure4": {}}
    monkeypatch.setattr(results, "finished", lambda step: step.name in {*wanted, "table1", "table2"})
    monkeypatch.setattr(results, "read_record", lambda path: wanted[path.name.rpartition("-")[0]])
    monkeypatch.setattr(results, "read_jobs", lambda path: [])
    monkeypatch.setattr(results, "against_sensor", lambda record: "")
    monkeypatch.setattr(results, "pareto", lambda figures, path: None)
    monkeypatch.setattr(results.shutil, "copyfile", lambda source, target: None)
    parts = set()
    monkeypatch.setattr(results, "write", lambda name, content: parts.add(name))
    results.document()
    pages = (ROOT / "docs/results.md").read_text() + (ROOT / "README.md").read_text()
    assert len(parts) == 8
    for name in {*parts, "ablation"}:
        assert f"<!-- results: {name} -->" in pages
    for name in ("pareto", "photos", "figure2", "figure3", "figure4"):
        assert f"images/{name}.png)" in pages
