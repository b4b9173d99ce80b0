"""The Jetson bundle: its commands run where they can be, and its files say what the JetPack takes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mde.data.folder import FolderFrames
from mde.deploy.bundle import JETPACKS, board_graph, check_device, write_bundle
from mde.engines.request import Request
from mde.errors import MdeError
from mde.evaluation.quality import evaluate
from mde.export import ImageGraph, deployable
from mde.export.onnx import opset_of
from mde.jetson import FILES
from tests.conftest import write_frames
from tests.export import random_network
from tests.test_config import composed

torch.set_num_threads(1)
SIZE = (64, 96)


def device(name: str):
    return composed("checkpoint=/x", f"device={name}", script="deploy").device


def bundle(name: str, precision: str, tmp_path: Path) -> Path:
    model = random_network()
    frames = FolderFrames(write_frames(tmp_path / "frames"))
    images = [np.random.default_rng(seed).integers(0, 256, (1, *SIZE, 3), dtype=np.uint8) for seed in range(3)]
    (tmp_path / "work").mkdir()
    graph = ImageGraph(deployable(model), model.mean, model.std)
    request = Request(model.name, graph, SIZE, precision, tmp_path / "work", images)
    request, source = board_graph(request, device(name))
    model_entry = {"name": "midas_small", "parameters": 1}
    write_bundle(request, source, device(name), frames, 4, tmp_path / "bundle", model_entry)
    return tmp_path / "bundle"


@pytest.mark.parametrize(
    ("name", "precision"), [("jetson_nano", "fp16"), ("jetson_xavier_nx", "int8"), ("orin_nano", "fp32")]
)
def test_the_folder_is_whole_and_fits_the_jetpack(name: str, precision: str, tmp_path: Path) -> None:
    folder, pack = bundle(name, precision, tmp_path), JETPACKS[device(name).jetpack]
    expected = {*FILES, "model.onnx", "model.onnx.json", "frames.npz", "README.md"}
    assert {path.name for path in folder.iterdir()} == expected
    graph = onnx.load(folder / "model.onnx")
    assert opset_of(graph) == pack.opset
    kind = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}[pack.dtype]
    assert graph.graph.input[0].type.tensor_type.elem_type == kind
    quantized = any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    assert quantized == (precision == "int8")
    described = json.loads((folder / "model.onnx.json").read_text())
    assert (described["precision"], described["dtype"], described["input"]) == (precision, pack.dtype, list(SIZE))
    readme = (folder / "README.md").read_text()
    trtexec = next(line for line in readme.splitlines() if "trtexec --onnx" in line)
    assert ("--fp16" in trtexec) == (precision != "fp32")
    assert ("--int8" in trtexec) == (precision == "int8")
    assert pack.workspace in trtexec
    assert ("--dla" in readme) == device(name).dla


def test_stored_outputs_are_evaluated_with_numpy_alone_as_the_package_does(tmp_path: Path) -> None:
    folder = bundle("jetson_nano", "fp16", tmp_path)
    arrays = np.load(folder / "frames.npz")
    answers = iter(torch.from_numpy(arrays["reference"])[:, None, None])
    frames = FolderFrames(tmp_path / "frames")
    expected = evaluate(lambda sample: next(answers), frames, limit=4)
    numpy = Path(np.__file__).parent.parent
    # -S: without this environment's packages, so that anything but numpy would be missing.
    code = (
        f"import sys, runpy; sys.path[:0] = ['.', {str(numpy)!r}]; sys.argv[1:] = ['evaluate', '--outputs', 'stored']; "
    )
    code += "sys.modules.update(torch=None, tensorrt=None, mde=None); runpy.run_path('runner.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "metrics.json").read_text())["quality"][frames.name]
    for key in ("frames", "delta1", "rmse", "mae", "abs_rel"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "precision", "line"),
    [
        ("cpu", "fp16", "is no Jetson"),
        ("jetson_nano", "int8", "does not compute in INT8; choose quantize=float16"),
        ("orin_nano", "dynamic", "TensorRT has none"),
    ],
)
def test_what_a_device_cannot_do_is_refused(name: str, precision: str, line: str) -> None:
    with pytest.raises(MdeError, match=line):
        check_device(device(name), precision)
