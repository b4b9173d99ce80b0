import onnx
import pytest
from torch import nn

from mde.pruning.layer_latency import _single


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2)])
def test_a_layer_timed_alone_shrinks_its_map_by_its_stride_only(kernel, stride):
    conv = nn.Conv2d(4, 6, kernel, stride)
    graph = onnx.shape_inference.infer_shapes(_single(conv, 4, 6, (1, 4, 8 * stride, 12 * stride), False), True, True)
    shape = [dimension.dim_value for dimension in graph.graph.output[0].type.tensor_type.shape.dim]
    assert shape == [1, 6, 8, 12]
