import sys
from pathlib import Path

import pytest
import torch

from mde.engines import export_openvino
from mde.engines.openvino_core import core
from mde.errors import MdeError
from mde.export import deployable, export_onnx
from tests.export import random_network

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(deployable(random_network(narrowed=True)), path, (32, 64))
    return path


def test_names_shapes_and_float32_weights_stay(onnx_file: Path, tmp_path: Path) -> None:
    export_openvino(onnx_file, tmp_path / "new" / "model.xml")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["model.bin", "model.xml"]
    model = core().read_model(tmp_path / "new" / "model.xml")
    assert (model.input().any_name, list(model.input().shape)) == ("image", [1, 3, 32, 64])
    assert (model.output().any_name, list(model.output().shape)) == ("inverse_depth", [1, 1, 32, 64])
    weights = [node for node in model.get_ops() if node.get_type_name() == "Constant" and node.data.ndim == 4]
    assert weights
    assert {node.data.dtype.name for node in weights} == {"float32"}


def test_a_wrong_name_or_file_is_one_line(onnx_file: Path, tmp_path: Path) -> None:
    with pytest.raises(MdeError, match=r"end in \.xml"):
        export_openvino(onnx_file, tmp_path / "model.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    for path in (tmp_path / "broken.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(MdeError, match="cannot convert") as caught:
            export_openvino(path, tmp_path / "model.xml")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.xml").exists()


def test_openvino_reports_nothing_to_its_vendor() -> None:
    assert sys.modules["openvino_telemetry"] is None
    assert "openvino.tools.ovc.telemetry_stub" in sys.modules
