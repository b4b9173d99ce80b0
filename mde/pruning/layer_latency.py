"""Latency as a function of widths: each layer timed alone at some widths, here or on another device."""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from mde.engines import open_engine
from mde.export import deployable
from mde.models.network import DepthNetwork
from mde.progress import track
from mde.pruning.channels import Aim
from mde.pruning.cost import Layer
from mde.pruning.structure import ChannelGroup
from mde.speed.interleaved import interleave, measure_latency

if TYPE_CHECKING:
    import onnx

SCHEMA = 1
SHARES = (0.1, 0.25, 0.5, 1.0)  # of a layer's widths, at which it is timed; below the first, time stays the same
ROUNDS = 15


def measure_profile(
    model: DepthNetwork,
    groups: list[ChannelGroup],
    layers: list[Layer],
    size: tuple[int, int],
    engine: str,
    threads: int,
) -> dict[str, Any]:
    """The profile of `model` on this machine, ready for JSON:

    network, options, input (height, width), engine, threads
    widths    group of channels -> how many there are in `model`
    total_ms  the deployable network's median for one image
    layers    layer with weights -> reads, writes (widths) and ms, a table over them (one row for a depthwise one)
    """
    widths = {group.name: group.width for group in groups}
    weighted = {layer.name: layer for layer in layers if layer.area}
    total = measure_latency(
        {"reference": deployable(model)}, size, engines=(engine,), threads=threads, rounds=ROUNDS, memory=False
    )
    return {
        "schema": SCHEMA,
        "network": model.name,
        "options": model.options,
        "input": list(size),
        "engine": engine,
        "threads": threads,
        "widths": widths,
        "total_ms": total["reference"][engine]["p50_ms"],
        "layers": {
            name: _time_layer(model.get_submodule(name), layer, widths, engine, threads)
            for name, layer in track(weighted.items(), f"timing layers in {engine}", transient=True)
        },
    }


def time_share(network: DepthNetwork, of: DepthNetwork, size: tuple[int, int], engine: str, threads: int) -> float:
    """What one network takes of the other's time, both deployable, measured side by side."""
    graphs = {"reference": deployable(of), "network": deployable(network)}
    entries = measure_latency(graphs, size, engines=(engine,), threads=threads, rounds=ROUNDS, memory=False)
    return 1 / entries["network"][engine]["speedup_vs_reference"]


def latency_aims(profile: dict[str, Any], layers: list[Layer], milliseconds: float) -> list[Aim]:
    """Latency of the network down to `milliseconds`.

    The layers' times alone do not add up to the network's, which has other work and better caches: they are scaled so
    that for the network that was profiled they do.
    """
    times = {name: (np.array(t["reads"]), np.array(t["writes"]), np.array(t["ms"])) for name, t in
             profile["layers"].items()}  # fmt: skip
    alone = partial(_layer_ms, times)
    scale = profile["total_ms"] / sum(alone(layer, profile["widths"]) for layer in layers)

    def cost(layer: Layer, widths: Mapping[str, int]) -> float:
        return scale * alone(layer, widths)

    return [Aim(cost, milliseconds)]


def _layer_ms(
    times: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]], layer: Layer, widths: Mapping[str, int]
) -> float:
    """Interpolated between the widths that were timed; what has no weights (BatchNorm, which is folded) takes none."""
    if not layer.area:
        return 0.0
    reads, writes, ms = times[layer.name]
    column = [np.interp(layer.written(widths), writes, row) for row in ms]
    return float(np.interp(layer.read(widths), reads, column))


def _time_layer(
    module: nn.Module, layer: Layer, widths: Mapping[str, int], engine: str, threads: int
) -> dict[str, Any]:
    import onnx

    writes = grid(layer.written(widths))
    reads = writes if layer.depthwise else grid(layer.read(widths))
    with tempfile.TemporaryDirectory() as folder:
        runs = {}
        for r in [reads[-1]] if layer.depthwise else reads:
            for w in writes:
                inputs = w if layer.depthwise else r
                stride = 1 if layer.transposed else layer.stride
                shape: tuple[int, ...] = (1, inputs, layer.height * stride, layer.width * stride)
                if isinstance(module, nn.Linear):
                    shape = (1, layer.height, inputs)
                path = Path(folder) / f"{r}_{w}.onnx"
                onnx.save(_single(module, inputs, w, shape, layer.depthwise), path)
                runs[f"{r}_{w}"] = partial(open_engine(engine, path, threads), np.ones(shape, np.float32))
        times = interleave(runs, warmup=3, rounds=ROUNDS)
    rows = [reads[-1]] if layer.depthwise else reads
    ms = [[float(np.median(times[f"{r}_{w}"])) for w in writes] for r in rows]
    return {"reads": rows, "writes": writes, "ms": ms}


def grid(width: int) -> list[int]:
    """The widths at which a layer of `width` is timed."""
    return sorted({max(1, round(width * share)) for share in SHARES})


def _single(module: nn.Module, reads: int, writes: int, shape: tuple[int, ...], depthwise: bool) -> "onnx.ModelProto":
    """A graph of one layer with these widths, padded so that only its stride changes its map's size."""
    from onnx import TensorProto, helper, numpy_helper

    attributes: dict[str, Any] = {}
    dimensions: tuple[int, ...] = (reads, writes)
    if isinstance(module, nn.Linear):
        operator = "MatMul"
    elif isinstance(module, nn.ConvTranspose2d):
        operator, dimensions = "ConvTranspose", (reads, writes, *module.kernel_size)
        attributes = {"strides": list(module.stride)}
    else:
        assert isinstance(module, nn.Conv2d)
        kernel, stride = module.kernel_size[0], module.stride[0]
        operator, dimensions = "Conv", (writes, 1 if depthwise else reads, kernel, kernel)
        padding = max(0, kernel - stride)
        before = padding // 2
        attributes = {"strides": list(module.stride), "group": writes if depthwise else 1}
        attributes["pads"] = [before, before, padding - before, padding - before]
    weight = numpy_helper.from_array(np.full(dimensions, 0.01, np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node(operator, ["image", "weight"], ["out"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
