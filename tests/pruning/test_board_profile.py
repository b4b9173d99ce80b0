"""A board's profile, kernel by kernel at one width, as the table that pruning plans by."""

import copy
import json

import onnx
import pytest
import torch

from mde.config import ImportanceConfig, PruneConfig, RecoveryConfig
from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
from mde.models import build_model
from mde.models.counts import multiply_adds
from mde.pruning import Pruner
from mde.pruning.board_profile import layer_times
from mde.pruning.channels import Limits, Search
from mde.pruning.cost import cost, layers_of
from mde.pruning.importance import channel_importance
from mde.pruning.latency_profile import read_profile
from mde.pruning.schedule import Schedule
from mde.pruning.structure import channel_groups, keep_channels
from mde.records import describe_model

torch.set_num_threads(1)
SIZE = (64, 64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = build_model("midas_small", encoder="lite0")
    groups = channel_groups(model)
    return model, groups, layers_of(model, groups, SIZE)


@pytest.fixture(scope="module")
def nodes(network, tmp_path_factory):
    """Names of the exported graph's convolutions."""
    model, path = network[0], tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(ImageGraph(deployable(model), model.mean, model.std).eval(), path, SIZE, 17)
    return [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]


@pytest.fixture
def write(network, nodes, tmp_path):
    """Writes the profile of a board whose kernels take a millisecond each; call it to change what the file says."""

    def profile(peak=1e9, bandwidth=1e9, **changes):
        kernels = {f"{node} + PWN({node.rpartition('/')[0]}/act/Clip)": 1.0 for node in nodes}
        content = {
            "schema": 1, "network": "midas_small", "model": describe_model(network[0], SIZE), "input": list(SIZE),
            "precision": "fp16", "graph_sha256": "f00d", "limits": {"peak": {"fp16": peak}, "bandwidth": bandwidth},
            "board": "NVIDIA Jetson Nano", "device": "Orin", "dla": None, "engine": "tensorrt",
            "engine_version": "8.2", "latency": {"status": "measured", "p50_ms": 100.0}, "layers": kernels,
        }  # fmt: skip
        (tmp_path / "profile.json").write_text(json.dumps(content | changes))
        return tmp_path / "profile.json"

    return profile


def test_kernels_are_matched_to_the_layers_that_they_name():
    kernels = {
        "/network/encoder/conv_stem/Conv_output_0 + PWN(/network/encoder/bn1/act/Clip)": 1.0,
        "Reformatting CopyNode for Input Tensor 0 to /network/encoder/blocks.0/blocks.0.0/conv_dw/Conv": 0.25,
        "/network/encoder/blocks.0/blocks.0.0/conv_dw/Conv + /network/decoder/head/conv1/Conv": 3.0,
        "/network/decoder/head/conv1/Conv_output_0_QuantizeLinear": 7.0,
        "/network/decoder/fusion1/Resize": 9.0,
    }
    alone = {"encoder.conv_stem": 1.0, "encoder.blocks.0.0.conv_dw": 2.0, "decoder.head.conv1": 4.0, "missing": 1.0}
    assert layer_times(kernels, alone) == {
        "encoder.conv_stem": 1.0,
        "encoder.blocks.0.0.conv_dw": 0.25 + 1.0,
        "decoder.head.conv1": 2.0,
    }


@pytest.mark.parametrize(("peak", "bandwidth"), [(1.0, 1e9), (1e9, 1.0)])
def test_other_widths_cost_in_proportion_to_what_holds_the_layer_up(peak, bandwidth, network, write):
    model, groups, layers = network
    profile = read_profile(write(peak, bandwidth), model, groups, layers, SIZE)
    assert set(profile["layers"]) == {layer.name for layer in layers if layer.area}
    for layer in (layer for layer in layers if layer.area):
        entry = profile["layers"][layer.name]
        conv = model.get_submodule(layer.name)
        out = conv.weight.shape[0]
        assert (entry["writes"][-1], entry["reads"][-1]) == (out, conv.in_channels)
        assert entry["ms"][-1][-1] == pytest.approx(1.0)
        half = entry["writes"].index(max(1, round(out / 2)))
        written = entry["writes"][half]
        if peak == 1.0:  # held up by arithmetic
            expected = written / out
        else:
            pixels, kernel = layer.height * layer.width, conv.weight.shape[2] * conv.weight.shape[3]
            bias = 0 if conv.bias is None else 1

            def numbers(width, conv=conv, layer=layer, pixels=pixels, kernel=kernel, bias=bias):
                read = width if layer.depthwise else conv.in_channels
                weights = kernel * width * (1 if layer.depthwise else read)
                return pixels * (read * layer.stride**2 + width) + weights + bias * width

            expected = numbers(written) / numbers(out)
        assert entry["ms"][-1][half] == pytest.approx(expected)


def test_the_search_meets_the_time_that_the_table_gives(network, write, tmp_path):
    model, groups, layers = copy.deepcopy(network)
    options = PruneConfig(kind="channel", sparsity=None, budget="fps", target=20.0, profile=str(write(1.0)))
    (tmp_path / "run").mkdir()
    callback = Pruner(
        options, ImportanceConfig("l1"), Schedule("one_shot", 0, 0, 1), RecoveryConfig("none"), SIZE, tmp_path / "run"
    )
    callback.share = 1.0
    widths = {group.name: group.width for group in groups}
    scores = channel_importance(model, groups, "l1")

    def search(aims):
        return Search(layers, groups, widths, scores, Limits(8, 0.9, {}), "global", aims).run()

    keep = callback._within_latency(model, groups, layers, search)
    before = cost(layers, widths).macs
    keep_channels(model, groups, keep)
    assert multiply_adds(model, SIZE) < 0.7 * before, "half of the time is to go"
    # Read again from the run directory, as a later step of a schedule does when the network is narrower.
    again = read_profile(tmp_path / "run/profile.json", model, groups, layers, SIZE)
    assert (again["total_ms"], again["widths"]) == (100.0, widths)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"layers": {}}, "has no layer decoder"),
        ({"layers": {"{ForeignNode[/network/a/Cast.../network/b/Relu]}": 5.0}}, "has no layer decoder"),
        ({"input": [96, 96]}, r"of input \[96, 96\], not \[64, 64\]"),
        ({"limits": None}, "limits is missing, an object"),
        ({"limits": {"peak": {"fp16": "100"}, "bandwidth": 1}}, 'limits.peak.fp16 must be a number, not "100"'),
        ({"precision": "int4"}, "precision must be fp32 or fp16 or int8"),
        ({"layers": ["a"]}, "layers must be an object"),
        ({"layers": {"/network/encoder/conv_stem/Conv": "5 ms"}}, "layers./network/encoder/conv_stem/Conv must be a"),
        ({"latency": {"p50_ms": True}}, "latency.p50_ms must be a number, not true"),
        ({"model": {"name": "midas_small", "parameters": 7}}, "of one with 7 parameters, it has"),
    ],
)
def test_a_profile_that_is_not_of_the_network_is_refused(changes, line, network, write):
    with pytest.raises(MdeError, match=f"^prune.profile=.*{line}"):
        read_profile(write(**changes), *network, SIZE)
