"""The documents' tables, made from records whose figures are known."""

import importlib.util
import sys

import pytest

from tests.conftest import ROOT

PUBLISHED = "published graph of midas_small lite0, fp32 in litert"


@pytest.fixture(scope="module")
def results():
    specification = importlib.util.spec_from_file_location("results", ROOT / "benchmarks/results.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["results"] = module
    specification.loader.exec_module(module)
    yield module
    del sys.modules["results"]


def entry(file: str, engine: str, delta1: float, ms: float, faster: float, datasets, baseline: str = PUBLISHED) -> dict:
    quality = {name: {"delta1": delta1, "rmse": 0.5, "mae": 0.4, "frames": 9} for name in datasets}
    times = {"p50_ms": ms, "p95_ms": ms, "speedup_vs_reference": faster, "baseline": baseline, "peak_rss_mb": 60}
    model = {"input": [256, 256], "file_bytes": 2 * 10**6}
    about = {"file": file, "status": "complete", "engine": engine, "quality": quality, "latency": {engine: times}}
    return about | {"model": model}


@pytest.fixture
def record(results):
    """The dense network is better than FastDepth, channel 0.9 in INT8 is quicker and nearly as good; another one is
    quicker still, but against a baseline that is not its own published graph."""
    datasets = ["nyu", *results.ZERO_SHOT]
    file = {point: path for path, point in results.files().items()}
    candidates = [
        entry(file["dense", "litert", "fp32"], "litert", 0.85, 40, 1.1, datasets),
        entry(file["channel 0.9", "litert", "int8"], "litert", 0.845, 3, 12.3, datasets),
        entry(file["channel 0.9", "openvino", "int8"], "openvino", 0.845, 2.9, 99, datasets, baseline="model.tflite"),
        entry(results.PEER, "litert", 0.84, 4, 7.7, datasets, baseline="model.onnx"),
    ]
    ramp = {name: {"delta1": 0.6, "frames": 9} for name in datasets}
    return {"candidates": candidates, "baselines": {"vertical_ramp": ramp}}


def test_the_targets_are_judged_by_what_was_measured(results, record):
    lines = results.targets(results.Figures(record)).splitlines()[2:]
    assert [line.rsplit("| ", 1)[1] for line in lines] == ["yes |"] * 4
    assert "channel 0.9, INT8, LiteRT: 12.3x, 0.5 points below" in lines[2]
    assert "3.00 ms, 0.845; FastDepth 4.00 ms, 0.840" in lines[3]
    for candidate in record["candidates"][:3]:
        candidate["quality"]["nyu"]["delta1"] = 0.83
    record["candidates"][1]["latency"]["litert"]["speedup_vs_reference"] = 9.9
    lines = results.targets(results.Figures(record)).splitlines()[2:]
    assert [line.rsplit("| ", 1)[1] for line in lines] == ["no |", "yes |", "no |", "no |"]


def test_a_speed_up_against_another_graph_is_not_shown(results, record):
    figures = results.Figures(record)
    row = next(line for line in results.speed(figures).splitlines() if results.FASTDEPTH in line)
    assert "7.7" not in row
    assert "12.3" in results.speed(figures)
    assert "99" not in results.speed(figures)
    assert "| 7 other indoor sets | | 0.600 | 0.850 |" in results.sets(figures).replace("mean of the ", "")
    assert "vertical ramp" in results.summary(figures)


def test_the_pareto_figure_is_drawn(results, record, tmp_path):
    results.pareto(results.Figures(record), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_a_part_that_no_document_has_is_an_error(results, monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/results.md"):
        (tmp_path / page).write_text("before\n<!-- results: a -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.write("a", "new")
    assert (tmp_path / "README.md").read_text() == "before\n<!-- results: a -->\n\nnew\n\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="results: b"):
        results.write("b", "new")


def test_every_part_that_is_made_has_its_place(results):
    pages = (ROOT / "docs/results.md").read_text() + (ROOT / "README.md").read_text()
    source = (ROOT / "benchmarks/results.py").read_text()
    for name in (
        "targets",
        "summary",
        "speed",
        "sets",
        "table1 layer",
        "table1 channel",
        "table2 fine_grained",
        "sensor",
    ):
        assert name.split()[0] in source
        assert f"<!-- results: {name} -->" in pages
    assert "<!-- results: ablation -->" in pages
