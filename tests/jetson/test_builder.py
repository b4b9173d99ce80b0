"""The builder on each release's interface, and what it says of engines."""

import json

import pytest
import tensorrt_rtx

from mde.jetson.builder import BuildError, build_engine, cached_engine, library_of, load_tensorrt, misfit
from tests.jetson import fakes

ORIN = {"device": "Orin", "compute_capability": "8.7"}
FLOAT = [("conv1", "CONVOLUTION", "FLOAT"), ("up", "RESIZE", "FLOAT")]
HALF = [("conv1", "CONVOLUTION", "HALF")]
QUANTIZED = [("q", "QUANTIZE", "INT8"), *FLOAT]
GRAPHS = {"fp32": FLOAT, "fp16": HALF, "int8": QUANTIZED}
RELEASES = ["8.2", "8.5", "10.3", "11.0"]


@pytest.fixture
def build(tmp_path):
    """Builds one of GRAPHS, or other layers, with a fake release; the log is in `build.log`."""

    def run(trt, precision, layers=None, errors=(), **options):
        graph = fakes.write_graph(tmp_path / "model.onnx", *(layers or GRAPHS[precision]), errors=errors)
        run.engine = str(tmp_path / "model.engine")
        run.log = []
        return build_engine(trt, graph, run.engine, precision, device=ORIN, log=run.log.append, **options)

    return run


@pytest.mark.parametrize("release", RELEASES)
def test_the_engine_and_its_record_are_written(build, release, tmp_path):
    record = build(fakes.tensorrt(release), "fp32", description={"network": "midas_small", "calibration": None})
    assert (tmp_path / "model.engine").read_bytes() == fakes.PLAN
    assert json.loads((tmp_path / "model.engine.json").read_text()) == record
    assert (record["network"], record["library_version"], record["device"]) == ("midas_small", release, "Orin")
    assert record["engine_bytes"] == len(fakes.PLAN)
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("release", "flags"),
    [
        ("8.2", {"EXPLICIT_BATCH"}),
        ("8.5", {"EXPLICIT_BATCH"}),
        ("10.3", {"EXPLICIT_BATCH"}),
        ("11.0", {"STRONGLY_TYPED"}),
    ],
)
def test_the_network_is_typed_by_the_graph_only_where_nothing_else_is_possible(build, release, flags):
    trt = fakes.tensorrt(release)
    build(trt, "fp32")
    assert trt.network_flags == flags


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("precision", "flags"), [("fp32", []), ("fp16", ["FP16"]), ("int8", ["FP16", "INT8"])])
def test_precision_is_a_flag_where_the_library_has_flags(build, release, precision, flags):
    trt = fakes.tensorrt(release)
    build(trt, precision)
    assert trt.config.flags == ([] if release == "11.0" else flags)


@pytest.mark.parametrize("release", ["8.2", "8.5", "10.3"])
def test_a_weakly_typed_library_lowers_a_float_graph_to_fp16(build, release):
    assert build(fakes.tensorrt(release), "fp16", FLOAT)["precision"] == "fp16"


@pytest.mark.parametrize(
    ("release", "precision", "layers"),
    [
        ("11.0", "fp16", FLOAT),
        ("11.0", "int8", FLOAT),
        ("11.0", "fp32", HALF),
        ("8.5", "int8", FLOAT),
        ("8.5", "fp16", QUANTIZED),
    ],
)
def test_an_engine_is_never_called_a_precision_that_its_graph_has_not(build, release, precision, layers):
    with pytest.raises(BuildError, match=f"graph, not {precision}; export it as {precision}"):
        build(fakes.tensorrt(release), precision, layers)


@pytest.mark.parametrize("release", RELEASES)
def test_the_workspace_is_limited_by_whichever_call_there_is(build, release):
    trt = fakes.tensorrt(release)
    build(trt, "fp32", workspace_mb=512)
    if release == "8.2":
        assert trt.config.max_workspace_size == 512 << 20
    else:
        assert trt.config.pool == ("WORKSPACE", 512 << 20)
        assert not getattr(trt.config, "max_workspace_size", None)


def test_without_a_limit_only_the_oldest_interface_is_given_one(build):
    old, new = fakes.tensorrt("8.2"), fakes.tensorrt("8.5")
    build(old, "fp32")
    build(new, "fp32")
    assert old.config.max_workspace_size > 0
    assert new.config.pool is None


@pytest.mark.parametrize("release", RELEASES)
def test_progress_is_told_where_the_library_tells(build, release):
    build(fakes.tensorrt(release), "fp32")
    told = [] if release in ("8.2", "8.5") else [f"Timing: {percent} %" for percent in range(10, 101, 10)]
    assert build.log == told


def test_the_old_build_call_is_used_where_it_is_the_only_one(build, monkeypatch):
    monkeypatch.delattr(fakes.OldBuilder, "build_serialized_network")
    plan = type("Engine", (), {"serialize": lambda self: b"old plan"})()
    monkeypatch.setattr(fakes.OldBuilder, "build_engine", lambda self, network, config: plan)
    assert build(fakes.tensorrt("8.2"), "fp32")["engine_bytes"] == len(b"old plan")


@pytest.mark.parametrize(("known", "expected"), [(None, b""), (b"kept", b"kept"), (b"of another device", b"")])
def test_the_timing_cache_is_extended_or_begun_anew(build, tmp_path, known, expected):
    path = tmp_path / "timing.cache"
    if known is not None:
        path.write_bytes(known)
    build(fakes.tensorrt("8.5"), "fp32", timing_cache=str(path))
    assert path.read_bytes() == expected + b"+timed"


def test_the_dla_gets_what_it_can_run_and_the_rest_is_listed(build):
    trt = fakes.tensorrt("8.5", dla_cores=2)
    record = build(trt, "fp16", FLOAT, dla=1)
    assert (trt.config.DLA_core, trt.config.default_device_type) == (1, trt.DeviceType.DLA)
    assert "GPU_FALLBACK" in trt.config.flags
    assert (record["dla"], record["gpu_layers"]) == (1, ["up"])
    assert "1 of 2 layers; left to the GPU: up" in build.log[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dla": 0, "precision": "fp16"}, "there are 0 here"),
        ({"dla": 0, "precision": "fp32", "dla_cores": 2}, "fp16 and int8 only"),
        ({"precision": "int8", "fast_int8": False}, "no fast INT8 .*; use fp16"),
        ({"precision": "half"}, "unknown; choose from fp32, fp16, int8"),
        ({"precision": "fp32", "description": {"dtype": "uint8"}}, "takes no UINT8 input.*float32 input"),
        ({"precision": "fp32", "errors": ["Unsupported ONNX data type: UINT8 (2)"]}, "takes no UINT8.*float32 input"),
        ({"precision": "fp32", "errors": ["In node 3:\n no such operator"]}, "refused .In node 3: no such operator"),
        ({"precision": "fp32", "failure": "no kernel\nfound"}, "no fp32 engine .no kernel found"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(build, options, says):
    made = {name: options.pop(name) for name in ("dla_cores", "fast_int8", "failure") if name in options}
    precision = options.pop("precision")
    with pytest.raises(BuildError, match=says) as caught:
        build(fakes.tensorrt("8.2", **made), precision, layers=GRAPHS.get(precision, FLOAT), **options)
    assert "\n" not in str(caught.value)


def test_bytes_are_taken_from_85_on(build):
    assert build(fakes.tensorrt("8.5"), "fp32", description={"dtype": "uint8"})


def test_an_empty_graph_is_refused(tmp_path):
    path = fakes.write_graph(tmp_path / "model.onnx")
    with pytest.raises(BuildError, match="empty or no ONNX file"):
        build_engine(fakes.tensorrt("10.3"), path, str(tmp_path / "e"), "fp32", device=ORIN)


def test_a_fitting_engine_fits(build, tmp_path):
    trt = fakes.tensorrt("8.5")
    build(trt, "fp32")
    assert misfit(trt, build.engine, str(tmp_path / "model.onnx"), ORIN) is None


def test_why_an_engine_does_not_fit_is_said_in_one_line(build, tmp_path):
    trt = fakes.tensorrt("8.5")
    build(trt, "fp16")
    xavier = {"device": "Xavier", "compute_capability": "7.2"}
    assert "built for device Orin, here it is Xavier; build it again with: python3" in misfit(
        trt, build.engine, None, xavier
    )
    newer = fakes.tensorrt("10.3")
    assert "built for library_version 8.5, here it is 10.3" in misfit(newer, build.engine, None, ORIN)
    other = fakes.write_graph(tmp_path / "other.onnx", *HALF, *HALF)
    assert "not built from" in misfit(trt, build.engine, other, ORIN)
    (tmp_path / "model.engine").write_bytes(fakes.PLAN[:-1])
    assert "15 bytes instead of 16, so it is not whole" in misfit(trt, build.engine, None, ORIN)
    (tmp_path / "model.engine").write_bytes(fakes.PLAN[::-1])
    assert "not the bytes that were built" in misfit(trt, build.engine, None, ORIN)
    (tmp_path / "model.engine").unlink()
    assert "no such file" in misfit(trt, build.engine, None, ORIN)
    (tmp_path / "model.engine.json").write_text("{")
    assert "not readable" in misfit(trt, build.engine, None, ORIN)
    (tmp_path / "model.engine.json").unlink()
    assert "model.engine.json: not readable" in misfit(trt, build.engine, None, ORIN)


def test_an_engine_built_without_a_gpu_is_left_to_the_library(build, tmp_path):
    trt = fakes.tensorrt("11.0")
    build(trt, "fp32")
    path = tmp_path / "model.engine.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"device": None, "compute_capability": None}))
    assert misfit(trt, build.engine, None, ORIN) is None


def test_a_failed_build_leaves_the_old_engine(build, tmp_path):
    build(fakes.tensorrt("8.5"), "fp32")
    before = (tmp_path / "model.engine").read_bytes()
    with pytest.raises(BuildError):
        build(fakes.tensorrt("8.5", failure="no"), "fp32")
    assert (tmp_path / "model.engine").read_bytes() == before


def test_the_cache_builds_each_engine_once(tmp_path, monkeypatch):
    built = []
    serialise = fakes.OldBuilder.build_serialized_network
    monkeypatch.setattr(
        fakes.OldBuilder, "build_serialized_network", lambda *these: built.append(1) or serialise(*these)
    )
    graph = fakes.write_graph(tmp_path / "model.onnx", *FLOAT)
    other = fakes.write_graph(tmp_path / "other.onnx", *FLOAT, *FLOAT)

    def make(release="8.5", onnx=graph, precision="fp32", device=ORIN, **more):
        target = str(tmp_path / "run" / "model.engine")
        folder = str(tmp_path / "cache")
        record = cached_engine(folder, fakes.tensorrt(release), onnx, target, precision, device=device, **more)
        assert misfit(fakes.tensorrt(release), target, onnx, device) is None
        return record, len(built)

    assert make()[1] == 1
    # Another calibration needs no other engine, and the first one's does not stick.
    assert make(description={"calibration": 1}) == ({**make()[0], "calibration": 1}, 1)
    assert "calibration" not in make()[0]
    changes = [
        {"onnx": other},
        {"precision": "fp16"},
        {"release": "10.3"},
        {"device": {**ORIN, "device": "Xavier"}},
        {"workspace_mb": 64},
    ]
    for number, change in enumerate(changes):
        assert make(**change)[1] == make(**change)[1] == number + 2
    for engine in (tmp_path / "cache").glob("*.engine"):
        engine.write_bytes(b"half")
    assert make()[1] == len(changes) + 2


def test_the_newest_record_is_what_the_real_library_has():
    """TensorRT-RTX has the interface of TensorRT 11, as far as the builder asks."""
    recorded = fakes.tensorrt("11.0")
    for owner, names in {
        "BuilderFlag": ["FP16", "INT8", "GPU_FALLBACK"],
        "NetworkDefinitionCreationFlag": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
        "DataType": ["UINT8", "HALF"],
        "LayerType": ["QUANTIZE"],
        "MemoryPoolType": ["WORKSPACE"],
        "DeviceType": ["DLA"],
        "TensorIOMode": ["INPUT"],
    }.items():
        for name in names:
            assert hasattr(getattr(recorded, owner), name) == hasattr(getattr(tensorrt_rtx, owner), name), name
    for real, fake, names in (
        (tensorrt_rtx.Builder, fakes.StronglyTypedBuilder, ["build_serialized_network", "platform_has_fast_int8"]),
        (tensorrt_rtx.IBuilderConfig, fakes.MonitoredConfig, ["set_memory_pool_limit", "max_workspace_size"]),
        (tensorrt_rtx.IBuilderConfig, fakes.MonitoredConfig, ["progress_monitor", "create_timing_cache"]),
        (tensorrt_rtx.ICudaEngine, fakes.TensorEngine, ["num_io_tensors", "num_bindings", "get_tensor_mode"]),
        (tensorrt_rtx.IExecutionContext, fakes.TensorContext, ["set_tensor_address", "execute_async_v3"]),
        (tensorrt_rtx.IExecutionContext, fakes.TensorContext, ["execute_async_v2"]),
    ):
        for name in names:
            assert hasattr(real, name) == hasattr(fake, name), name
    assert library_of(tensorrt_rtx)["library"] == "tensorrt_rtx"


def test_a_record_of_somebody_else_s_names_no_module(tmp_path, monkeypatch):
    (tmp_path / "payload.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BuildError, match="payload: no library of engines; choose from tensorrt, tensorrt_rtx"):
        load_tensorrt(("payload",))
