from pathlib import Path

import onnx
import onnx.reference
import pytest
import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.export import deployable, export_onnx
from mde.export.onnx import opset_of
from tests.export import random_network

torch.set_num_threads(1)


def shape_of(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.fixture(scope="module")
def deployed() -> nn.Module:
    return deployable(random_network())


def test_the_file_has_the_asked_opset_and_names_and_only_constant_shapes(tmp_path: Path, deployed: nn.Module) -> None:
    for opset in (13, 17):
        export_onnx(deployed, tmp_path / "model.onnx", (64, 96), opset)
        model = onnx.load(tmp_path / "model.onnx")
        assert opset_of(model) == opset
        assert [(value.name, shape_of(value)) for value in model.graph.input] == [("image", [1, 3, 64, 96])]
        assert [(value.name, shape_of(value)) for value in model.graph.output] == [("inverse_depth", [1, 1, 64, 96])]
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    assert inferred
    assert all(all(shape_of(value)) for value in inferred)
    # Nothing is left that computes a shape, a padding or a normalisation at run time.
    kinds = {node.op_type for node in model.graph.node}
    assert kinds <= {"Constant", "Identity", "Conv", "Clip", "Add", "Relu", "Pad", "Resize"}


def test_the_network_is_exported_as_in_eval_mode_and_stays_in_its_mode(tmp_path: Path) -> None:
    model = random_network().train()
    running_mean = model.encoder.bn1.running_mean.clone()
    export_onnx(model, tmp_path / "train.onnx", (32, 32))
    assert model.training
    assert torch.equal(model.encoder.bn1.running_mean, running_mean)
    export_onnx(model.eval(), tmp_path / "eval.onnx", (32, 32))
    assert (tmp_path / "train.onnx").read_bytes() == (tmp_path / "eval.onnx").read_bytes()


@pytest.mark.parametrize(("size", "opset"), [((48, 64), 17), ((64, 64), 99)])
def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(
    size: tuple[int, int], opset: int, tmp_path: Path, deployed: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(MdeError, match=f"cannot be exported to ONNX opset {opset} at {size[0]} x {size[1]}") as caught:
        export_onnx(deployed, tmp_path / "model.onnx", size, opset)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert "".join(capfd.readouterr()) == ""


def test_an_operation_unknown_to_onnx_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Unknown(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.matrix_exp(super().forward(x))

    with pytest.raises(MdeError, match="cannot be exported") as caught:
        export_onnx(Unknown(3, 1, 1), tmp_path / "model.onnx", (32, 32))
    assert "\n" not in str(caught.value)
    assert "".join(capfd.readouterr()) == ""


def test_another_opset_than_asked_for_is_an_error(
    tmp_path: Path, deployed: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **kwargs: export(*args, **kwargs | {"opset_version": 16}))
    with pytest.raises(MdeError, match="opset 16 instead of 17"):
        export_onnx(deployed, tmp_path / "model.onnx", (32, 32))
    assert not list(tmp_path.iterdir())


def test_a_pad_is_written_as_torch_computes_it(tmp_path: Path) -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.pad(super().forward(x), (1, 2, 3, 4), value=0.5)

    model = Padded(3, 1, 1)
    export_onnx(model, tmp_path / "model.onnx", (5, 6))
    image = torch.randn(1, 3, 5, 6)
    evaluator = onnx.reference.ReferenceEvaluator(str(tmp_path / "model.onnx"))
    output = evaluator.run(None, {"image": image.numpy()})[0]
    assert torch.allclose(torch.from_numpy(output), model(image), atol=1e-6)
