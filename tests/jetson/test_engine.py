"""An engine answers alike through either interface of TensorRT, and gives its memory back."""

import numpy as np
import pytest

from mde.jetson.builder import BuildError
from mde.jetson.cudart import Cuda, CudaError
from mde.jetson.engine import Engine
from tests.jetson import fakes

RELEASES = ["8.2", "8.5", "10.3", "11.0"]


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(fakes.PLAN)
    return str(path)


def image(seed):
    return np.random.default_rng(seed).integers(0, 256, (1, 4, 6, 3), np.uint8)


@pytest.mark.parametrize("release", RELEASES)
def test_each_interface_answers_what_the_network_computes(plan, release):
    engine = Engine(fakes.tensorrt(release), Cuda(fakes.Cudart()), plan)
    answers = [engine(image(seed)) for seed in range(2)]  # kept: an answer must not change with the next
    for seed, answer in enumerate(answers):
        assert (answer.dtype, answer.shape) == (np.float32, (1, 1, 4, 6))
        np.testing.assert_allclose(answer[0, 0], image(seed)[0].mean(axis=2), rtol=1e-3)


@pytest.mark.parametrize("release", RELEASES)
def test_everything_is_given_back(plan, release):
    library = fakes.Cudart()
    engine = Engine(fakes.tensorrt(release), Cuda(library), plan)
    assert (len(library.blocks), library.streams) == (2, 1)
    engine.close()
    assert (len(library.blocks), library.streams) == (0, 0)


@pytest.mark.parametrize("release", RELEASES)
def test_layers_are_timed_by_the_librarys_profiler(plan, release):
    engine = Engine(fakes.tensorrt(release), Cuda(fakes.Cudart()), plan)
    engine(image(0))
    assert engine.layer_times(4) == {"conv + relu": 0.5, "resize": 0.25}


def test_without_a_profiler_there_are_no_layer_times(plan):
    trt = fakes.tensorrt("8.5")
    del trt.IProfiler
    assert Engine(trt, Cuda(fakes.Cudart()), plan).layer_times(4) == {}


def test_the_dla_core_is_the_one_built_for(plan):
    trt = fakes.tensorrt("8.5")
    Engine(trt, Cuda(fakes.Cudart()), plan, dla=1)
    assert trt.runtime.DLA_core == 1


def test_a_file_that_the_library_refuses_is_an_error(plan, tmp_path):
    other = tmp_path / "other.engine"
    other.write_bytes(b"of another version")
    with pytest.raises(BuildError, match=r"other\.engine: tensorrt 8\.5 refuses it; build it again"):
        Engine(fakes.tensorrt("8.5"), Cuda(fakes.Cudart()), str(other))


def test_another_shape_is_an_error(plan):
    with pytest.raises(ValueError, match="takes"):
        Engine(fakes.tensorrt("8.5"), Cuda(fakes.Cudart()), plan)(image(0)[:, :2])


def test_an_image_of_floats_is_not_cut_to_bytes(plan):
    with pytest.raises(TypeError):
        Engine(fakes.tensorrt("8.5"), Cuda(fakes.Cudart()), plan)(image(0) / 255)


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaMemcpyAsync", "cudaStreamCreate", "cudaStreamSynchronize"])
def test_a_failing_call_is_named(plan, call):
    with pytest.raises(CudaError, match=rf"{call}: CUDA error 2 \(out of memory\)"):
        Engine(fakes.tensorrt("8.5"), Cuda(fakes.Cudart(fail=call)), plan)(image(0))


def test_an_engine_that_does_not_run_is_an_error(plan, monkeypatch):
    monkeypatch.setattr(fakes.Context, "run", lambda self, addresses: False)
    with pytest.raises(BuildError, match="did not run"):
        Engine(fakes.tensorrt("8.2"), Cuda(fakes.Cudart()), plan)(image(0))


def test_the_device_names_itself():
    assert Cuda(fakes.Cudart()).device() == {"device": "Orin", "compute_capability": "8.7"}
