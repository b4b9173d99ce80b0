"""What every network can do here: the same checks of each, as a table of "ok" or the reason why not.

    python -m benchmarks.networks                                       # every network there is, 256 x 256
    python -m benchmarks.networks fastdepth:variant=pruned guidedepth --size 224 320

Random weights: whether a network trains, loses channels, is saved and computes the same in each engine does not depend
on them. The engines run the network that lost channels, which is harder to get right than the dense one.
"""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from mde.config import OptimizerConfig
from mde.engines import ENGINES, open_engine, write_target
from mde.engines.request import Request, float_onnx
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.jetson.builder import build_engine, load_tensorrt
from mde.jetson.depth import PARITY, differences
from mde.models import build_model, load_model, save_model
from mde.models.network import DepthNetwork
from mde.models.registry import NETWORKS
from mde.pruning.channels import Limits, Search, sparsity_aims
from mde.pruning.cost import dense_widths, layers_of
from mde.pruning.importance import channel_importance, weight_importance
from mde.pruning.masks import apply_masks, fine_grained_masks, layer_weights
from mde.pruning.structure import channel_groups, keep_channels
from mde.records import environment
from mde.training.module import DepthModule
from mde.training.objective import Objective
from mde.training.run import RATES

SPARSITY = 0.3
Size = tuple[int, int]


def lively(network: DepthNetwork) -> DepthNetwork:
    """`network` with BatchNorms that are not what a fresh one's are, the identity."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.num_features > 1:
                for positive in (module.weight, module.running_var):
                    nn.init.uniform_(positive, 0.7, 1.3)  # type: ignore[arg-type]
                for centred in (module.bias, module.running_mean):
                    nn.init.normal_(centred, std=0.1)  # type: ignore[arg-type]
    return network


def train_a_step(network: DepthNetwork, size: Size) -> None:
    """A step of the trimmed loss and AdamW on two images: every parameter has a gradient, and the loss falls."""
    module = DepthModule(
        copy.deepcopy(network), Objective("trimmed", 0.5, 0), OptimizerConfig(**RATES, warmup_steps=0), 1
    )
    random = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, *size, generator=random)
    depth = 1 + torch.linspace(0, 1, size[0]).view(-1, 1) + torch.rand(2, 1, *size, generator=random)

    def loss() -> Tensor:
        return module.objective(module.model(image), depth, torch.ones_like(depth, dtype=torch.bool), 0)["loss"]

    before = loss()
    before.backward()
    gradients = {name: p.grad for name, p in module.model.named_parameters() if p.requires_grad}
    without = [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()]
    assert not without, f"no finite gradient for {', '.join(without[:3])}"
    optimizer = module.configure_optimizers()["optimizer"]
    optimizer.step()
    assert loss().item() < before.item(), "the loss does not fall"


def lose_channels(network: DepthNetwork, size: Size) -> DepthNetwork:
    """A copy without SPARSITY of its parameters, in whole channels."""
    narrow = copy.deepcopy(network)
    groups = channel_groups(narrow)
    layers, dense = layers_of(narrow, groups, size), dense_widths(narrow, groups)
    aims = sparsity_aims(layers, dense, SPARSITY)
    scores = channel_importance(narrow, groups, "l1")
    keep = Search(layers, groups, dense, scores, Limits(4, 0.9, {}), "global", aims).run()
    keep_channels(narrow, groups, keep)
    share = _parameters(narrow) / _parameters(network)
    assert abs(1 - share - SPARSITY) < 0.02, f"{1 - share:.3f} of the parameters went"
    _check_output(narrow, size)
    return narrow


def zero_weights(network: DepthNetwork, size: Size) -> None:
    """A copy with SPARSITY of its parameters at zero."""
    sparse = copy.deepcopy(network)
    scores = weight_importance(sparse, layer_weights(sparse), "l1")
    apply_masks(sparse, fine_grained_masks(sparse, scores, SPARSITY, _parameters(network), "layer"))
    left = sum(int(parameter.count_nonzero()) for parameter in sparse.parameters()) / _parameters(network)
    assert abs(1 - left - SPARSITY) < 0.01, f"{1 - left:.3f} of the parameters are zero"
    _check_output(sparse, size)


def save_and_load(network: DepthNetwork, size: Size, folder: Path) -> None:
    """The file gives back a network with the same output, to the last bit."""
    save_model(network, folder / "model.safetensors")
    loaded = load_model(folder / "model.safetensors")
    assert loaded.options == network.options
    assert torch.equal(_output(network, size), _output(loaded, size)), "the loaded network computes something else"


def agree(engine: str, network: DepthNetwork, size: Size, folder: Path) -> None:
    """The engine's file computes what the network does, to 1e-3 of the output's range."""
    path = folder / f"model{ENGINES[engine].suffix}"
    write_target(engine, _request(network, size, folder), path)
    image = np.random.default_rng(0).integers(0, 256, (1, *size, 3), np.uint8)
    with torch.no_grad():
        expected = ImageGraph(network, network.mean, network.std)(torch.from_numpy(image)).numpy()
    largest, _ = differences(open_engine(engine, path, torch.get_num_threads())(image), expected)
    assert largest <= PARITY["fp32"], f"differs by {largest:.2g} of the output's range"


def build_tensorrt(network: DepthNetwork, size: Size, folder: Path) -> None:
    """TensorRT-RTX builds an engine; without a GPU it cannot run it."""
    graph = float_onnx(_request(network, size, folder))
    trt = load_tensorrt(("tensorrt_rtx",))
    build_engine(trt, str(graph), str(folder / "model.engine"), "fp32", log=lambda _: None)


CHECKS: dict[str, Callable[[DepthNetwork, Size, Path], Any]] = {
    "trains": lambda network, size, folder: train_a_step(network, size),
    "single weights": lambda network, size, folder: zero_weights(network, size),
    "saved, loaded": save_and_load,
    "ONNX Runtime": lambda network, size, folder: agree("onnxruntime", network, size, folder),
    "OpenVINO": lambda network, size, folder: agree("openvino", network, size, folder),
    "LiteRT": lambda network, size, folder: agree("litert", network, size, folder),
    "TensorRT-RTX builds": build_tensorrt,
}
ON_DENSE = ("trains", "single weights")


def check(name: str, options: dict[str, Any], size: Size) -> dict[str, str]:
    """Check -> "ok" or why not."""
    torch.manual_seed(0)
    dense = lively(build_model(name, **options))
    cells = {"channels": ""}
    narrow: DepthNetwork | None = None
    try:
        narrow = lose_channels(dense, size)
        cells["channels"] = "ok"
    except (MdeError, AssertionError) as error:
        cells["channels"] = str(error)
    for title, cell in CHECKS.items():
        network = dense if narrow is None or title in ON_DENSE else narrow
        try:
            with tempfile.TemporaryDirectory() as folder:
                cell(network, size, Path(folder))
            cells[title] = "ok"
        except Exception as error:  # of any of the libraries
            cells[title] = str(error).strip().partition("\n")[0] or type(error).__name__
        print(f"{name}, {title}: {cells[title]}", flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(NETWORKS), help="NAME or NAME:OPTION=VALUE")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--out", type=Path, help="the table as JSON")
    options = parser.parse_args()
    rows = {}
    for given in options.networks:
        name, *pairs = given.split(":")
        chosen = OmegaConf.to_container(OmegaConf.from_dotlist(pairs))
        assert isinstance(chosen, dict)
        rows[given] = check(name, chosen, (options.size[0], options.size[1]))
    titles = list(next(iter(rows.values())))
    print("| network | " + " | ".join(titles) + " |")
    print("| --- |" + " --- |" * len(titles))
    for given, cells in rows.items():
        print(f"| {given} | " + " | ".join(cells[title] for title in titles) + " |")
    if options.out:
        content = {"environment": environment(), "size": options.size, "networks": rows}
        options.out.write_text(json.dumps(content, indent=1))


def _request(network: DepthNetwork, size: Size, folder: Path) -> Request:
    graph = ImageGraph(deployable(network), network.mean, network.std)
    return Request(network.name, graph.eval(), size, "fp32", folder)


def _output(network: DepthNetwork, size: Size) -> Tensor:
    with torch.no_grad():
        return network.eval()(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(2)))


def _check_output(network: DepthNetwork, size: Size) -> None:
    output = _output(network, size)
    assert output.shape == (1, 1, *size)
    assert output.isfinite().all(), "predicts what is no number"
    assert output.min() >= 0, "predicts less than 0"
    assert output.std() > 0, "predicts the same everywhere"


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
