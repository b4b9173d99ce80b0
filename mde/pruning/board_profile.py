"""The profile that a bundle wrote on a Jetson, as a profile that pruning can plan by."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mde.export.layer_names import onnx_layer
from mde.json_file import Entries
from mde.models.network import DepthNetwork
from mde.pruning.cost import Layer
from mde.pruning.layer_latency import grid
from mde.pruning.structure import ChannelGroup
from mde.speed.roofline import BYTES, Roofline

# A convolution's node in the name of one of TensorRT's kernels, "/network/encoder/conv_stem/Conv + PWN(...)".
NODE = re.compile(r"/[^\s,+()\[\]{}|]+/Conv(?:_output)?(?:_\d+)?(?!\w)")


def is_board_profile(profile: Mapping[str, Any]) -> bool:
    """Whether a bundle's runner wrote it, not `measure_profile`."""
    return "graph_sha256" in profile


def planned(profile: Entries, model: DepthNetwork, groups: list[ChannelGroup], layers: list[Layer]) -> dict[str, Any]:
    """A board's `profile` in the form of `measure_profile`. ValueError: it is not of `model`; MdeError for an entry
    that is missing or of another type.

    A board measures a network at its own widths. What a layer takes at others is a model: its measured time, scaled by
    the ratio of the roofline there to the roofline at its own widths, both by the board's data sheet.
    """
    limits, about, kernels = (profile.entry(key, dict) for key in ("limits", "model", "layers"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if "dla" in profile:
        raise ValueError("of the accelerator (DLA), whose rates are not the GPU's")
    if about.entry("parameters", int) != parameters:
        raise ValueError(f"of one with {about['parameters']} parameters, it has {parameters}")
    peak, precision = limits.entry("peak", dict), profile.choice("precision", tuple(BYTES))
    rates = {name: peak.entry(name, float) for name in peak}
    roofline = Roofline.of(rates, limits.entry("bandwidth", float, None), precision)
    widths = {group.name: group.width for group in groups}
    convolutions = {layer.name: layer for layer in layers if layer.area}
    alone = {name: roofline_ms(roofline, layer, widths) for name, layer in convolutions.items()}
    measured = layer_times({name: kernels.entry(name, float) for name in kernels}, alone)
    return {
        "schema": profile.get("schema"),
        "network": about.get("name"),
        "options": {key: about.get(key) for key in model.options},
        "input": profile.get("input"),
        "engine": profile.get("engine"),
        "device": profile.get("board"),
        "widths": widths,
        "total_ms": profile.entry("latency", dict).entry("p50_ms", float),
        "layers": {
            name: table(roofline, convolutions[name], widths, ms / alone[name]) for name, ms in measured.items()
        },
    }


def layer_times(kernels: Mapping[str, float], alone: Mapping[str, float]) -> dict[str, float]:
    """Layer -> milliseconds, of TensorRT's kernels: those that name it, each shared with other layers that it names in
    proportion to `alone`, the layers' rooflines. Kernels that name no layer are left out, layers without a kernel too.
    """
    times: dict[str, float] = {}
    for kernel, ms in kernels.items():
        names = [name for name in dict.fromkeys(map(onnx_layer, NODE.findall(kernel))) if name in alone]
        for name in names:
            times[name] = times.get(name, 0.0) + ms * alone[name] / sum(alone[other] for other in names)
    return times


def table(roofline: Roofline, layer: Layer, widths: Mapping[str, int], scale: float) -> dict[str, Any]:
    """The layer's entry of a profile: `scale` times its roofline, at some widths."""
    writes = grid(layer.written(widths))
    reads = [layer.read(widths)] if layer.depthwise else grid(layer.read(widths))
    ms = [
        [
            scale * roofline_ms(roofline, replace(layer, reads=(w if layer.depthwise else r,), writes=(w,)), {})
            for w in writes
        ]
        for r in reads
    ]
    return {"reads": reads, "writes": writes, "ms": ms}


def roofline_ms(roofline: Roofline, layer: Layer, widths: Mapping[str, int]) -> float:
    return roofline.ms(layer.macs(widths), layer.moved(widths) + layer.parameters(widths))
