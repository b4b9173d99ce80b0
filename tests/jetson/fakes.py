"""TensorRT as its Python interface was in four releases, and a CUDA runtime in host memory.

Each fake has the attributes that its release has, of those that the builder and the engine use or ask for, and writes
down what is called. What a build returns, and what an engine computes, is made up.
"""

import ctypes
import enum
import json
import types
from pathlib import Path

import numpy as np

PLAN = b"plan of the fake"


class Severity(enum.IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity


class Logger(ILogger):
    ERROR = Severity.ERROR

    def __init__(self, severity):
        pass


class IProgressMonitor:
    pass


class IProfiler:
    pass


class LayerType(enum.Enum):
    CONVOLUTION, QUANTIZE, RESIZE = range(3)


class DeviceType(enum.Enum):
    GPU, DLA = range(2)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


def members(name, *names):
    return enum.IntEnum(name, [(member, number) for number, member in enumerate(names)])


class Layer:
    def __init__(self, name, kind, dtype):
        self.name, self.type, self.num_outputs = name, kind, 1
        self.output = types.SimpleNamespace(dtype=dtype)

    def get_output(self, number):
        return self.output


class Network:
    def __init__(self):
        self.layers, self.num_outputs = [], 0

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, number):
        return self.layers[number]


class TimingCache:
    def __init__(self, content):
        self.content = content

    def serialize(self):
        return self.content + b"+timed"


class Config:
    def __init__(self, trt):
        self.trt, self.flags = trt, []

    def set_flag(self, flag):
        self.flags.append(flag.name)

    def can_run_on_DLA(self, layer):  # noqa: N802
        return layer.type is LayerType.CONVOLUTION

    def create_timing_cache(self, content):
        return TimingCache(content)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return cache.content != b"of another device"


class PoolConfig(Config):
    """From 8.4 on."""

    pool = None

    def set_memory_pool_limit(self, pool, size):
        self.pool = (pool.name, size)


class OldPoolConfig(PoolConfig):
    """8.4 to 8.6 still have the call before it, deprecated."""

    max_workspace_size = 0


class MonitoredConfig(PoolConfig):
    """From 10 on."""

    progress_monitor = None


class OldBuilder:
    """8.2 to 8.6 have two calls that build, the first deprecated; later releases have the second only."""

    def __init__(self, trt):
        self.trt, self.num_DLA_cores, self.platform_has_fast_int8 = trt, trt.dla_cores, trt.fast_int8

    def create_network(self, flags):
        self.trt.network_flags = {flag.name for flag in self.trt.NetworkDefinitionCreationFlag if flags & 1 << flag}
        return Network()

    def create_builder_config(self):
        self.trt.config = self.trt.config_class(self.trt)
        return self.trt.config

    def build_serialized_network(self, network, config):
        if self.trt.failure:
            self.trt.logger.log(Severity.WARNING, "a warning")
            self.trt.logger.log(Severity.ERROR, self.trt.failure)
            return None
        if getattr(config, "progress_monitor", None):
            config.progress_monitor.phase_start("Timing", None, 20)
            assert all(config.progress_monitor.step_complete("Timing", step) for step in range(20))
            config.progress_monitor.phase_finish("Timing")
        return memoryview(PLAN)

    def build_engine(self, network, config):
        raise AssertionError("deprecated; build_serialized_network is there")


class Builder(OldBuilder):
    build_engine = property()  # hasattr() is false


class StronglyTypedBuilder(Builder):
    """11 and RTX: nothing to ask about precision."""

    def __init__(self, trt):
        self.trt, self.num_DLA_cores = trt, trt.dla_cores


class Parser:
    def __init__(self, trt, network):
        self.trt, self.network = trt, network

    def parse(self, content):
        """The test's ONNX file is JSON: layers as [name, kind, dtype], or the parser's errors."""
        graph = json.loads(content)
        self.errors = graph.get("errors", [])
        dtypes = self.trt.DataType
        self.network.layers = [Layer(name, LayerType[kind], dtypes[dtype]) for name, kind, dtype in graph["layers"]]
        self.network.num_outputs = 1 if graph["layers"] else 0
        return not self.errors

    @property
    def num_errors(self):
        return len(self.errors)

    def get_error(self, number):
        return self.errors[number]


def tensorrt(release, dla_cores=0, fast_int8=True, failure=None):
    """release: "8.2", "8.5", "10.3" or "11.0" (TensorRT-RTX looks like the last)"""
    trt = types.ModuleType("tensorrt")
    trt.__version__, trt.release = release, release
    trt.dla_cores, trt.fast_int8, trt.failure = dla_cores, fast_int8, failure
    trt.ILogger, trt.Logger, trt.IProfiler = ILogger, Logger, IProfiler
    trt.LayerType, trt.DeviceType = LayerType, DeviceType
    old, strong = release in ("8.2", "8.5"), release == "11.0"
    trt.DataType = members(
        "DataType", "FLOAT", "HALF", "INT8", "INT32", "BOOL", *([] if release == "8.2" else ["UINT8"])
    )
    trt.BuilderFlag = members("BuilderFlag", "GPU_FALLBACK", "TF32", *([] if strong else ["FP16", "INT8"]))
    trt.NetworkDefinitionCreationFlag = members("NetworkDefinitionCreationFlag", *{
        "8.2": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
        "8.5": ["EXPLICIT_BATCH", "EXPLICIT_PRECISION"],
        "10.3": ["EXPLICIT_BATCH", "STRONGLY_TYPED"],
        "11.0": ["STRONGLY_TYPED"],
    }[release])  # fmt: skip
    trt.config_class = {"8.2": Config, "8.5": OldPoolConfig}.get(release, MonitoredConfig)
    builder = OldBuilder if old else StronglyTypedBuilder if strong else Builder
    if release != "8.2":
        trt.MemoryPoolType = members("MemoryPoolType", "WORKSPACE")
        trt.TensorIOMode = TensorIOMode
    if not old:
        trt.IProgressMonitor = IProgressMonitor

    def create_builder(logger):
        trt.logger = logger
        return builder(trt)

    trt.Builder = create_builder
    trt.OnnxParser = lambda network, logger: Parser(trt, network)
    trt.Runtime = lambda logger: Runtime(trt)
    return trt


# Running: a network whose answer is the mean over the channels, of a 4 x 6 image


class Runtime:
    DLA_core = -1

    def __init__(self, trt):
        self.trt = trt

    def deserialize_cuda_engine(self, plan):
        self.trt.runtime = self
        if plan != PLAN:
            return None
        old = {"8.2": BindingsEngine, "8.5": BothEngine}
        return old.get(self.trt.release, TensorEngine)(self.trt)


class BindingsEngine:
    names, shapes, dtypes = ("image", "inverse_depth"), ((1, 4, 6, 3), (1, 1, 4, 6)), ("FLOAT", "FLOAT")
    num_bindings = 2

    def __init__(self, trt):
        self.trt = trt

    def get_binding_name(self, number):
        return self.names[number]

    def get_binding_shape(self, number):
        return self.shapes[number]

    def get_binding_dtype(self, number):
        return self.trt.DataType[self.dtypes[number]]

    def binding_is_input(self, number):
        return number == 0

    def create_execution_context(self):
        return BindingsContext(self)


class TensorEngine:
    names, shapes, dtypes = ("inverse_depth", "image"), ((1, 1, 4, 6), (1, 4, 6, 3)), ("HALF", "UINT8")
    num_io_tensors = 2

    def __init__(self, trt):
        self.trt = trt

    def get_tensor_name(self, number):
        return self.names[number]

    def get_tensor_shape(self, name):
        return self.shapes[self.names.index(name)]

    def get_tensor_dtype(self, name):
        return self.trt.DataType[self.dtypes[self.names.index(name)]]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "image" else TensorIOMode.OUTPUT

    def create_execution_context(self):
        return TensorContext(self)


class BothEngine(TensorEngine, BindingsEngine):
    """8.5 to 9: either way works."""

    names, shapes, dtypes = TensorEngine.names, TensorEngine.shapes, TensorEngine.dtypes


NUMPY = {"FLOAT": np.float32, "HALF": np.float16, "UINT8": np.uint8}


class Context:
    profiler = None
    runs = 0

    def __init__(self, engine):
        self.engine = engine

    def run(self, addresses):
        arrays = {}
        for name, shape, dtype in zip(self.engine.names, self.engine.shapes, self.engine.dtypes, strict=True):
            size = int(np.prod(shape)) * np.dtype(NUMPY[dtype]).itemsize
            memory = (ctypes.c_char * size).from_address(addresses[name])
            arrays[name] = np.frombuffer(memory, NUMPY[dtype]).reshape(shape)
        arrays["inverse_depth"][:] = arrays["image"].astype(np.float32).mean(axis=3)[:, None]
        Context.runs += 1
        if self.profiler:
            self.profiler.report_layer_time("conv + relu", 0.5)
            self.profiler.report_layer_time("resize", 0.25)
        return True


class BindingsContext(Context):
    def execute_async_v2(self, bindings, stream_handle):
        return self.run(dict(zip(self.engine.names, bindings, strict=True)))


class TensorContext(Context):
    def __init__(self, engine):
        super().__init__(engine)
        self.addresses = {}

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle):
        return self.run(self.addresses)


class Cudart:
    """The C functions of libcudart, in host memory. fail: the name of one that gives error 2."""

    def __init__(self, fail=None):
        self.blocks, self.streams, self.fail = {}, 0, fail

    def __getattribute__(self, name):
        if name.startswith("cuda") and name != "cudaGetErrorString" and name == object.__getattribute__(self, "fail"):
            return lambda *arguments: 2
        return object.__getattribute__(self, name)

    def cudaGetErrorString(self, code):  # noqa: N802
        return b"out of memory"

    def cudaMalloc(self, pointer, size):  # noqa: N802
        block = ctypes.create_string_buffer(size.value)
        pointer._obj.value = ctypes.addressof(block)
        self.blocks[pointer._obj.value] = block
        return 0

    def cudaFree(self, address):  # noqa: N802
        del self.blocks[address.value]
        return 0

    def cudaStreamCreate(self, pointer):  # noqa: N802
        pointer._obj.value = 77
        self.streams += 1
        return 0

    def cudaStreamDestroy(self, stream):  # noqa: N802
        self.streams -= 1
        return 0

    def cudaStreamSynchronize(self, stream):  # noqa: N802
        assert stream.value == 77
        return 0

    def cudaMemcpyAsync(self, to, source, size, kind, stream):  # noqa: N802
        device = to if kind.value == 1 else source  # 1: host to device, 2: back
        assert device.value in self.blocks
        ctypes.memmove(to, source, size.value)
        return 0

    def cudaGetDeviceProperties(self, properties, device):  # noqa: N802
        properties.value = b"Orin"
        return 0

    def cudaDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute.value]
        return 0


def write_graph(path: Path, *layers, errors=()):
    path.write_text(json.dumps({"layers": layers, "errors": errors}))
    return str(path)
