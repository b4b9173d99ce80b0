"""Every network in `weights/` in half precision, which ends at 65,504 and is the smaller boards' only fast one."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from mde.data.synthetic import SyntheticFrames
from mde.data.transforms import resize_image
from mde.deploy.quantization.onnx_file import half_onnx
from mde.export import ImageGraph, deployable, export_onnx
from mde.models import load_model, read_metadata, shipped
from mde.models.health import lost_skips, skip_shares

ROOT = Path(__file__).resolve().parents[2]
NYU = Path(os.environ.get("MDE_SHARED", ROOT.parent / "shared")) / "data" / "nyu" / "rgb"
HELD = 10_000  # the most that any tensor may hold
ALLOWED = 0.01  # of the prediction's range


@pytest.fixture(scope="module")
def pictures():
    """Photos, rendered rooms and streets, and where the shared folder is four of NYU's test frames."""
    photos = sorted((ROOT / "docs" / "photos").glob("*.jpg")) + sorted(NYU.glob("*"))[::400]
    planes = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in photos]
    worlds = [SyntheticFrames(2, (192, 256), 7, "none", world) for world in ("rooms", "streets")]
    return planes + [frames[index].image for frames in worlds for index in range(2)]


@pytest.fixture(scope="module", params=sorted(shipped.FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def network(request, tmp_path_factory):
    """A shipped network, its graph as ONNX, and the size that it takes."""
    model, size = load_model(request.param), read_metadata(request.param)["input"]
    path = tmp_path_factory.mktemp(request.param.stem) / "float.onnx"
    export_onnx(ImageGraph(deployable(model), model.mean, model.std).eval(), path, size)
    return model, path, size


def fed(planes, size):
    """The image as the graph takes it."""
    resized = resize_image(planes, size)
    return (255 * resized).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)[None].numpy()


def everything(path):
    """A session that hands out each tensor that the graph computes."""
    graph = onnx.load(path)
    there = {output.name for output in graph.graph.output}
    names = [name for node in graph.graph.node for name in node.output if name not in there]
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return onnxruntime.InferenceSession(graph.SerializeToString())


def test_no_tensor_of_the_graph_is_above_what_half_precision_holds_with_room(network, pictures):
    _, path, size = network
    session = everything(path)
    names = [output.name for output in session.get_outputs()]
    for planes in pictures:
        found = dict(zip(names, session.run(None, {"image": fed(planes, size)}), strict=True))
        largest = {name: float(np.abs(x).max()) for name, x in found.items() if x.dtype == np.float32 and x.size}
        assert max(largest.values()) <= HELD, max(largest, key=largest.__getitem__)


def test_half_precision_predicts_what_float_does_in_pytorch_and_in_onnx_runtime(network, pictures):
    model, path, size = network
    half_onnx(path, path.with_name("half.onnx"))
    exact, engine = (onnxruntime.InferenceSession(path.with_name(name)) for name in ("float.onnx", "half.onnx"))
    half = ImageGraph(deployable(model), model.mean, model.std).eval().half()
    for planes in pictures:
        image = fed(planes, size)
        expected = exact.run(None, {"image": image})[0]
        limit = ALLOWED * np.ptp(expected)
        assert limit > 0
        with torch.no_grad():
            assert np.abs(half(torch.from_numpy(image)).float().numpy() - expected).max() < limit
        assert np.abs(engine.run(None, {"image": image})[0] - expected).max() < limit


def test_every_skip_is_heard(network, pictures):
    model, _, size = network
    image = torch.stack([(resize_image(planes, size) - 0.5) / 0.25 for planes in pictures])
    with torch.no_grad(), skip_shares(model) as shares:
        model(image)
    assert shares
    assert not lost_skips(shares)
