"""What takes TensorRT's engines to a machine with a GPU; no test here needs one."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_engines
from mde.jetson.cudart import present_device
from mde.models import save_model
from tests.export import random_network


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 500])
def test_what_is_cut_into_parts_is_joined_again(length, tmp_path):
    content = np.random.default_rng(0).bytes(length)
    gpu_engines.split(bytes(3000), tmp_path, 10)  # whose parts must not stay
    count = gpu_engines.split(content, tmp_path, 10)
    parts = sorted(tmp_path.glob("part.*"))
    assert len(parts) == count
    assert all(part.stat().st_size < 10 for part in parts)
    assert gpu_engines.join(tmp_path) == content


def test_a_part_that_is_missing_or_damaged_is_named_in_one_line(tmp_path):
    gpu_engines.split(b"some content", tmp_path, 5)
    (tmp_path / "part.001").write_bytes(b"othe")
    with pytest.raises(SystemExit, match=r"not those that parts\.json is of"):
        gpu_engines.join(tmp_path)
    (tmp_path / "part.001").unlink()
    with pytest.raises(SystemExit, match=r"part\.001: has not arrived"):
        gpu_engines.join(tmp_path)


def test_everything_that_the_library_loads_travels():
    pytest.importorskip("tensorrt_rtx")
    names = [name for name, path in gpu_engines.library_files() if path.stat().st_size]
    for wanted in (
        "site/tensorrt_rtx/__init__.py",
        r"site/tensorrt_rtx_libs/libtensorrt_rtx\.so",
        r"site/libcudart\.so",
    ):
        assert any(re.match(wanted, name) for name in names), wanted


def test_distances_are_shares_of_each_images_range_and_no_number_is_infinitely_far():
    reference = np.array([[0.0, 2.0], [10.0, 50.0]])
    found = gpu_engines.distances(np.array([[0.1, 2.0], [10.0, 52.0]]), reference)
    assert found == pytest.approx({"largest": 0.05, "mean": (0.05 + 0 + 0 + 0.05) / 4})
    assert gpu_engines.distances(np.array([[np.nan, 2.0], [10.0, 50.0]]), reference)["largest"] == np.inf


def test_the_table_has_a_row_for_every_engine():
    found = {"largest": 0.01, "mean": 0.001, "p50_ms": 2.0, "compute_ms": 1.0}
    results = {"a": {"fp32": found, "fp16": found | {"compute_ms": 0.5}}}
    assert gpu_engines.table(results).splitlines()[3] == "| a, FP16 | 1.00 | 0.100 | 2.000 | 0.500 | 2.00 |"


@pytest.mark.skipif(present_device()["device"] is not None, reason="a GPU is there, where the engines run")
def test_without_a_gpu_the_engines_are_built_and_one_line_says_that_they_did_not_run(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(gpu_engines, "CALIBRATION", 2)
    monkeypatch.setattr(gpu_engines, "IMAGES", 1)
    save_model(random_network(reference=False), tmp_path / "tiny.safetensors", input=[64, 64])
    for name, content in gpu_engines.graph_files([tmp_path / "tiny.safetensors"]):
        path = tmp_path / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (cudart,) = (path for name, path in gpu_engines.library_files() if name.endswith(gpu_engines.CUDART))
    (tmp_path / "unpacked/site").mkdir()
    shutil.copy(cudart, tmp_path / "unpacked/site")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    with pytest.raises(SystemExit, match="1 networks: engines built, not run"):
        gpu_engines.measure(tmp_path, None)
    assert re.findall(r"built: tiny, (\w+)", capsys.readouterr().out) == ["fp32", "fp16", "int8"]
    assert len(list(Path(tmp_path, "unpacked/graphs/tiny").glob("*.engine"))) == 3


def test_what_was_not_unpacked_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match="first unpack"):
        gpu_engines.measure(tmp_path, None)
