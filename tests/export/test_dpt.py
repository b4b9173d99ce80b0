"""Transformers in every engine's file; what holds for every network is in the other files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mde.engines import open_engine, write_target
from mde.engines.request import Request
from mde.export import ImageGraph, deployable, export_onnx
from mde.export.onnx import opset_of
from mde.models import build_model
from mde.models.dpt import StandardisedConv2d
from mde.pruning.structure import channel_groups, keep_channels

SIZE = (64, 64)
NETWORKS = ["dpt_hybrid", "dpt_large"]


def lively(name: str, pruned: bool = False) -> Any:
    torch.manual_seed(0)
    model: Any = build_model(name, blocks=2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(1)
        model.encoder.pos_embed.normal_()
        model.decoder.head.conv3.weight.mul_(100)
        model.decoder.head.conv3.bias.fill_(3)
    if pruned:
        groups = channel_groups(model)
        keep_channels(model, groups, {group.name: torch.arange(0, group.width, 2) for group in groups})
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_deployable_network_computes_the_same(name: str) -> None:
    model = lively(name)
    model.reference = True
    model.decoder.fusion2.reference = True
    rewritten = deployable(model)
    image = torch.randn(1, 3, *SIZE)
    with torch.no_grad():
        expected, found = model(image), rewritten(image)
    assert expected.std() > 1e-2
    assert (found - expected).abs().max() <= 1e-5 * expected.max()
    assert not any(isinstance(module, StandardisedConv2d) for module in rewritten.modules())
    assert not rewritten.get_submodule("decoder.fusion2").reference
    assert model.reference, "the network itself stays as it is"


PRUNED_HYBRID = ("dpt_hybrid", True)
OTHERS = [("dpt_hybrid", False), ("dpt_large", False), ("dpt_large", True)]


@pytest.fixture(
    scope="module", params=[PRUNED_HYBRID, *(pytest.param(form, marks=pytest.mark.whole) for form in OTHERS)], ids=str
)
def request_of(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Request:
    name, pruned = request.param
    model = lively(name, pruned)
    folder = tmp_path_factory.mktemp(name)
    return Request(name, ImageGraph(deployable(model), model.mean, model.std).eval(), SIZE, "fp32", folder)


@pytest.mark.parametrize(
    ("target", "file"),
    [("onnxruntime", "m.onnx"), ("openvino", "m.xml"), pytest.param("litert", "m.tflite", marks=pytest.mark.whole)],
)
def test_every_engine_computes_what_the_network_does(request_of: Request, target: str, file: str) -> None:
    pruned = next(m for m in request_of.graph.modules() if hasattr(m, "num_heads")).num_heads < 12
    if target == "litert" and pruned:
        pytest.skip("the slowest converter: the dense network is enough")
    path = request_of.folder / file
    write_target(target, request_of, path)
    image = np.random.default_rng(0).integers(0, 256, (1, *SIZE, 3), np.uint8)
    with torch.no_grad():
        expected = request_of.graph(torch.from_numpy(image)).numpy()
    found = np.asarray(open_engine(target, path, 1)(image)).reshape(expected.shape)
    assert np.ptp(expected) > 1e-2
    assert np.abs(found - expected).max() <= 1e-3 * np.ptp(expected)


@pytest.mark.parametrize("name", ["dpt_hybrid", pytest.param("dpt_large", marks=pytest.mark.whole)])
def test_an_old_opset_has_no_shapes_to_compute(name: str, tmp_path: Path) -> None:
    model = lively(name)
    export_onnx(ImageGraph(deployable(model), model.mean, model.std).eval(), tmp_path / "m.onnx", SIZE, opset=13)
    graph = onnx.load(tmp_path / "m.onnx")
    assert opset_of(graph) == 13
    dynamic = {"Shape", "Gather", "ConstantOfShape", "Where", "Loop", "If", "Pad"}
    assert not dynamic & {node.op_type for node in graph.graph.node}
    sizes = [node for node in graph.graph.node if node.op_type == "Resize"]
    assert len(sizes) == 5, "four decoder steps and the head; the position embedding is a constant"


@pytest.mark.whole
@pytest.mark.parametrize("name", NETWORKS)
def test_tensorrt_rtx_builds_an_int8_engine(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "cache"))
    model = lively(name)
    images = [np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3), np.uint8) for seed in range(2)]
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    request = Request(name, graph, (64, 64), "int8", tmp_path, images, library="tensorrt_rtx")
    write_target("tensorrt", request, tmp_path / "m.engine")
    assert (tmp_path / "m.engine").stat().st_size > 1e6
