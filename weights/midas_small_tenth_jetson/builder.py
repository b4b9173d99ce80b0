"""ONNX to a TensorRT engine, with whichever TensorRT is there: 8.2 (JetPack 4.6) to 11, and TensorRT-RTX.

What differs between them is found by asking for the feature, never by comparing version numbers. Beside the engine goes
`<engine>.json`, which says what it was built from, by what and for which GPU, and without which it is not loaded.

Python 3.6 syntax and the standard library: the package imports this file and the Jetson bundle ships it, where it is
also a program:

    python3 builder.py model.onnx model.engine --precision fp16 [--workspace-mb 512] [--dla 0]
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import sys
import uuid
import warnings
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence

if TYPE_CHECKING or __package__:
    from mde.jetson.cudart import present_device
else:
    from cudart import present_device

LIBRARIES = ("tensorrt", "tensorrt_rtx")
PRECISIONS = ("fp32", "fp16", "int8")
WORKSPACE_MB = 256  # where a library grants none by itself, and so leaves out every kernel that wants some

Log = Callable[[str], None]
Record = Dict[str, Any]
Device = Dict[str, Optional[str]]


class BuildError(Exception):
    """No engine: one line that says why and what to do."""


def load_tensorrt(names: Sequence[str] = LIBRARIES) -> Any:
    """The first of `names` that is installed, as a module. BuildError when none is, and for a name that is none of
    LIBRARIES: a record beside an engine may come from somebody else, and importing runs code.
    """
    for name in names:
        if name not in LIBRARIES:
            raise BuildError(f"{name}: no library of engines; choose from {', '.join(LIBRARIES)}")
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise BuildError(f"{' and '.join(names)}: not installed; on a Jetson: sudo apt install python3-libnvinfer")


def build_engine(
    trt: Any,
    onnx_path: str,
    engine_path: str,
    precision: str,
    description: Optional[Record] = None,
    device: Optional[Device] = None,
    workspace_mb: Optional[int] = None,
    dla: Optional[int] = None,
    timing_cache: Optional[str] = None,
    log: Log = print,
) -> Record:
    """Builds `engine_path` from `onnx_path` and returns what it wrote beside it: `description` and

    library, library_version, device, compute_capability (None where there is no GPU), precision, dla, gpu_layers,
    onnx_sha256, engine_bytes, graph_sha256 (of the engine: each description names the hash of its own file)

    trt           the module, tensorrt or tensorrt_rtx
    precision     "fp32", "fp16" or "int8". A weakly typed library lowers a float32 graph to fp16 by itself, and runs
                  what an int8 graph leaves in float in fp16; a strongly typed one takes precision from the graph. int8
                  is Q/DQ nodes in the graph for both
    device        as `cudart.present_device` gives it; asked for when not given
    workspace_mb  the most scratch memory that a kernel may ask for; the library decides when not given
    dla           core of the deep learning accelerator; the GPU takes the layers that it cannot run (gpu_layers)
    timing_cache  file that is read and extended; kernels that it knows are not timed again
    log           takes a line of text

    BuildError when the graph is refused, or does not have the precision asked for, or the library or device lacks
    something.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what one release deprecates, another has nothing else for
        logger = _logger(trt)
        builder = trt.Builder(logger)
        _check_request(trt, builder, precision, dla, description or {})
        network = builder.create_network(_network_flags(trt))
        _parse(trt, onnx_path, network, logger)
        _check_precision(trt, network, precision, onnx_path)
        config = builder.create_builder_config()
        _limit_workspace(trt, config, workspace_mb)
        _set_precision(trt, config, precision)
        gpu_layers = [] if dla is None else _use_dla(trt, config, network, dla, log)
        cache = _read_timing_cache(config, timing_cache)
        monitor = _watch_progress(trt, config, log)  # the library keeps no reference to it
        plan = _serialize(builder, network, config)
        del monitor
        if plan is None:
            raise BuildError(f"{onnx_path}: no {precision} engine ({logger.reason()}); try another precision")
        if cache is not None and timing_cache is not None:
            write_file(timing_cache, bytes(cache.serialize()))
    facts = dict(
        present_device() if device is None else device,
        **library_of(trt),
        precision=precision,
        dla=dla,
        gpu_layers=gpu_layers,
        onnx_sha256=sha256(onnx_path),
        engine_bytes=len(plan),
        graph_sha256=hashlib.sha256(plan).hexdigest(),
    )
    record = dict(description or {}, **facts)
    write_file(engine_path, plan)
    write_file(record_path(engine_path), json.dumps(record, indent=1).encode())
    return record


def cached_engine(
    folder: str,
    trt: Any,
    onnx_path: str,
    engine_path: str,
    precision: str,
    description: Optional[Record] = None,
    **options: Any,
) -> Record:
    """`build_engine` with its `options`, unless `folder` has the engine of this graph, precision, library and version,
    device, workspace and DLA core already. `engine_path` and its JSON are copies.
    """
    device = options.setdefault("device", present_device())
    key = dict(device, **library_of(trt), onnx=sha256(onnx_path), precision=precision)
    key.update((name, options.get(name)) for name in ("workspace_mb", "dla"))
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    stored = os.path.join(folder, f"{name[:32]}.engine")
    if misfit(trt, stored, onnx_path, device) is not None:
        # Without the description: that of another run could carry another calibration.
        build_engine(trt, onnx_path, stored, precision, **options)
    record = dict(description or {}, **read_record(stored))
    with open(stored, "rb") as file:
        write_file(engine_path, file.read())
    write_file(record_path(engine_path), json.dumps(record, indent=1).encode())
    return record


def misfit(
    trt: Any,
    engine_path: str,
    onnx_path: Optional[str] = None,
    device: Optional[Device] = None,
) -> Optional[str]:
    """Why this library on this device cannot use the engine, in one line with the remedy; None when it can.

    An engine built without a GPU names no device, and is left to the library.
    """
    try:
        record = read_record(engine_path)
    except BuildError as error:
        return str(error)
    again = f"build it again with: python3 builder.py model.onnx {engine_path} --precision {record['precision']}"
    if not os.path.isfile(engine_path):
        return f"{engine_path}: no such file; {again}"
    size = os.path.getsize(engine_path)
    if size != record["engine_bytes"]:
        return f"{engine_path}: {size} bytes instead of {record['engine_bytes']}, so it is not whole; {again}"
    if sha256(engine_path) != record["graph_sha256"]:
        return f"{engine_path}: not the bytes that were built; {again}"
    present = dict(library_of(trt), **(present_device() if device is None else device))
    for fact in ("library", "library_version", "device", "compute_capability"):
        if record[fact] is not None and record[fact] != present[fact]:
            return f"{engine_path}: built for {fact} {record[fact]}, here it is {present[fact]}; {again}"
    if onnx_path is not None and sha256(onnx_path) != record["onnx_sha256"]:
        return f"{engine_path}: not built from {onnx_path}, or from another version of it; {again}"
    return None


def read_record(engine_path: str) -> Record:
    """What `build_engine` wrote beside the engine. BuildError when it is missing or unreadable."""
    path = record_path(engine_path)
    try:
        with open(path) as file:
            record = json.load(file)
        missing = [name for name in ("library", "precision", "engine_bytes", "onnx_sha256") if name not in record]
    except (OSError, ValueError, TypeError) as error:
        raise BuildError(f"{path}: not readable ({error}); build the engine again") from error
    if missing:
        raise BuildError(f"{path}: says nothing of {missing[0]}; build the engine again")
    return record


def record_path(path: str) -> str:
    return path + ".json"


def library_of(trt: Any) -> Dict[str, str]:
    return {"library": trt.__name__, "library_version": trt.__version__}


def sha256(path: str) -> str:
    """Of a file. BuildError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise BuildError(f"{path}: not readable ({error.strerror}); is the path right?") from error
    return digest.hexdigest()


def _logger(trt: Any) -> Any:
    """A logger that keeps errors, for the one line that a user sees, and drops everything else."""

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.lines.append(" ".join(message.split()))

        def reason(self) -> str:
            return self.lines[0] if self.lines else "the library gives no reason"

    return Errors()


def _weakly_typed(trt: Any) -> bool:
    """Whether the library picks the precision itself, within the flags given to it."""
    return hasattr(trt.BuilderFlag, "FP16")


def _check_request(trt: Any, builder: Any, precision: str, dla: Optional[int], description: Record) -> None:
    if precision not in PRECISIONS:
        raise BuildError(f"precision {precision}: unknown; choose from {', '.join(PRECISIONS)}")
    if precision == "int8" and _weakly_typed(trt) and not builder.platform_has_fast_int8:
        raise BuildError("precision int8: this GPU has no fast INT8 (Jetson Nano and TX2 lack it); use fp16")
    if description.get("dtype") == "uint8" and not _takes_bytes(trt):
        raise BuildError(_bytes_refused(trt))
    if dla is None:
        return
    cores = getattr(builder, "num_DLA_cores", 0)
    if not 0 <= dla < cores:
        raise BuildError(f"DLA core {dla}: there are {cores} here (Xavier and Orin have them); leave the option out")
    if precision == "fp32":
        raise BuildError(f"DLA core {dla}: it computes in fp16 and int8 only; choose one of them")


def _takes_bytes(trt: Any) -> bool:
    return hasattr(trt.DataType, "UINT8")


def _bytes_refused(trt: Any) -> str:
    return (
        f"{trt.__name__} {trt.__version__}: takes no UINT8 input, which came with 8.5; export the network with a "
        "float32 input (0-255) and opset 13"
    )


def _network_flags(trt: Any) -> int:
    known, flags = trt.NetworkDefinitionCreationFlag, 0
    if hasattr(known, "EXPLICIT_BATCH"):
        flags |= 1 << int(known.EXPLICIT_BATCH)
    if not _weakly_typed(trt) and hasattr(known, "STRONGLY_TYPED"):
        flags |= 1 << int(known.STRONGLY_TYPED)
    return flags


def _parse(trt: Any, onnx_path: str, network: Any, logger: Any) -> None:
    try:
        with open(onnx_path, "rb") as file:
            graph = file.read()
    except OSError as error:
        raise BuildError(f"{onnx_path}: not readable ({error.strerror}); is the path right?") from error
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        errors = [" ".join(str(parser.get_error(number)).split()) for number in range(parser.num_errors)]
        if not _takes_bytes(trt) and any("UINT8" in line for line in errors + logger.lines):
            raise BuildError(f"{onnx_path}: {_bytes_refused(trt)}")
        raise BuildError(f"{onnx_path}: refused ({'; '.join(errors) or logger.reason()}); export it again")
    # Protobuf takes an empty file, and some that are no ONNX at all, for a graph of nothing.
    if not network.num_outputs:
        raise BuildError(f"{onnx_path}: has no output, so it is empty or no ONNX file; export it again")


def _check_precision(trt: Any, network: Any, precision: str, onnx_path: str) -> None:
    """An engine must not be called what it is not."""
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    if any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        found = "int8"
    elif any(_gives(layer, trt.DataType.HALF) for layer in layers):
        found = "fp16"
    else:
        found = "fp32"
    lowered = _weakly_typed(trt) and (found, precision) == ("fp32", "fp16")
    if found != precision and not lowered:
        raise BuildError(f"{onnx_path}: an {found} graph, not {precision}; export it as {precision} for {trt.__name__}")


def _gives(layer: Any, dtype: Any) -> bool:
    return any(layer.get_output(number).dtype == dtype for number in range(layer.num_outputs))


def _limit_workspace(trt: Any, config: Any, workspace_mb: Optional[int]) -> None:
    if hasattr(config, "set_memory_pool_limit"):
        if workspace_mb is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    else:
        config.max_workspace_size = (workspace_mb or WORKSPACE_MB) << 20


def _set_precision(trt: Any, config: Any, precision: str) -> None:
    if _weakly_typed(trt) and precision != "fp32":
        config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)


def _use_dla(trt: Any, config: Any, network: Any, core: int, log: Log) -> List[str]:
    """Puts on the DLA what it can run; returns the names of the layers that it cannot."""
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    layers = [network.get_layer(number) for number in range(network.num_layers)]
    fallen = [layer.name for layer in layers if not config.can_run_on_DLA(layer)]
    kept = len(layers) - len(fallen)
    log(f"DLA core {core}: runs {kept} of {len(layers)} layers; left to the GPU: {', '.join(fallen) or 'none'}")
    return fallen


def _read_timing_cache(config: Any, path: Optional[str]) -> Any:
    """The cache that the build will use and extend, or None. One of another device or version is started anew."""
    if path is None or not hasattr(config, "create_timing_cache"):
        return None
    known = b""
    if os.path.isfile(path):
        with open(path, "rb") as file:
            known = file.read()
    cache = config.create_timing_cache(known)
    if not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _watch_progress(trt: Any, config: Any, log: Log) -> Any:
    """Logs every tenth of the longest phase, where the library tells; returns the monitor."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Progress(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: Dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self.steps.get(phase_name, 0)
            if steps >= 10 and (step + 1) * 10 // steps > step * 10 // steps:
                log(f"{phase_name}: {100 * (step + 1) // steps} %")
            return True  # go on

    config.progress_monitor = Progress()
    return config.progress_monitor


def _serialize(builder: Any, network: Any, config: Any) -> Optional[bytes]:
    if hasattr(builder, "build_serialized_network"):
        plan = builder.build_serialized_network(network, config)
    else:
        engine = builder.build_engine(network, config)
        plan = engine and engine.serialize()
    return None if plan is None else bytes(plan)


def write_file(path: str, content: bytes) -> None:
    """So that the name never holds half a file. BuildError when the system refuses."""
    temporary = f"{path}.{uuid.uuid4().hex}.part"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise BuildError(f"{path}: not written ({error.strerror}); free disk space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build a TensorRT engine from an ONNX file")
    parser.add_argument("onnx")
    parser.add_argument("engine")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp16")
    parser.add_argument("--workspace-mb", type=int)
    parser.add_argument("--dla", type=int, metavar="CORE")
    options = parser.parse_args()
    try:
        build_engine(
            load_tensorrt(),
            options.onnx,
            options.engine,
            options.precision,
            workspace_mb=options.workspace_mb,
            dla=options.dla,
            timing_cache=options.engine + ".timing",
        )
    except BuildError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    print(options.engine)


if __name__ == "__main__":
    main()
