import csv
import json

import numpy as np
import pytest
import torch
from matplotlib.mathtext import MathTextParser
from PIL import Image

from mde.data.sample import Sample
from mde.engines import LayerTime
from mde.errors import MdeError
from mde.models import build_model
from mde.records import describe_model, new_record, read_record, write_record
from mde.report import html
from mde.report.layer_table import write_layers
from mde.report.pictures import colour, comparison_sheet, contact_sheet, picture_sheet, stack
from mde.report.plots import curves
from mde.report.run_page import read_logs, write_report


def write_log(run_dir, version, rows):
    path = run_dir / f"logs/version_{version}/metrics.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "epoch", "train/loss"])
        writer.writeheader()
        writer.writerows({"step": step, "epoch": 0, "train/loss": loss} for step, loss in rows)


def test_curves_of_a_resumed_run_are_joined_and_what_was_repeated_counts_once(tmp_path):
    write_log(tmp_path, 0, [(10, 1.0), (20, 0.9), (30, 0.8)])
    write_log(tmp_path, 10, [(50, 0.5)])
    write_log(tmp_path, 2, [(30, 0.7), (40, 0.6)])
    assert read_logs(tmp_path) == {"train/loss": [(10, 1.0), (20, 0.9), (30, 0.7), (40, 0.6), (50, 0.5)]}


def test_a_page_escapes_what_it_shows_and_marks_a_run_that_did_not_end(tmp_path):
    record = new_record("incomplete", model={"name": "midas_small"}, quality={}, notes=["<script>alert(1)</script>"])
    record["quality"] = {"<b>set": {"protocol": "inverse_depth", "alignment": "per_frame", "delta1": 0.5, "frames": 3}}
    write_record(tmp_path, record)
    page = write_report(tmp_path).read_text()
    assert "<script>" not in page
    assert "&lt;b&gt;set" in page
    assert "class='bad'" in page


def test_a_page_shows_names_of_files_that_are_no_text(tmp_path):
    write_record(tmp_path, new_record("failed", error="Stra\udcdfe.png: damaged", model={"name": "midas_small"}))
    assert r"Stra\udcdfe.png: damaged" in write_report(tmp_path).read_text()


def test_dollars_in_a_name_are_no_formula(monkeypatch):
    monkeypatch.setattr(MathTextParser, "parse", lambda *_, **__: pytest.fail("taken for a formula"))
    name = "invoice_$5_and_$6"
    contact_sheet([(name, np.zeros((4, 8, 3), np.uint8))])
    sample = Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(1, 8, 8), torch.ones(1, 8, 8) > 0, name, "$0$")
    comparison_sheet([sample], {name: lambda sample: torch.ones(1, 1, 8, 8)}, 10.0)
    curves({f"{name}/delta1": [(0, 0.5)]})


@pytest.mark.parametrize(
    ("compared_with", "frames", "parity", "sentence"),
    [
        (None, 3, None, "not compared with PyTorch: the file came without its network"),
        ("PyTorch", 0, None, "not compared with PyTorch: nothing was predicted"),
        (
            "PyTorch, where it is fake-quantized",
            3,
            {"largest": 0.25, "frames": 2},
            "at most 0.25 of the output&#x27;s range from PyTorch, where it is fake-quantized, first 2 frames",
        ),
    ],
)
def test_the_page_says_why_a_prediction_was_not_compared_with_pytorch(
    tmp_path, compared_with, frames, parity, sentence
):
    record = new_record("complete", model={"name": "midas_small"}, quality={})
    record["prediction"] = {
        "source": "photo.png",
        "network": "model.onnx in onnxruntime, fp32",
        "frames": frames,
        "seconds": 1.0,
        "failed": {},
        "parity": parity,
        "compared_with": compared_with,
    }
    write_record(tmp_path, record)
    assert sentence in write_report(tmp_path).read_text()


def test_layers_of_an_earlier_deployment_are_not_shown_of_a_run_that_timed_none(tmp_path):
    write_layers(tmp_path, [LayerTime("conv_stem", "Conv", 1.0)])
    record = new_record("complete", model={"name": "midas_small"})
    write_record(tmp_path, record)
    assert "conv_stem" not in write_report(tmp_path).read_text()
    parity = {"largest": 0.0, "mean": 0.0, "frames": 1, "data": "nyu", "engine": "onnxruntime"}
    entry = {"target": "onnxruntime", "precision": "fp32", "file": "model.onnx", "status": "measured", "parity": parity}
    write_record(tmp_path, record | {"deployment": entry})
    assert "conv_stem" in write_report(tmp_path).read_text()


def test_cells_are_text_unless_they_say_that_they_are_html():
    table = html.table(["a<b"], [["<i>"], [html.Html("<b>")]])
    assert table == "<table><tr><th>a&lt;b</th></tr><tr><td>&lt;i&gt;</td></tr><tr><td><b></td></tr></table>"


def test_the_record_is_json_without_nan(tmp_path):
    write_record(tmp_path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": (1, 2)}})
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"a": None, "b": [None, 1.5], "c": {"d": [1, 2]}}


def test_a_folder_without_a_record_is_an_error_that_names_it(tmp_path):
    with pytest.raises(MdeError, match=r"metrics\.json"):
        read_record(tmp_path)


def test_multiply_adds_and_parameters_of_the_published_network():
    model = build_model("midas_small", reference=True)
    described = describe_model(model, (256, 256))
    assert described["parameters"] == 16_600_929
    assert described["macs"] == pytest.approx(4.595e9, rel=0.005)
    assert described["sparsity"] == pytest.approx(0, abs=1e-6)  # a random weight may happen to be zero


def test_zeroed_weights_are_not_counted_as_nonzero():
    model = build_model("midas_small", encoder="lite0")
    before = describe_model(model, (64, 64))["nonzero_parameters"]
    with torch.no_grad():
        model.decoder.head.conv1.weight.zero_()
    zeroed = model.decoder.head.conv1.weight.numel()
    assert describe_model(model, (64, 64))["nonzero_parameters"] == before - zeroed


def test_colours_run_from_low_to_high_and_unknown_is_grey():
    picture = colour(np.array([[0.0, 1.0, np.nan]]), 0, 1)
    assert picture.shape == (1, 3, 3)
    assert picture[0, 0].sum() < picture[0, 1].sum()
    assert len(set(picture[0, 2].tolist())) == 1


def test_a_picture_sheet_has_a_row_a_frame_even_without_a_valid_pixel():
    depth = torch.linspace(4, 1, 24)[None, :, None].expand(1, 24, 32).contiguous()
    seen = Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), depth, depth > 0, "a", "0")
    blind = Sample(seen.image, torch.zeros_like(depth), torch.zeros_like(depth, dtype=torch.bool), "a", "1")
    one = picture_sheet([seen], lambda sample: 1 / depth[None], cap=10)
    two = picture_sheet([seen, blind], lambda sample: 1 / depth[None], cap=10)
    assert two.height > 1.8 * one.height
    assert stack([one, two]).size == (one.width, one.height + two.height)
    assert isinstance(one, Image.Image)


def test_a_comparison_has_a_column_for_each_predictor_and_asks_each_once_a_frame():
    depth = torch.linspace(4, 1, 24)[None, :, None].expand(1, 24, 32).contiguous()
    samples = [
        Sample(torch.zeros(3, 24, 32, dtype=torch.uint8), depth, depth > 0, "a", str(frame)) for frame in range(2)
    ]
    asked = []

    def predict(sample):
        asked.append(sample.frame)
        return 1 / depth[None]

    two = comparison_sheet(samples, {"one": predict, "other": predict}, cap=10)
    assert asked == ["0", "0", "1", "1"]
    one = comparison_sheet(samples[:1], {str(number): predict for number in range(6)}, cap=10)
    assert one.width > two.width
    assert one.height < two.height
