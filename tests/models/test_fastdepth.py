"""FastDepth, against the figures in its paper and against the peer file, which its authors' weights are in."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models import build_model
from mde.models.fastdepth import FastDepth
from mde.records import multiply_adds

SHARED = Path(os.environ.get("MDE_SHARED", "../shared"))
PEER = SHARED / "peers/fast_depth_224.tflite"


def test_counts_are_the_published_ones() -> None:
    dense, pruned = FastDepth(reference=True), FastDepth("pruned", reference=True)
    assert round(sum(p.numel() for p in dense.parameters()) / 1e6, 2) == 3.96
    assert round(multiply_adds(dense, (224, 224)) / 1e9, 2) == 0.74
    weights = sum(module.weight.numel() for module in pruned.modules() if isinstance(module, nn.Conv2d))
    assert round(weights / 1e6, 2) == 1.34
    assert round(multiply_adds(pruned, (224, 224)) / 1e9, 2) == 0.37


def test_both_orders_of_operations_compute_the_same() -> None:
    torch.manual_seed(0)
    ours = FastDepth("pruned").eval()
    with torch.no_grad():
        ours.decoder.head.norm.running_mean.fill_(0.3)
    published = FastDepth("pruned", reference=True).eval()
    published.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(ours(image), published(image), rtol=0, atol=1e-6)
    assert ours(image).std() > 1e-3


def test_a_fresh_network_predicts_alive_and_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model, image = FastDepth(), torch.randn(2, 3, 64, 96)
    for training in (True, False):
        output = model.train(training)(image)
        assert output.shape == (2, 1, 64, 96)
        assert (output > 0.3).float().mean() > 0.99
    with torch.autocast("cpu", torch.bfloat16):
        assert model(image).dtype == torch.float32


@pytest.mark.parametrize("shape", [(1, 3, 64, 80), (1, 1, 64, 64), (3, 64, 64)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(MdeError, match="fastdepth takes images of shape"):
        FastDepth("pruned")(torch.zeros(shape))


def test_an_unknown_variant_and_weights_that_there_are_not_are_refused() -> None:
    with pytest.raises(MdeError, match=r"model\.variant=tiny.*dense, pruned"):
        build_model("fastdepth", variant="tiny")
    with pytest.raises(MdeError, match="weights=none"):
        build_model("fastdepth", weights="imagenet")


class Peer:
    """The peer file: its own predictions, and its convolutions in the order in which they run."""

    def __init__(self) -> None:
        runtime = pytest.importorskip("ai_edge_litert.interpreter")
        plain = runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.interpreter = runtime.Interpreter(str(PEER), experimental_op_resolver_type=plain)
        self.interpreter.allocate_tensors()
        self.details = {detail["index"]: detail for detail in self.interpreter.get_tensor_details()}

    def predict(self, image: np.ndarray) -> np.ndarray:
        """uint8 (224, 224, 3) -> float32 (224, 224), metres."""
        source, sink = self.interpreter.get_input_details()[0], self.interpreter.get_output_details()[0]
        self.interpreter.set_tensor(source["index"], image[None])
        self.interpreter.invoke()
        scale, zero = sink["quantization"]
        return (self.interpreter.get_tensor(sink["index"]).astype(np.float32).reshape(224, 224) - zero) * scale

    def convolutions(self) -> list[tuple[Tensor, Tensor]]:
        """Weight (out, in, kernel, kernel) and bias, without their quantization."""
        orders = {"CONV_2D": (0, 3, 1, 2), "DEPTHWISE_CONV_2D": (3, 0, 1, 2)}
        return [
            (self.value(node["inputs"][1]).permute(orders[node["op_name"]]), self.value(node["inputs"][2]))
            for node in self.interpreter._get_ops_details()
            if node["op_name"] in orders
        ]

    def value(self, index: int) -> Tensor:
        quantization: dict[str, Any] = self.details[index]["quantization_parameters"]
        integers = self.interpreter.get_tensor(index).astype(np.float32)
        axis = [-1 if each == quantization["quantized_dimension"] else 1 for each in range(integers.ndim)]
        scales, zeros = (quantization[key].reshape(axis) for key in ("scales", "zero_points"))
        return torch.from_numpy((integers - zeros) * scales)


def ran(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    """The modules of a kind, in the order in which they run."""
    order: list[Any] = []
    model = copy.copy(model)
    hooks = [m.register_forward_hook(lambda m, *_: order.append(m)) for m in model.modules() if isinstance(m, kind)]
    model(torch.zeros(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    return order


@pytest.mark.skipif(not PEER.is_file(), reason="set MDE_SHARED to the folder with the peer's file")
def test_with_the_peers_weights_it_predicts_what_the_peer_does() -> None:
    peer, model = Peer(), FastDepth("pruned").eval()
    with torch.no_grad():
        convolutions, norms = ran(model, nn.Conv2d), ran(model, nn.BatchNorm2d)
        for conv, norm, (weight, bias) in zip(convolutions, norms, peer.convolutions(), strict=True):
            assert conv.weight.shape == weight.shape
            conv.weight.copy_(weight)
            norm.bias.copy_(bias)  # the peer's BatchNorms are folded: nothing is left of them but this
            norm.running_var.fill_(1 - norm.eps)
            norm.weight.fill_(1)
        photo = next((SHARED / "data/nyu/rgb").iterdir())
        image = np.array(Image.open(photo).convert("RGB").resize((224, 224)))
        expected = peer.predict(image)
        found = model(torch.from_numpy(image).float().permute(2, 0, 1)[None] / 255)[0, 0].numpy()
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.99
    assert np.abs(expected - found).mean() < 0.02 * expected.mean()
