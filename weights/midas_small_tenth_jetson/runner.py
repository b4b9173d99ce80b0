"""Builds, checks, measures and uses a depth engine on a Jetson; needs numpy and, but for stored outputs, tensorrt.

    python3 runner.py build                        model.onnx -> model.engine, for this device
    python3 runner.py check                        does it fit, and answer as the network did on the host?
    python3 runner.py evaluate                     against the depth in frames.npz -> metrics.json
    python3 runner.py evaluate --outputs stored    the same of the outputs stored in frames.npz: without an engine
    python3 runner.py benchmark                    latency, power, temperature -> metrics.json and profile.json
    python3 runner.py live --record l515.npz       with a RealSense camera; evaluate --frames l515.npz reads that again
    python3 runner.py all                          build, check, evaluate, benchmark

`--folder` holds model.onnx and model.onnx.json (its description), model.engine and model.engine.json (made here),
frames.npz, and the results. frames.npz:

    rgb        uint8 (N, H, W, 3)
    depth      float32 (N, h, w), metres          mask  bool (N, h, w)
    dataset    its name                           cap   metres, the largest depth that is evaluated
    reference  float32 (N, height, width), the deployed network's inverse depth at its own size, as the host computed
               it from `prepare`'s images; recordings have none

metrics.json is the schema that the package's own runs write. profile.json is for `deploy.py device.profile=` and
`prune.py prune.profile=`: network, model, input, precision, graph_sha256 (of model.onnx), limits (of the board, by its
data sheet), board (as it calls itself), device, dla, engine, engine_version, latency (the entry of metrics.json), and
layers (name, as TensorRT fused them -> milliseconds).

Python 3.6 syntax: the Jetson bundle ships this file.
"""

import argparse
import io
import json
import os
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np

if TYPE_CHECKING or __package__:
    from mde.jetson import builder, device
    from mde.jetson.arithmetic import depth_metrics, resize_bilinear
    from mde.jetson.builder import BuildError
    from mde.jetson.cudart import CudaError, load_cuda
    from mde.jetson.depth import RunnerError, calibrated, check_parity, evaluate, parity, prepare
    from mde.jetson.engine import Engine
    from mde.jetson.measurement import RUNS, benchmark, percentiles
else:
    import builder
    import device
    from arithmetic import depth_metrics, resize_bilinear
    from builder import BuildError
    from cudart import CudaError, load_cuda
    from depth import RunnerError, calibrated, check_parity, evaluate, parity, prepare
    from engine import Engine
    from measurement import RUNS, benchmark, percentiles

SCHEMA = 1
CAMERA_SIZE, CAMERA_RATE, CAMERA_CAP = (480, 640), 30, 9.0  # a mode of every RealSense; the L515 sees up to 9 m

Json = Dict[str, Any]


def load_description(onnx_path: str) -> Json:
    path = builder.record_path(onnx_path)
    try:
        with open(path) as file:
            description = json.load(file)
        missing = {"network", "input", "layout", "dtype", "precision", "calibration", "graph_sha256"} - set(description)
    except (OSError, ValueError, TypeError) as error:
        raise RunnerError(f"{path}: not readable ({error}); is --folder the bundle's folder?") from error
    if missing:
        raise RunnerError(f"{path}: says nothing of {min(missing)}; make the bundle again")
    return dict(description)


def load_frames(path: str) -> Json:
    """The arrays of a frames file, as the top of this file lists them; `reference` None when it has none."""
    try:
        with np.load(path) as file:
            frames = {name: file[name] for name in file.files}
        count = len(frames["rgb"])
        frames.update(dataset=str(frames["dataset"]), cap=float(frames["cap"]), reference=frames.get("reference"))
        sizes = [frames[name].shape for name in ("depth", "mask")]
        counts = [len(frames[name]) for name in ("depth", "reference") if frames[name] is not None]
    except Exception as error:  # bytes that are no frames can fail anywhere in the readers
        raise RunnerError(f"{path}: no readable frames ({error}); record them, or copy the bundle again") from error
    if not count or sizes[0] != sizes[1] or set(counts) != {count}:
        raise RunnerError(f"{path}: no frames, or not the same number of each array; copy it again")
    return frames


def write_metrics(folder: str, description: Json, **entries: Json) -> None:
    """Adds `quality` and `latency` entries to metrics.json, which is begun anew for another network or precision."""
    path = os.path.join(folder, "metrics.json")
    model = dict({"name": description["network"], "input": description["input"]}, **description.get("model", {}))
    about = {name: description[name] for name in ("graph_sha256", "precision")}
    metrics = dict(about, schema=SCHEMA, status="complete", parent="", teacher="", model=model)
    try:
        with open(path) as file:
            before = json.load(file)
        if about.items() <= before.items():
            metrics = before
    except (OSError, ValueError, AttributeError):
        pass
    metrics["environment"] = device.describe()
    for name in ("quality", "latency"):
        metrics[name] = dict(metrics.get(name, {}), **entries.get(name, {}))
    write_json(path, metrics)


def write_json(path: str, content: Json) -> None:
    builder.write_file(path, json.dumps(content, indent=1).encode())


def camera(count: int) -> Iterator[Tuple[float, Any, Callable[[], Any]]]:
    """`count` frames of a RealSense: the moment of arrival (time.perf_counter), rgb uint8 (H, W, 3), and a function
    that gives depth float32 (H, W) in metres, seen from the colour camera, 0 where the sensor knows none.
    """
    try:
        import pyrealsense2 as rs
    except ImportError as error:
        raise RunnerError(f"live needs pyrealsense2 ({error}); install it, 2.50 to 2.53 for an L515") from error
    pipeline, config = rs.pipeline(), rs.config()
    height, width = CAMERA_SIZE
    config.enable_stream(rs.stream.depth, width, height, rs.format.z16, CAMERA_RATE)
    config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, CAMERA_RATE)
    align = rs.align(rs.stream.color)

    def metres(pair: Any, unit: float) -> Any:
        counts = np.asanyarray(align.process(pair).get_depth_frame().get_data())
        return counts.astype(np.float32) * np.float32(unit)

    try:
        unit = pipeline.start(config).get_device().first_depth_sensor().get_depth_scale()
        try:
            for _ in range(count):
                pair = pipeline.wait_for_frames()
                arrived = time.perf_counter()
                rgb = np.asanyarray(pair.get_color_frame().get_data()).copy()
                yield arrived, rgb, partial(metres, pair, unit)
        finally:
            pipeline.stop()
    except RuntimeError as error:  # none there, unplugged, or no such mode
        raise RunnerError(f"no frames from a camera ({error}); is it plugged into a USB 3 port?") from error


def live(engine: Engine, description: Json, count: int, record: Optional[str]) -> Tuple[Dict[str, Json], Json]:
    """Shows `count` frames of the camera: returns their quality, as the dataset "live", and the latency from capture
    to depth; keeps the frames in the file `record`. What costs time for the comparison's sake is not in the latency.
    """
    images, truths, outputs, times = [], [], [], []
    for arrived, rgb, truth in camera(count):
        outputs.append(engine(prepare(rgb, description))[0, 0])
        answer = resize_bilinear(outputs[-1], rgb.shape[:2])
        if description["calibration"] is not None:
            calibrated(answer, description)
        times.append((time.perf_counter() - arrived) * 1000)
        images.append(rgb)
        truths.append(truth())
        figures = depth_metrics(answer, truths[-1], truths[-1] > 0, CAMERA_CAP)
        print(f"{times[-1]:.1f} ms, delta1 {figures['delta1']:.3f}, mae {figures['mae']:.3f} m")
    if not times:
        raise RunnerError(f"--count {count}: no frame to evaluate; ask for some")
    depths = np.stack(truths)
    frames: Json = {"rgb": np.stack(images), "depth": depths, "mask": depths > 0, "dataset": "live", "cap": CAMERA_CAP}
    if record is not None:
        save_recording(record, frames)
    return evaluate(frames, outputs, description), dict(percentiles(times), status="measured", runs=count)


def save_recording(path: str, frames: Json) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **frames)
    builder.write_file(path, content.getvalue())


def open_engine(folder: str, onnx_path: str) -> Engine:
    """The folder's engine, once it is known to be whole, of this graph and for this device."""
    path = os.path.join(folder, "model.engine")
    record = builder.read_record(path)
    trt = builder.load_tensorrt([record["library"]])
    reason = builder.misfit(trt, path, onnx_path)
    if reason is not None:
        raise BuildError(reason)
    return Engine(trt, load_cuda(), path, record["dla"])


def build(options: Any, onnx_path: str, description: Json) -> None:
    if builder.sha256(onnx_path) != description["graph_sha256"]:
        raise RunnerError(f"{onnx_path}: not the file that its description is of, or damaged; copy the bundle again")
    builder.build_engine(
        builder.load_tensorrt(),
        onnx_path,
        os.path.join(options.folder, "model.engine"),
        options.precision or description["precision"],
        description,
        workspace_mb=options.workspace_mb,
        dla=options.dla,
        timing_cache=os.path.join(options.folder, "timing.cache"),
    )


def report(quality: Dict[str, Json]) -> None:
    for name, entry in quality.items():
        figures = ", ".join(
            f"{key} {entry[key]:.4g}" for key in ("delta1", "abs_rel", "rmse", "mae") if entry["frames"]
        )
        print(f"{name} ({entry['alignment']}, {entry['frames']} frames): {figures}")


def evaluate_stored(folder: str, frames: Json, description: Json) -> None:
    if frames["reference"] is None:
        raise RunnerError("these frames have no stored outputs, a recording has none; evaluate them with the engine")
    quality = evaluate(frames, frames["reference"], description)
    write_metrics(folder, description, quality=quality)
    report(quality)


def use_engine(options: Any, engine: Engine, record: Json, frames: Json) -> None:
    """The commands that need no more than an engine and frames: check, evaluate, benchmark, or all."""
    if options.command in ("check", "evaluate", "all"):
        outputs = [engine(prepare(rgb, record))[0, 0] for rgb in frames["rgb"]]
    if options.command in ("check", "all"):
        found = check_parity(frames, outputs, record)
        print(f"differs from the host by {found['largest']:.2g} of the range at most (frame {found['frame']})")
    if options.command in ("evaluate", "all"):
        quality = evaluate(frames, outputs, record)
        if frames["reference"] is not None:
            quality[frames["dataset"]]["parity"] = parity(outputs, frames["reference"])
        write_metrics(options.folder, record, quality=quality)
        report(quality)
    if options.command in ("benchmark", "all"):
        entry = benchmark(engine, record, frames["rgb"], options.minutes)
        entry.update(precision=record["precision"], engine_version=record["library_version"])
        write_metrics(options.folder, record, latency={record["library"]: entry})
        write_profile(options.folder, record, entry, engine.layer_times(RUNS // 4))
        print(f"engine {entry['p50_ms']:.2f} ms, image to depth {entry['image_to_depth']['p50_ms']:.2f} ms (medians)")


def write_profile(folder: str, record: Json, entry: Json, layers: Dict[str, float]) -> None:
    names = ("network", "input", "precision", "graph_sha256", "device", "dla")
    profile = {name: record[name] for name in names}
    profile.update({name: record.get(name) for name in ("model", "limits")}, board=device.describe()["board"])
    profile.update(schema=SCHEMA, engine=record["library"], engine_version=record["library_version"])
    write_json(os.path.join(folder, "profile.json"), dict(profile, latency=entry, layers=layers))


def run(options: Any) -> None:
    onnx_path = os.path.join(options.folder, "model.onnx")
    frames_path = options.frames or os.path.join(options.folder, "frames.npz")
    description = load_description(onnx_path)
    if options.command == "evaluate" and options.outputs == "stored":
        evaluate_stored(options.folder, load_frames(frames_path), description)
        return
    if options.command in ("build", "all"):
        build(options, onnx_path, description)
    if options.command == "build":
        return
    engine = open_engine(options.folder, onnx_path)
    # The description, and what the engine is; results are filed under the graph, which stored outputs have as well.
    record = builder.read_record(os.path.join(options.folder, "model.engine"))
    record["graph_sha256"] = record["onnx_sha256"]
    try:
        if options.command == "live":
            quality, entry = live(engine, record, options.count, options.record)
            write_metrics(options.folder, record, quality=quality, latency={record["library"] + "_live": entry})
            report(quality)
        else:
            use_engine(options, engine, record, load_frames(frames_path))
    finally:
        engine.close()


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("build", "check", "evaluate", "benchmark", "live", "all"))
    parser.add_argument("--folder", default=".", help="the bundle's folder")
    parser.add_argument("--frames", help="another frames file than the folder's")
    parser.add_argument("--precision", choices=builder.PRECISIONS, help="another than the description's")
    parser.add_argument("--workspace-mb", type=int, help="the most scratch memory of a kernel; 512 on a 4 GB board")
    parser.add_argument("--dla", type=int, metavar="CORE", help="use this core of the deep learning accelerator")
    parser.add_argument("--outputs", choices=("engine", "stored"), default="engine", help="what is evaluated")
    parser.add_argument("--minutes", type=float, default=10, help="how long the sustained run takes")
    parser.add_argument("--count", type=int, default=100, help="frames taken live")
    parser.add_argument("--record", metavar="NPZ", help="keep what the camera saw")
    try:
        run(parser.parse_args(arguments))
    except (RunnerError, BuildError, CudaError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
