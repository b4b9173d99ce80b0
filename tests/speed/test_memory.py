"""Memory is measured in a process that holds the engine and nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
from mde.speed.memory import peak_memory
from tests.conftest import ROOT
from tests.export import random_network

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_network()
    graph = ImageGraph(deployable(model), model.mean, model.std)
    path = tmp_path_factory.mktemp("files") / "model.onnx"
    export_onnx(graph, path, (64, 96))
    return path


def test_a_process_that_runs_an_engine_loads_no_pytorch(file: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom mde.engines import open_engine\n"
        f"open_engine('onnxruntime', Path({str(file)!r}), 1)\nprint(sorted({{'torch', 'openvino'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_weights_are_in_it_and_this_process_is_not(file: Path) -> None:
    image = np.zeros((1, 64, 96, 3), np.uint8)
    before = peak_memory("onnxruntime", file, image, 1)
    assert before > file.stat().st_size / 1e6 + 10
    ballast = np.ones(2**29, np.uint8)  # bytes of this process, which the child must not inherit in its figure
    assert abs(peak_memory("onnxruntime", file, image, 1) - before) < 0.5 * ballast.nbytes / 1e6


def test_what_cannot_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"half a file")
    with pytest.raises(MdeError, match=r"model\.onnx: cannot be run by onnxruntime in a process of its own"):
        peak_memory("onnxruntime", tmp_path / "model.onnx", np.zeros((1, 64, 96, 3), np.uint8), 1)
