from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mde.engines import export_openvino, open_engine
from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
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
    assert kinds <= {"Conv", "Clip", "Add", "Relu", "Resize"}


@pytest.mark.parametrize("opset", [13, 17])
def test_the_heads_doubling_is_no_resize_and_every_engine_computes_the_same(tmp_path: Path, opset: int) -> None:
    model = random_network(border="replicate")
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    path = tmp_path / "model.onnx"
    export_onnx(graph, path, (64, 96), opset)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("Resize") == 4
    assert "Pad" not in kinds, "TensorRT before 8.6 pads with zeros alone"
    export_openvino(path, tmp_path / "model.xml")
    image = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        expected = ImageGraph(model, model.mean, model.std)(image).numpy()
    for engine, file in (("onnxruntime", path), ("openvino", tmp_path / "model.xml")):
        found = open_engine(engine, file, 1)(image.numpy())
        assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected), engine


def test_a_border_of_pixels_is_exported_where_kernels_stay(tmp_path: Path) -> None:
    model = random_network(border="replicate")
    export_onnx(deployable(model, same_kernels=True), tmp_path / "model.onnx", (64, 96))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image).numpy()
    found = open_engine("onnxruntime", tmp_path / "model.onnx", 1)(image.numpy())
    assert np.abs(found - expected).max() < 1e-4 * np.ptp(expected)


def test_the_published_graph_keeps_what_the_rewrites_remove_and_computes_the_same(tmp_path: Path) -> None:
    model = random_network(reference=True)
    image = torch.randn(1, 3, 64, 96)
    outputs = {}
    for name, graph, as_published in (("published", model, True), ("ours", deployable(model), False)):
        path = tmp_path / f"{name}.onnx"
        export_onnx(graph, path, (64, 96), as_published=as_published)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs[name] = session.run(None, {"image": image.numpy()})[0]
    assert "Pad" in {node.op_type for node in onnx.load(tmp_path / "published.onnx").graph.node}
    np.testing.assert_allclose(outputs["ours"], outputs["published"], rtol=1e-4, atol=1e-4 * outputs["ours"].max())


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("opset", [13, 17])
def test_an_image_graph_takes_the_image_itself(layout: str, dtype: str, opset: int, tmp_path: Path) -> None:
    model = random_network()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    normalised = (pixels / 255.0 - np.array(model.mean)) / np.array(model.std)
    with torch.no_grad():
        expected = model(torch.from_numpy(normalised).permute(2, 0, 1)[None].float()).numpy()
    export_onnx(
        ImageGraph(deployable(model), model.mean, model.std, layout, dtype), tmp_path / "m.onnx", (64, 96), opset
    )
    graph = onnx.load(tmp_path / "m.onnx").graph
    kind = {"uint8": onnx.TensorProto.UINT8, "float32": onnx.TensorProto.FLOAT}[dtype]
    assert graph.input[0].type.tensor_type.elem_type == kind
    assert (graph.node[0].op_type == "Cast") == (dtype == "uint8")  # TensorRT takes bytes only before a Cast
    image = (pixels if layout == "nhwc" else pixels.transpose(2, 0, 1))[None].astype(dtype)
    found = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(found.run(None, {"image": image})[0], expected, atol=1e-4 * np.ptp(expected))


@pytest.mark.parametrize("wrong", [{"layout": "hwc"}, {"dtype": "int8"}])
def test_an_unknown_layout_or_type_of_image_is_an_error(wrong: dict[str, str]) -> None:
    model = random_network()
    with pytest.raises(MdeError, match="unknown; choose from"):
        ImageGraph(model, model.mean, model.std, **wrong)


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
