"""The documents' tables, made from records whose figures are known."""

import csv
from pathlib import Path

import pytest

from benchmarks import paired, results
from benchmarks import results_steps as steps
from benchmarks import results_tables as tables
from mde.engines import OPENVINO_DEFAULT
from mde.report.comparison_page import IN_DEPTH
from tests.conftest import ROOT

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
    return about | {"model": model, "name": f"{file} in {engine}", "precision": "int8"}


@pytest.fixture
def record(monkeypatch):
    """The dense network is better than FastDepth, channel 0.9 in INT8 is quicker and nearly as good; another one is
    quicker still, but against a baseline that is not its own published graph."""
    learned = {"free": {"synthetic", "mixed_rgbd", "redwood", "sun3d"}}
    for module in (steps, tables):
        monkeypatch.setattr(module, "learned_from", lambda network: learned.get(network, {"nyu", "photos"}))
    monkeypatch.setattr(
        steps, "weights", lambda network: Path("weights/midas_small_tenfold.safetensors")
    )  # hashed soon
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
    candidates[-1]["quality_in_depth"] = {name: {"delta1": 0.85 + 0.01 * (name != "nyu")} for name in datasets}
    default = entry(file["dense", "openvino", "fp32"], OPENVINO_DEFAULT.name, 0.85, 8, 1.5, datasets)
    candidates.append(default | {"precision": "bf16"})
    machine = {"cpu": "Some CPU", "cores": 2, "commit": "abc1234", "instructions": ["avx2"]}
    return {"candidates": candidates, "baselines": {"vertical_ramp": ramp}, "environment": machine}


@pytest.fixture
def figures_of(tmp_path):
    """Figures of a record. Frames have the sets' means, but that every second one of nine has FastDepth's at another
    place: what is above it is so by a difference with an error."""

    def make(record: dict) -> tables.Figures:
        lines = []
        for name, ramp in record["baselines"]["vertical_ramp"].items():
            for frame in range(ramp["frames"]):
                line = {"set": name, "frame": frame, "scene": frame, "vertical_ramp": 0.6}
                for candidate in record["candidates"]:
                    line[candidate["name"]] = candidate["quality"][name]["delta1"]
                    for figures in [candidate.get("quality_in_depth", {}).get(name)]:
                        wave = 0.04 * (frame % 2 - 4 / 9)
                        if figures is not None:
                            line[candidate["name"]] += wave
                            line[candidate["name"] + IN_DEPTH] = figures["delta1"] + wave
                lines.append(line)
        with open(tmp_path / "frames.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        return tables.Figures(record, paired.PerFrame(tmp_path))

    return make


def answers(figures: tables.Figures) -> list[str]:
    lines = tables.targets(figures).split("\n\n")[0].splitlines()[2:]
    return [line.rsplit("| ", 1)[1].strip(" |") for line in lines]


def test_the_targets_are_judged_by_what_was_measured(record, figures_of):
    lines = tables.targets(figures_of(record)).split("\n\n")[0].splitlines()[2:]
    assert "| +1.0 ± 0.7; fitted in depth +0.0 ± 0.7 | |" in lines[0]
    assert "channel 0.9, INT8, LiteRT: 12.3x; -0.5 ± 0.0 to dense | -0.5 ± 0.0 to dense" in lines[2]
    assert "channel 0.9, INT8, LiteRT: 14.7x" in lines[3]
    assert "as OpenVINO computes it by default (BF16 here)" in lines[4]
    assert "channel 0.9, INT8, OpenVINO: 4.1x" in lines[4]  # 8 ms x 1.5 over 2.9 ms
    assert answers(figures_of(record)) == ["open; in depth: open", "yes; in depth: no", "yes", "yes", "no", NO]
    for candidate in record["candidates"][:3]:
        candidate["quality"]["nyu"]["delta1"] = 0.83
    record["candidates"][1]["latency"]["litert"]["speedup_vs_reference"] = 9.9
    assert answers(figures_of(record))[2:5] == ["no", "yes", "no"]


NO = "no; in depth: no"


def test_ten_times_within_two_points_is_reached_where_both_are_clear_and_open_where_the_error_is_too_large():
    slow, clear, near, far = (("dense", engine, "int8") for engine in ("a", "b", "c", "d"))
    below = {slow: (0.0, 0.001), clear: (-0.012, 0.002), near: (-0.017, 0.003), far: (-0.03, 0.001)}
    to_dense = {point: paired.Difference(*figures) for point, figures in below.items()}

    def verdict(**ratios: float) -> tuple[str, str]:
        faster = {slow: 1.0, clear: ratios["clear"], near: ratios["near"], far: 30.0}
        point, found = tables.near_and_fast(list(below), faster.get, to_dense.__getitem__)
        return point[1], found

    assert verdict(clear=11, near=14) == ("b", "yes")
    assert verdict(clear=9, near=14) == ("c", "open")
    assert verdict(clear=9, near=8) == ("b", "no")


def test_faster_and_clearly_more_accurate_is_said_of_each_fit_by_itself(record, figures_of):
    assert answers(figures_of(record))[-1] == NO  # +0.5 points, with an error of 0.7
    for candidate in record["candidates"][1:3]:
        candidate["quality"]["nyu"]["delta1"] = 0.86
    figures = figures_of(record)
    assert answers(figures)[-1] == "yes; in depth: no"  # +2.0 and +1.0
    assert "channel 0.9, INT8, LiteRT | 3.00 | +2.0 ± 0.7 | +1.0 ± 0.7 | +0.5 ± 0.0 | -1.5 ± 0.0 |" in tables.peer(
        figures
    )
    record["candidates"][1]["latency"]["litert"]["p50_ms"] = 4.1
    assert "channel 0.9, INT8, LiteRT" not in tables.peer(figures_of(record))


def test_fastdepth_stands_in_the_tables_fitted_in_both_ways(record, figures_of):
    figures = figures_of(record)
    assert (
        "delta1 0.840 on NYU, 0.840 on the other indoor sets. Fitted in depth it has 0.850 and 0.860."
        in tables.peer(figures)
    )
    assert "| the same, fitted in depth | 0.850 | 0.860 |" in tables.summary(figures)
    assert "FastDepth, INT8 | FastDepth, INT8, fitted in depth |" in tables.sets(figures)


def test_a_card_holds_its_network_against_dense_and_both_fits_on_sets_that_neither_learned_from(record, figures_of):
    card = tables.card(figures_of(record), "free")
    assert "| [dense](midas_small.md)'s | -15.0 ± 0.0 | -15.0 ± 0.0 |" in card
    assert "| FastDepth INT8's, fitted in depth, | -15.0 ± 0.7 |" in card
    assert "desk_lidar, office, classroom, tabletop." in card
    assert "9 test frames) by its 9 scenes" in card
    assert "dense" not in tables.card(figures_of(record), "dense").splitlines()[2]


def test_openvinos_own_choice_of_precision_is_a_row_beside_the_one_held_to_fp32(record, figures_of):
    file = {point: path for path, point in steps.files().items()}
    record["candidates"].append(
        entry(file["dense", "openvino", "fp32"], "openvino", 0.852, 20, 1.2, record["baselines"]["vertical_ramp"])
    )
    table = tables.speed(figures_of(record))
    assert "| dense, BF16, OpenVINO by default, 256 x 256 | 0.850 |" in table
    assert "dense in 8.0 ms instead of 20.0 (-0.2 ± 0.0 points" in table
    assert "2.0 times smaller" in table  # 24 ms over 12


def test_the_network_beside_a_camera_is_held_against_itself_alone(record, figures_of, monkeypatch):
    monkeypatch.setattr(tables, "available", lambda points: [("channel 0.9", "litert", "int8")])
    quality = dict.fromkeys(("delta1", "rmse", "mae", "abs_rel"), 0.5) | {"frames": 80}
    stages = {stage: {"mean_ms": 6.3} for stage in ("preprocess", "infer", "postprocess")}
    candidate = {"quality": {"room": quality, "room_calibrated": quality}, "stages": stages}
    sensor = {"candidates": [candidate], "environment": record["environment"]}
    written = tables.against_sensor(sensor, figures_of(record))
    assert "| 6.3 | 6.3 | 6.3 | 3.0 |" in written
    assert "2.1 to 2.1 times its median in the table of speed" in written
    assert "80 frames of one rendered scene" in written


def test_a_speed_up_against_another_graph_is_not_shown(record, figures_of):
    figures = figures_of(record)
    row = next(line for line in tables.speed(figures).splitlines() if "FastDepth" in line)
    assert "7.7" not in row
    assert "12.3" in tables.speed(figures)
    assert "99" not in tables.speed(figures)
    assert "other indoor sets |  | 0.600 | 0.850 |" in tables.sets(figures)
    assert "vertical ramp" in tables.summary(figures)


def test_a_network_has_no_figure_on_a_set_that_it_learned_from(record, figures_of):
    figures = figures_of(record)
    table = tables.sets(figures).splitlines()
    column = table[0].split(" | ").index("free, FP32")
    of_free = {row.split(" | ")[0].strip("| "): row.split(" | ")[column] for row in table[2 : table.index("")]}
    assert of_free["mixed_rgbd"] == of_free["mean of the 6 other indoor sets"] == ""
    assert of_free["office"] == of_free["mean of the 4 of these that no network here learned from"] == "0.700"
    with pytest.raises(ValueError, match="free: learned from redwood, sun3d"):
        figures.mean(("free", "litert", "fp32"))


def test_the_tables_name_the_machine(record, figures_of):
    for table in (tables.targets, tables.peer, tables.speed, tables.summary):
        assert "Some CPU (avx2), 2 cores, with 2 threads, at commit abc1234" in table(figures_of(record))


def test_a_step_begins_anew_when_what_goes_into_it_changed(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "ROOT", tmp_path)
    (tmp_path / "a").write_text("1")
    step = steps.Step("name", "command", (Path("a"),))
    first = step.path
    assert step.path == first
    (tmp_path / "a").write_text("2")
    assert step.path != first
    assert steps.Step("name", "other command").path != steps.Step("name", "command").path


def test_what_was_interrupted_goes_on_in_its_directory_or_begins_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "OUT", tmp_path)
    training, sweep, deployment = (steps.Step(name, "x.py a=1", sweep=name == "sweep") for name in ("t", "sweep", "d"))
    for step in (training, sweep, deployment):
        assert step.arguments() == ["x.py", "a=1", f"hydra.{'sweep' if step.sweep else 'run'}.dir={step.path}"]
        (step.path / "checkpoints").mkdir(parents=True)
        (step.path / "config.yaml").touch()
    (training.path / "checkpoints/last.ckpt").touch()
    (sweep.path / "multirun.yaml").touch()
    assert training.arguments() == ["x.py", f"resume={training.path}"]
    assert sweep.arguments() == ["x.py", "a=1", f"sweep.resume={sweep.path}"]
    assert deployment.arguments() == ["x.py", "a=1", f"hydra.run.dir={deployment.path}"]
    assert not deployment.path.exists()
    altered = steps.Step("t", "-m benchmarks.altered whole_frames a=1")
    (altered.path / "checkpoints").mkdir(parents=True)
    (altered.path / "checkpoints/last.ckpt").touch()
    assert altered.arguments() == ["-m", "benchmarks.altered", "whole_frames", f"resume={altered.path}"]


def test_the_pareto_figure_is_drawn(record, figures_of, tmp_path):
    tables.pareto(figures_of(record), tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_a_part_that_no_document_has_is_an_error(monkeypatch, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "weights").mkdir()
    for page in ("README.md", "docs/results.md", "weights/card.md"):
        (tmp_path / page).write_text("before\n<!-- results: a -->\nold\n<!-- end -->\nafter\n")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.write("a", "new")
    assert (tmp_path / "README.md").read_text() == "before\n<!-- results: a -->\n\nnew\n\n<!-- end -->\nafter\n"
    with pytest.raises(SystemExit, match="results: b"):
        results.write("b", "new")


def test_every_part_that_is_made_has_its_place(record, figures_of, monkeypatch):
    """And every picture its page."""
    monkeypatch.chdir(ROOT)
    figures, wanted = figures_of(record), {"compare": record, "figure4": {}}
    monkeypatch.setattr(results, "finished", lambda step: step.name in {*wanted, "table1", "table2"})
    monkeypatch.setattr(results, "read_record", lambda path: wanted[path.name.rpartition("-")[0]])
    monkeypatch.setattr(results, "read_jobs", lambda path: [])
    monkeypatch.setattr(results, "against_sensor", lambda record, figures: "")
    monkeypatch.setattr(results, "Figures", lambda record, per_frame: figures)
    monkeypatch.setattr(results, "PerFrame", lambda path: None)
    monkeypatch.setattr(results, "pareto", lambda figures, path: None)
    monkeypatch.setattr(results.shutil, "copyfile", lambda source, target: None)
    parts = set()
    monkeypatch.setattr(results, "write", lambda name, content: parts.add(name))
    results.document()
    written = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "weights").glob("*.md")]
    pages = "".join(page.read_text() for page in written)
    assert len(parts) == 11
    for name in {*parts, "ablation", *(f"card {file}" for file in (steps.NETWORKS | steps.FREE).values())}:
        assert f"<!-- results: {name} -->" in pages
    for name in ("pareto", "photos", "figure2", "figure3", "figure4"):
        assert f"images/{name}.png)" in pages
