import onnx
import pytest

from mde.errors import MdeError
from mde.export import ImageGraph, deployable, export_onnx
from mde.export.layer_names import convolutions_of, is_onnx_layer, is_tflite_layer, onnx_layer
from tests.export import random_network
from tests.quantization.small_network import layers


def test_names_in_onnx_lead_back_to_the_layers_of_the_real_network(tmp_path):
    model = random_network(reference=False)
    network = deployable(model)
    export_onnx(ImageGraph(network, model.mean, model.std).eval(), tmp_path / "model.onnx", (32, 32))
    nodes = [node.name for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Conv"]
    expected = sorted(layers(network))
    assert sorted(onnx_layer(node) for node in nodes) == expected
    assert "decoder.fusion1.refine_sum.conv1" in expected


def test_a_layer_must_be_exactly_one_convolution():
    nodes = ["/network/head/conv1/Conv", "/network/fusion/conv1/Conv"]
    assert convolutions_of(["fusion.conv1"], nodes, is_onnx_layer, "file") == nodes[1:]
    with pytest.raises(MdeError, match="file: 0 convolutions are called conv1"):
        convolutions_of(["conv1"], nodes, is_onnx_layer, "file")
    with pytest.raises(MdeError, match=r"file: 2 convolutions are called head\.conv1"):
        convolutions_of(["head.conv1"], nodes[:1] * 2, is_onnx_layer, "file")


def test_tflite_names_leave_out_containers_that_are_not_called():
    scope = "a.ImageGraph/b.Net_network/timm.x._blocks.Features_encoder/c.Sequential_1/d.Block_0/e.Conv2d_conv_pw"
    tensor = f"{scope.rpartition('/')[0]}/e.ReLU6_bn1;;{scope};2;"
    assert is_tflite_layer(tensor, "encoder.blocks.1.0.conv_pw")
    for other in ("encoder.blocks.0.1.conv_pw", "encoder.blocks.1.0.conv_pwl", "decoder.blocks.1.0.conv_pw", "conv_pw"):
        assert not is_tflite_layer(tensor, other)
