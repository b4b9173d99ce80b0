"""Every network in `weights/` in half precision, which ends at 65,504 and is the smaller boards' only fast one."""

import pytest

from benchmarks import half_precision
from mde.models import shipped
from mde.models.health import lost_skips

HELD = 10_000  # the most that any tensor may hold
ALLOWED = 0.01  # of the prediction's range


@pytest.fixture(scope="module")
def pictures():
    return half_precision.pictures()


@pytest.fixture(scope="module", params=sorted(shipped.FOLDER.glob("*.safetensors")), ids=lambda path: path.stem)
def network(request, tmp_path_factory):
    return half_precision.Shipped(request.param, tmp_path_factory.mktemp("half"))


def test_no_tensor_of_the_graph_is_above_what_half_precision_holds_with_room(network, pictures):
    largest, name = network.largest(pictures)
    assert 1 < largest <= HELD, name


def test_half_precision_predicts_what_float_does_in_pytorch_and_in_onnx_runtime(network, pictures):
    differences = network.differences(pictures)
    assert set(differences) == {"PyTorch", "ONNX Runtime"}
    assert all(0 < difference < ALLOWED for difference in differences.values()), differences


def test_every_skip_is_heard(network, pictures):
    shares = network.shares(pictures)
    assert len(shares) == 3
    assert not lost_skips(shares)
