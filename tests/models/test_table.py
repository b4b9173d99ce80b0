"""`python -m mde.models`, and what it counts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mde.errors import MdeError
from mde.models import __main__ as table
from mde.models import build_model
from mde.models.counts import layer_parameters, listed_memory, multiply_adds
from mde.models.registry import NETWORKS
from mde.speed import forward


class Shared(nn.Module):
    """A module with two parents, called once; a container; a function's result; a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(7))
        self.activation = nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), self.activation)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return F.relu(self.body(image))


def test_listed_memory_follows_its_rule() -> None:
    model: Any = Shared()
    pixels = 8 * 16
    image, convolution, activation = 3 * pixels, 5 * pixels, 5 * pixels
    elements = image + 2 * (convolution + 2 * activation) + (5 * 3 * 9 + 5)
    assert listed_memory(model, (8, 16)) == pytest.approx(4 * elements / 2**20, rel=1e-12)
    assert layer_parameters(model) == 5 * 3 * 9 + 5


def test_attention_is_counted_as_the_two_products_that_it_is() -> None:
    model: Any = build_model("dpt_large", blocks=1)
    tokens, width = 1 + 4 * 6, 1024
    encoder: Any = model.encoder
    linear = sum(module.weight.numel() for module in encoder.modules() if isinstance(module, nn.Linear))
    model.forward = encoder.forward
    counted = multiply_adds(model, (64, 96))
    embedding = encoder.patch_embed.proj.weight.numel() * 4 * 6
    assert counted == embedding + tokens * linear + 2 * tokens * tokens * width


def test_never_executed_parameters_make_up_the_published_totals(shared: Path) -> None:
    for name in ("midas_small", "dpt_hybrid", "dpt_large"):
        shapes = json.loads((shared / "reference" / f"{name}_state.json").read_text())
        statistics = ("running_mean", "running_var", "num_batches_tracked")
        total = sum(torch.Size(shape).numel() for key, shape in shapes.items() if not key.endswith(statistics))
        with torch.device("meta"):
            model = NETWORKS[name]()
        assert sum(parameter.numel() for parameter in model.parameters()) + model.never_executed == total


def test_the_table_holds_every_network_and_the_papers_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(table, "NETWORKS", ["midas_small"])
    monkeypatch.setattr(sys, "argv", ["mde.models", "--no-measure"])
    monkeypatch.setenv("COLUMNS", "200")
    table.main()
    printed = capsys.readouterr().out
    for figure in ("midas_small", "16,600,929", "21,320,545", "4.595", "867.02"):
        assert figure in printed
    assert "peak" not in printed


def test_a_forward_pass_is_measured_in_its_own_process() -> None:
    found = forward.measure_forward("midas_small", (32, 32))
    assert set(found) == {"idle_mb", "peak_mb", "ms"}
    assert found["peak_mb"] - found["idle_mb"] > 4 * 16.6, "the weights alone"
    assert found["ms"] > 0


def test_a_measurement_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, "", "")

    monkeypatch.setattr(subprocess, "run", killed)
    with pytest.raises(MdeError, match=r"midas_small.*exit status -9.*--no-measure"):
        forward.measure_forward("midas_small", (32, 32))


def test_a_wrong_size_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mde.models", "--size", "100", "64"])
    with pytest.raises(SystemExit, match=r"^error: size=\[100, 64\]: height and width as multiples of 32.*$"):
        table.main()
