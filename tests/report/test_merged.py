"""The table, the Pareto front and the page of a whole sweep."""

import csv
import json
import random
import re

import pytest
import yaml

from mde.records import new_record
from mde.report.sweep_page import plot, write_merged
from mde.report.sweep_table import caption, cost_of, pareto_front, read_jobs, show_merged, table, trade, varying
from tests.app.tiny_job import result


def write_job(sweep_dir, overrides, record):
    """A job's directory as Hydra and a run leave it; no record where its process died."""
    run_dir = sweep_dir / "+".join(overrides).replace("=", "-").replace("/", "_")
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra/overrides.yaml").write_text(yaml.safe_dump(overrides))
    if record is not None:
        (run_dir / "metrics.json").write_text(json.dumps(record))
    return run_dir


@pytest.fixture
def sweep_dir(tmp_path):
    for kind, seeds in (("channel", (5, 50)), ("fine_grained", (10,))):
        for seed in seeds:
            write_job(tmp_path, [f"prune={kind}", f"sparsity={seed / 10}", "size=[64,64]"], result(seed))
    failed = new_record("failed", error="<b>too</b> large")
    write_job(tmp_path, ["prune=layer", "sparsity=0.5", "size=[64,64]", "sweep.resume=x"], failed)
    write_job(tmp_path, ["prune=layer", "sparsity=0.7", "size=[64,64]"], None)
    return tmp_path


def test_no_point_beats_the_front_and_every_other_point_is_beaten():
    rng = random.Random(0)
    for _ in range(50):
        points = [None if rng.random() < 0.1 else (rng.randint(0, 9), rng.randint(0, 9)) for _ in range(12)]
        front = {point for point, on in zip(points, pareto_front(points), strict=True) if on}
        known = {point for point in points if point is not None}
        beaten = {p for p in known for q in known if q != p and q[0] <= p[0] and q[1] >= p[1]}
        assert front == known - beaten


def test_a_sweep_is_read_back_in_the_order_of_its_options(sweep_dir):
    jobs = read_jobs(sweep_dir)
    assert [(job.overrides["prune"], float(job.overrides["sparsity"])) for job in jobs] == [
        ("channel", 0.5),
        ("channel", 5.0),
        ("fine_grained", 1.0),
        ("layer", 0.5),
        ("layer", 0.7),
    ]
    assert varying(jobs) == ["prune", "sparsity"]
    assert [job.complete for job in jobs] == [True, True, True, False, False]
    assert jobs[3].problem == "<b>too</b> large"
    assert "process died" in jobs[4].problem
    headings, rows = table(jobs)
    assert [row[headings.index("Pareto")] for row in rows] == ["*", "", "*"]
    assert rows[0][: headings.index("params, M")] == ["1", "channel", "0.5", "5.0%"]


def test_latency_is_the_cost_only_where_every_finished_network_has_it(tmp_path):
    measured = result(1)
    write_job(tmp_path, ["seed=1"], measured | {"latency": {
        "onnxruntime": {"p50_ms": 30.0, "speedup_vs_reference": 1.0},
        "openvino": {"p50_ms": 20.0, "speedup_vs_reference": 1.0}}})  # fmt: skip
    cost = cost_of(read_jobs(tmp_path))
    assert (cost.engine, cost.of(read_jobs(tmp_path)[0])) == ("openvino", 20.0)
    write_job(tmp_path, ["seed=2"], measured | {"latency": {"onnxruntime": {"p50_ms": 9.0, "speedup_vs_reference": 2}}})
    assert cost_of(read_jobs(tmp_path)).engine == "onnxruntime"
    write_job(tmp_path, ["seed=3"], measured | {"latency": {}})
    jobs = read_jobs(tmp_path)
    assert cost_of(jobs).engine is None
    assert cost_of(jobs).of(jobs[0]) == pytest.approx(0.999)
    assert [row[-2] for row in table(jobs)[1]] == ["1.00x", "-", "-"]


def test_an_estimate_is_marked_and_compared_with_no_measurement(tmp_path):
    def job(name, **latency):
        entry = {"target": "openvino", "precision": "fp16", "status": "measured"}
        entry["parity"] = {"engine": "openvino", "largest": 1e-4}
        own = {"openvino": {"status": "measured", "p50_ms": 20.0, "speedup_vs_reference": 1.5}}
        write_job(tmp_path, [name], result(1) | {"deployment": entry, "latency": own | latency})

    job("seed=1", orin_nano={"status": "estimate", "p50_ms": 1.234, "speedup_vs_reference": None})
    job("seed=2", orin_nano={"status": "measured", "p50_ms": 5.0, "speedup_vs_reference": None})
    job("seed=3")
    jobs = read_jobs(tmp_path)
    headings, rows = table(jobs)
    column = headings.index("orin_nano, ms")
    assert [row[column] for row in rows] == ["estimate, at least 1.23", "5.0", "-"]
    assert [cost_of(jobs).of(job) for job in jobs] == [20.0] * 3
    write_merged(tmp_path, jobs, [])
    first, second, _ = json.loads((tmp_path / "summary.json").read_text())["jobs"]
    assert (first["orin_nano/estimate_ms"], second["orin_nano/p50_ms"]) == (1.234, 5.0)
    assert "orin_nano/p50_ms" not in first


def test_the_page_stands_alone_links_the_jobs_pages_and_escapes_their_errors(sweep_dir):
    (sweep_dir / "prune-channel+sparsity-0.5+size-[64,64]/report.html").write_text("a page")
    page = write_merged(sweep_dir, read_jobs(sweep_dir), ["a <note>"]).read_text()
    assert page.count("src='data:image/png;base64,") == 1
    links = re.findall(r"(?:src|href)='(?!data:)([^']*)'", page)
    assert links == ["prune-channel%2Bsparsity-0.5%2Bsize-%5B64%2C64%5D/report.html"]
    assert "&lt;b&gt;too" in page
    assert "a &lt;note&gt;" in page
    assert "3 of 5 jobs complete" in page
    assert "size=[64,64]" in page


def test_the_summaries_hold_every_job(sweep_dir):
    write_merged(sweep_dir, read_jobs(sweep_dir), [])
    rows = json.loads((sweep_dir / "summary.json").read_text())["jobs"]
    assert [row["status"] for row in rows] == ["complete"] * 3 + ["failed", "no result"]
    assert [row["pareto"] for row in rows] == [True, False, True, False, False]
    assert rows[0]["frames/delta1"] == 0.895
    assert rows[0]["model/macs"] == 995_000_000
    assert rows[3]["error"] == "<b>too</b> large"
    with open(sweep_dir / "summary.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["prune"], line["sparsity"], line["status"]) for line in lines] == [
        (row["overrides"]["prune"], row["overrides"]["sparsity"], row["status"]) for row in rows
    ]
    assert [line["openvino/p50_ms"] for line in lines] == ["19.5", "20.1", "19.0", "", ""]


def test_a_log_file_gets_the_whole_table_and_each_failure_in_a_line(sweep_dir, capsys):
    show_merged(read_jobs(sweep_dir), ["a note"])
    lines = capsys.readouterr().out.splitlines()
    assert any({"fine_grained", "1.0", "10.0%", "0.890", "*"} <= set(line.split()) for line in lines)
    assert "failed: prune=layer sparsity=0.5: <b>too</b> large" in lines
    assert "a note" in lines


def test_a_sweep_in_which_everything_failed_has_a_page_without_table_and_plot(tmp_path):
    write_job(tmp_path, ["seed=1"], None)
    jobs = read_jobs(tmp_path)
    page = write_merged(tmp_path, jobs, []).read_text()
    assert "<table" not in page
    assert "<img" not in page
    assert "0 of 1 jobs complete" in page


def test_the_plot_of_many_jobs_draws(tmp_path):
    for seed in range(1, 40):
        write_job(tmp_path, [f"seed={seed}"], result(seed))
    assert plot(read_jobs(tmp_path)).startswith(b"\x89PNG")


def test_jobs_that_evaluated_other_frames_under_one_name_are_marked(tmp_path):
    for seed, content in ((1, "a"), (2, "b"), (3, "a")):
        record = result(seed)
        record["quality"]["frames"]["content"] = content
        write_job(tmp_path, [f"data.world={seed}"], record)
    write_job(tmp_path, ["data.world=4"], {"status": "failed", "model": {}, "quality": {}, "latency": {}})
    jobs = read_jobs(tmp_path)
    assert "Not all on the same frames: # 2 had others of that name" in caption(jobs)
    assert "Not all on the same frames" not in caption([jobs[0], jobs[2], jobs[3]])


def test_a_search_is_shown_by_its_validation_and_its_choice_by_the_test_too(tmp_path):
    for seed, test in ((1, {}), (5, {"nyu": {"delta1": 0.25, "rmse": 1.0, "mae": 1.0, "abs_rel": 1.0}})):
        record = result(seed)
        write_job(tmp_path, [f"seed={seed}"], record | {"validation": record["quality"], "quality": test})
    jobs = read_jobs(tmp_path)
    headings, rows = table(jobs)
    column = headings.index("delta1")
    assert [row[column] for row in rows] == ["0.899", "0.895"]
    assert [row[headings.index("delta1, test")] for row in rows] == ["-", "0.250"]
    assert trade(jobs) == [(pytest.approx(19.9), 0.899), (pytest.approx(19.5), 0.895)]
    write_merged(tmp_path, jobs, [])
    first, second = json.loads((tmp_path / "summary.json").read_text())["jobs"]
    assert (first["validation/frames/delta1"], second["nyu/delta1"]) == (0.899, 0.25)
    assert "nyu/delta1" not in first
