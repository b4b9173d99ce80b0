"""The page of an evaluation against a depth sensor says what the record says, of whatever is in it."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mde.evaluation.breakdown import ErrorBreakdown, Stability
from mde.metrics import DepthMetrics
from mde.records import new_record
from mde.report.camera_page import headings, results, show_sensor, write_sensor_page
from mde.report.camera_plots import POINTS, means, read_frames

CAP, FRAMES = 9.0, 6
STAGES = {"preprocess": 2.0, "infer": 30.0, "postprocess": 0.5}
COLUMNS = "frame,time,candidate,capture_ms,align_ms,preprocess_ms,infer_ms,postprocess_ms,rmse,mae,abs_rel,delta1,"
COLUMNS += "delta2,delta3,scale,shift,coverage"


def times(mean: float) -> dict[str, float]:
    return {"mean_ms": mean, "p50_ms": 0.9 * mean, "p95_ms": 2 * mean}


def candidate(name: str, noise: float, calibrated: bool = False) -> dict[str, Any]:
    """A candidate of which every figure was computed, from random depth."""
    generator = torch.Generator().manual_seed(int(100 * noise))
    aligned, frozen = DepthMetrics(CAP), DepthMetrics(CAP, align=False)
    breakdown, stability = ErrorBreakdown(CAP), Stability()
    for _ in range(FRAMES):
        depth = 1 + 4 * torch.rand(1, 1, 16, 20, generator=generator)
        predicted = depth * (1 + noise * torch.rand(depth.shape, generator=generator))
        valid = torch.rand(depth.shape, generator=generator) < 0.8
        aligned.update(1 / predicted, depth, valid)
        frozen.update(1 / predicted, depth, valid)
        breakdown.update(predicted, depth, valid, torch.randint(0, 256, (3, 16, 20), generator=generator).byte())
        stability.update(1 / predicted, depth, valid, 1.0, 0.0)
    quality = {"sensor": aligned.compute()} | ({"sensor_calibrated": frozen.compute()} if calibrated else {})
    return {
        "name": name,
        "file": f"/runs/{name}",
        "engine": "onnxruntime",
        "precision": "fp32",
        "model": {"name": "midas_small", "input": [64, 96], "file_bytes": 12_300_000},
        "status": "complete",
        "quality": quality,
        "stages": {stage: times(mean) for stage, mean in STAGES.items()},
        "breakdown": breakdown.compute(),
        "stability": stability.compute(),
        "calibration": {"scale": 0.0012, "shift": -0.2, "cap": CAP, "frames": 15, "inliers": 0.75}
        if calibrated
        else None,
    }


def recorded(*candidates: dict[str, Any], **sensor: Any) -> dict[str, Any]:
    about = {
        "source": "/recordings/desk.db3",
        "device": "Intel RealSense L515",
        "serial": "f0001",
        "firmware": "1.5.8.1",
        "library": "librealsense 2.59.1",
        "notes": [],
        "unit": 0.00025,
        "size": [480, 640],
        "frames": FRAMES,
        "lost": 3,
        "skipped": 1,
        "warmup": 10,
        "rate": 27.25,
        "coverage": 0.825,
        "problem": None,
        "capture": times(4.0),
        "align": times(3.0),
    }
    return new_record("complete", candidates=list(candidates), sensor=about | sensor)


def write_frames(run_dir: Path, names: list[str], frames: int = FRAMES) -> None:
    """frames.csv, in which the second frame had no valid depth."""
    keys = COLUMNS.split(",")
    with open(run_dir / "frames.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        for index in range(frames):
            for name in names:
                blank = index == 1
                figures = dict.fromkeys(keys[8:16], "" if blank else 0.1 * index)
                row = dict.fromkeys(keys[3:8], index + 1.0) | figures | {"coverage": 0.5}
                writer.writerow({"frame": index, "time": index / 30, "candidate": name} | row)


def read_page(run_dir: Path, record: dict[str, Any]) -> str:
    return write_sensor_page(run_dir, json.loads(json.dumps(record, allow_nan=False))).read_text()


def tables(page: str) -> list[list[list[str]]]:
    """Cells of every row of every table."""
    return [
        [re.findall(r"<t[dh]>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        for table in re.findall(r"<table>(.*?)</table>", page)
    ]


def images(page: str) -> list[str]:
    return re.findall(r"<img alt='(.*?)'", page)


def test_the_table_has_a_row_for_each_network_with_its_figures_and_times(tmp_path: Path) -> None:
    good, bad = candidate("good.onnx", 0.1), candidate("bad.onnx", 0.5)
    heads, *rows = tables(read_page(tmp_path, recorded(good, bad)))[0]
    assert [dict(zip(heads, row, strict=True))["file"] for row in rows] == ["good.onnx", "bad.onnx"]
    for number, (row, one) in enumerate(zip(rows, (good, bad), strict=True), start=1):
        quality = one["quality"]["sensor"]
        assert dict(zip(heads, row, strict=True)) == {
            "#": str(number),
            "file": one["name"],
            "engine": "onnxruntime",
            "precision": "fp32",
            "input": "64 x 96",
            "file, MB": "12.3",
            "frames": str(FRAMES),
            "delta1": f"{quality['delta1']:.3f}",
            "RMSE, m": f"{quality['rmse']:.3f}",
            "MAE, m": f"{quality['mae']:.3f}",
            "AbsRel": f"{quality['abs_rel']:.3f}",
            "pre, ms": "2.00",
            "infer, ms": "30.00",
            "post, ms": "0.50",
            "total, ms": "32.50",
            "frames/s": "30.8",
        }
    assert rows[0] != rows[1]


def test_frozen_figures_stand_beside_the_aligned_ones_where_there_are_any(tmp_path: Path) -> None:
    calibrated, other = candidate("calibrated.onnx", 0.3, calibrated=True), candidate("other.onnx", 0.1)
    record = recorded(calibrated, other)
    first, second = (dict(zip(headings(record), row, strict=True)) for row in results(record))
    assert first["calibrated, RMSE"] == f"{calibrated['quality']['sensor_calibrated']['rmse']:.3f}" != first["RMSE, m"]
    assert second["calibrated, RMSE"] == second["calibrated, AbsRel"] == "-"
    page = read_page(tmp_path, record)
    (shown,) = [table for table in tables(page) if "inliers" in table[0]]
    cells = dict(zip(shown[0], shown[1], strict=True))
    assert len(shown) == 2
    assert (cells["scale"], cells["shift"], cells["frames"], cells["inliers"]) == ("0.0012", "-0.2", "15", "0.75")
    frozen, aligned = calibrated["quality"]["sensor_calibrated"], calibrated["quality"]["sensor"]
    assert cells["AbsRel"] == f"{frozen['abs_rel']:.3f} ({aligned['abs_rel']:.3f})"
    assert "Calibration" not in read_page(tmp_path, recorded(other))


def test_the_head_says_what_was_seen_and_what_went_wrong(tmp_path: Path) -> None:
    problem = "<unplugged> after 6 frames"
    page = read_page(tmp_path, recorded(candidate("a.onnx", 0.1), problem=problem))
    assert (
        "Intel RealSense L515 (serial f0001, firmware 1.5.8.1), /recordings/desk.db3, librealsense 2.59.1: 6 frames of "
        "640 x 480 after 10 of warm-up, 3 lost, 1 without valid depth. A count of depth is 0.25 mm. On average over "
        "frames 82.5% of the pixels have one."
    ) in page
    assert "<p class='bad'>&lt;unplugged&gt; after 6 frames</p>" in page
    assert "Capture (4.00 ms) and alignment (3.00 ms)" in page
    assert "one network, ran at 27.2 frames/s" in page
    assert "class='bad'" not in read_page(tmp_path, recorded(candidate("a.onnx", 0.1)))
    folder = read_page(tmp_path, recorded(candidate("a.onnx", 0.1), serial=None, firmware=None))
    assert "<p>Intel RealSense L515, /recordings/desk.db3" in folder


def test_plots_pictures_and_tables_are_in_the_page_itself(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 3)).save(tmp_path / "pictures/frame 12.png")
    write_frames(tmp_path, ["a.onnx", "b.onnx"])
    page = read_page(tmp_path, recorded(candidate("a.onnx", 0.1), candidate("b.onnx", 0.4)))
    assert images(page) == ["frame 12", "frame by frame", "errors by distance, edges, brightness"]
    assert page.count("src='data:image/png;base64,") == 3
    assert not re.search(r"(src|href)='(?!data:)", page)


def test_errors_at_edges_and_stability_are_the_records(tmp_path: Path) -> None:
    one = candidate("a.onnx", 0.3)
    one["stability"] |= {"flicker": 0.0625, "sensor_flicker": None}
    shown = tables(read_page(tmp_path, recorded(one)))
    (edges,) = [table for table in shown if "elsewhere: delta1" in table[0]]
    cells = dict(zip(*edges, strict=True))
    for row in one["breakdown"]["edges"]:
        assert cells[f"{row['name']}: RMSE, m"] == ("-" if row["rmse"] is None else f"{row['rmse']:.3f}")
    (stability,) = [table for table in shown if "flicker" in table[0]]
    cells = dict(zip(*stability, strict=True))
    assert (cells["flicker"], cells["sensor&#x27;s flicker"], cells["scale drift"]) == ("6.2%", "-", "0.0%")
    assert cells["frames"] == str(FRAMES)
    (latency,) = [table for table in shown if "infer: p95, ms" in table[0]]
    assert dict(zip(*latency, strict=True))["infer: p95, ms"] == "60.00"


def test_a_file_that_failed_is_named_and_keeps_its_number(tmp_path: Path) -> None:
    failed = {"name": "broken.onnx", "file": "/runs/broken.onnx", "status": "failed", "error": "<no> network"}
    record = recorded(failed, candidate("a.onnx", 0.1))
    page = read_page(tmp_path, record)
    assert "<li>broken.onnx: <span class='bad'>&lt;no&gt; network</span></li>" in page
    (row,) = results(record)
    assert row[:2] == ["2", "a.onnx"]
    with open(tmp_path / "summary.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["status"], first["error"], first["sensor/delta1"]) == ("failed", "<no> network", "")
    quality = record["candidates"][1]["quality"]["sensor"]
    assert float(second["sensor/delta1"]) == quality["delta1"]
    assert float(second["infer/p95_ms"]) == 60
    assert second["stability/frames"] == str(FRAMES)


def test_what_a_broken_off_run_has_is_shown(tmp_path: Path) -> None:
    opened = [{"name": "a.onnx", "file": "/runs/a.onnx", "status": "incomplete"}]
    nothing = new_record("failed", candidates=opened, error="KeyboardInterrupt")
    page = read_page(tmp_path, nothing)
    assert "KeyboardInterrupt" in page
    assert tables(page) == []
    part = candidate("a.onnx", 0.1) | {"status": "incomplete"}
    page = read_page(tmp_path, recorded(part, problem="unplugged"))
    assert "<li>a.onnx: <span class='bad'>incomplete</span></li>" in page
    assert tables(page)[0][1][1] == "a.onnx"


def test_frames_of_which_nothing_is_known_make_a_page_of_dashes(tmp_path: Path) -> None:
    one = candidate("a.onnx", 0.1) | {"breakdown": ErrorBreakdown(CAP).compute(), "stability": Stability().compute()}
    unknown = dict.fromkeys(one["quality"]["sensor"], None) | {"frames": 0}
    page = read_page(tmp_path, recorded(one | {"quality": {"sensor": unknown}}, coverage=None))
    assert tables(page)[0][1][6:11] == ["0", "-", "-", "-", "-"]


def test_the_terminal_shows_the_same_table(capsys: pytest.CaptureFixture[str]) -> None:
    record = recorded(candidate("a.onnx", 0.1), problem="unplugged after 6 frames")
    show_sensor(record)
    shown = capsys.readouterr().out
    assert "Problem: unplugged after 6 frames" in shown
    for cell in results(record)[0]:
        assert cell in shown
    show_sensor(new_record("failed", candidates=[]))
    assert capsys.readouterr().out == ""


def test_frames_are_read_by_candidate_and_a_blank_is_not_a_number(tmp_path: Path) -> None:
    write_frames(tmp_path, ["a, b.onnx", "c.onnx"])
    frames = read_frames(tmp_path / "frames.csv")
    assert set(frames) == {"a, b.onnx", "c.onnx"}
    np.testing.assert_array_equal(frames["c.onnx"]["frame"], range(FRAMES))
    np.testing.assert_allclose(frames["c.onnx"]["rmse"], [0, np.nan, 0.2, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(("count", "group"), [(1, 1), (7, 3), (9, 3), (5, 8)])
def test_points_of_a_long_run_are_means_of_what_is_known(count: int, group: int) -> None:
    values = np.random.default_rng(count).normal(size=count)
    values[::4] = np.nan
    expected = []
    for start in range(0, count, group):
        known = [value for value in values[start : start + group] if value == value]
        expected.append(sum(known) / len(known) if known else np.nan)
    np.testing.assert_allclose(means(values, group), expected)


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    write_frames(tmp_path, ["a.onnx"], frames=10 * POINTS + 1)
    assert len(read_page(tmp_path, recorded(candidate("a.onnx", 0.1)))) < 500_000
