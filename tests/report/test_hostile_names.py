"""Names out of files (sets, frames, networks, options) on pages, in tables and in figures: shown as they are."""

import re
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from mde.data.sample import Sample
from mde.records import new_record, write_record
from mde.report import html
from mde.report.comparison_page import comparison_page
from mde.report.pictures import comparison_sheet, contact_sheet, picture_sheet, save_picture, sheet_path
from mde.report.plots import blank, png
from mde.report.run_page import write_report
from mde.report.sweep_page import csv_text
from mde.report.terminal import print_table, say, show_cost, show_quality
from tests.test_names import HOSTILE

QUALITY = {"protocol": "inverse_depth", "alignment": "per_frame", "frames": 3, "delta1": 0.5, "rmse": 1.0, "mae": 1.0}
QUALITY |= {"abs_rel": 0.2}
TIMES = {"threads": 1, "runs": 3, "precision": "fp32", "status": "measured", "fps": 1.0, "peak_rss_mb": 1.0}
TIMES |= {"p50_ms": 1.0, "p95_ms": 1.0, "p99_ms": 1.0, "speedup_vs_reference": 1.0}


class Read(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        assert not any(key.startswith("on") for key, _ in attributes)

    def handle_data(self, data):
        self.text += data


def record_of(name: str) -> dict:
    record = new_record("complete", model={"name": name, "file_bytes": 1}, quality={name: QUALITY}, notes=[name])
    record |= {"baselines": {"vertical_ramp": {name: QUALITY}}, "validation": {name: QUALITY}, "error": name}
    return record | {"before": {"model": {"name": name}, "quality": {name: QUALITY}}, "latency": {name: TIMES}}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_page_shows_names_as_text(name, tmp_path):
    write_record(tmp_path, record_of(name))
    save_picture(Image.new("RGB", (8, 6)), sheet_path(tmp_path, name))
    page = Read(write_report(tmp_path).read_bytes().decode())
    assert page.text.count(html.utf8(name)) >= 6
    assert not page.tags & {"script", "bold", "b", "x"}
    assert [path.parent for path in tmp_path.rglob("*.png")] == [tmp_path / "pictures"]


def test_a_comparison_shows_names_as_text(tmp_path):
    candidates = []
    for name in (name for name in HOSTILE if len(name) < 30):
        model, times = {"input": [64, 64], "file_bytes": 1}, TIMES | {"baseline": name}
        entry = {"name": name, "file": f"{tmp_path}/a.onnx", "engine": name, "precision": name, "model": model}
        quality = {"nyu/<i>": QUALITY, "<b>other": QUALITY}
        candidates.append(entry | {"status": "complete", "quality": quality, "latency": {name: times}})
        candidates.append(entry | {"status": "failed", "error": name})
    ramp = {"vertical_ramp": {"nyu/<i>": QUALITY}}
    record = new_record("complete", candidates=candidates[:2], baselines=ramp)
    record["candidates"] = [*candidates[:8], *candidates[9::2]]
    page = Read(comparison_page(tmp_path, record).encode().decode())
    assert all(html.utf8(candidate["name"]) in page.text for candidate in record["candidates"])
    assert not page.tags & {"script", "bold", "x", "i", "b"}


@pytest.mark.parametrize("name", HOSTILE)
def test_tables_in_the_terminal_show_names_as_they_are(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    say(name)
    assert capsys.readouterr().out.encode().count(b"\n") == 1
    show_quality(record_of(name))
    show_cost(record_of(name))
    print_table([name, "b"], [[name, "1"]], name)
    printed = re.sub(r"\s", "", capsys.readouterr().out)
    assert "\x1b" not in printed
    if len(name) < 30 and name.isprintable():
        assert printed.count(re.sub(r"\s", "", name)) >= 3


def test_figures_show_names_as_they_are():
    depth = torch.linspace(4, 1, 24)[None, :, None].expand(1, 24, 32).contiguous()

    def sheet(*names: str) -> Image.Image:
        samples = [Sample(image, depth, depth > 0, name, name) for name in names]
        return picture_sheet(samples, predict, cap=10)

    def predict(_: Sample) -> torch.Tensor:
        return 1 / depth[None]

    image = torch.zeros(3, 24, 32, dtype=torch.uint8)
    assert sheet("$x^{$", "x" * 500).size == sheet("nyu", "nyu").size, "a name takes the pictures' place"
    names = ["\udcff.png", "$x^{$", "\x1b[2J"]
    sample = Sample(image, depth, depth > 0, "$_{", "0")
    comparison_sheet([sample], dict.fromkeys(names, predict), cap=10)
    contact_sheet([(name, image.permute(1, 2, 0).numpy()) for name in names])


def test_what_stands_between_dollars_is_no_formula():
    figure = blank(2, 2)
    figure.subplots().set_title("$x^{$ \udcff\x1b")
    assert png(figure).startswith(b"\x89PNG")
    assert figure.axes[0].get_title() == "$x^{$ \\udcff\\x1b"


def test_names_that_are_no_utf8_can_be_written_to_a_summary():
    assert csv_text([{"name": "\udcff.png", "b,": 1}]).encode().decode().splitlines()[1] == "\\udcff.png,1"
