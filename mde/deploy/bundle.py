"""The folder that a Jetson needs: the network, what builds and runs it there, frames to check it by, and how to."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mde import jetson
from mde.atomic_file import atomic_file
from mde.data.sample import Frames
from mde.engines.description import description_file, write_description
from mde.engines.onnxruntime import open_in_floats
from mde.engines.request import Request, float_onnx, typed_onnx
from mde.engines.runtime import Runtime
from mde.engines.tensorrt import TENSORRT
from mde.errors import MdeError
from mde.evaluation.quality import spread
from mde.export import ImageGraph


@dataclass(frozen=True)
class JetPack:
    """What a release of NVIDIA's system for Jetsons takes: ONNX's opset, the image's type, and trtexec's option for the
    workspace in MB."""

    tensorrt: str
    opset: int
    dtype: str
    workspace: str


# TensorRT takes uint8 from 8.5 on; JetPack 5 has 8.4 or 8.5.
JETPACKS = {
    "4.6": JetPack("8.2 from 4.6.1 on", 13, "float32", "--workspace="),
    "5": JetPack("8.4 or 8.5", 17, "float32", "--memPoolSize=workspace:"),
    "6": JetPack("8.6 or 10.3", 17, "uint8", "--memPoolSize=workspace:"),
    "7": JetPack("10.13 or later", 17, "uint8", "--memPoolSize=workspace:"),
}


def check_device(device: Any, precision: str) -> None:
    """MdeError when config.device is no Jetson, of an unknown JetPack, or does not compute in `precision`."""
    if device.jetpack is None:
        raise MdeError(
            f"device={device.name} is no Jetson, as bundle=true and device.profile want; choose device=jetson_nano, "
            "orin_nano, ..."
        )
    if str(device.jetpack) not in JETPACKS:
        raise MdeError(f"device.jetpack={device.jetpack}: unknown; choose from {', '.join(JETPACKS)}")
    if precision == "int8" and "int8" not in device.peak:
        raise MdeError(f"device={device.name}: its GPU does not compute in INT8; choose quantize=float16")
    if precision == "dynamic":
        raise MdeError("quantize=dynamic: TensorRT has none; choose quantize=none, float16 or int8")


def board_graph(request: Request, device: Any) -> tuple[Request, Path]:
    """The ONNX file as the device's JetPack takes it, and the request that it answers, in the request's folder."""
    pack = JETPACKS[str(device.jetpack)]
    graph = ImageGraph(
        request.graph.network, _list(request.graph.mean), _list(request.graph.std), request.graph.layout, pack.dtype
    )
    request = replace(request, graph=graph.eval(), opset=pack.opset, folder=request.folder / "bundle")
    request.folder.mkdir(exist_ok=True)
    # These releases lower a float32 graph to float16 themselves, kernel by kernel where it is faster.
    return request, typed_onnx(request) if request.precision == "int8" else float_onnx(request)


def write_bundle(
    request: Request, source: Path, device: Any, frames: Frames, count: int, folder: Path, model: Mapping[str, Any]
) -> None:
    """Fills `folder`, anew, for `device`.

    request, source  from `board_graph`
    frames           of which up to `count`, of one size, go along with what the network answers here
    model            the `model` entry of metrics.json
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in jetson.FILES:
        shutil.copyfile(Path(jetson.__file__).parent / name, folder / name)
    onnx_file = folder / "model.onnx"
    onnx_file.write_bytes(source.read_bytes())
    engine = open_in_floats(onnx_file, os.cpu_count() or 1)
    write_description(onnx_file, request.describe(engine.name))
    runtime = Runtime(onnx_file, request.describe(engine.name), engine)
    _write_frames(runtime, frames, count, folder / "frames.npz")
    described = json.loads(description_file(onnx_file).read_text()) | {"engine": TENSORRT.name, "model": dict(model)}
    described["limits"] = {"peak": dict(device.peak), "bandwidth": device.bandwidth}
    with atomic_file(description_file(onnx_file)) as file:
        file.write(json.dumps(described, indent=1).encode())
    (folder / "README.md").write_text(readme(device, JETPACKS[str(device.jetpack)], request))


def _write_frames(runtime: Runtime, frames: Frames, count: int, path: Path) -> None:
    samples = [frames[index] for index in spread(len(frames), count)]
    alike = [s for s in samples if (s.image.shape, s.depth.shape) == (samples[0].image.shape, samples[0].depth.shape)]
    images = [sample.image.permute(1, 2, 0).numpy() for sample in alike]
    with atomic_file(path) as file:
        np.savez_compressed(
            file,
            rgb=np.stack(images),
            depth=np.stack([sample.depth[0].numpy() for sample in alike]),
            mask=np.stack([sample.mask[0].numpy() for sample in alike]),
            dataset=np.array(frames.name),
            cap=np.array(frames.cap),
            reference=np.stack([runtime.infer(runtime.preprocess(image))[0, 0] for image in images]).astype(np.float32),
        )


def readme(device: Any, pack: JetPack, request: Request) -> str:
    """The commands, for this device and JetPack."""
    limit = f" --workspace-mb {device.workspace_mb}" if device.workspace_mb else ""
    flags = {"fp32": "", "fp16": " --fp16", "int8": " --int8 --fp16"}[request.precision]
    flags += f" {pack.workspace}{device.workspace_mb}" if device.workspace_mb else ""
    dla = (
        "\nThe deep learning accelerator instead of the GPU (layers that it cannot run fall back to the GPU and are "
        "listed):\n\n    python3 runner.py build --dla 0\n    "
        f"/usr/src/tensorrt/bin/trtexec --onnx=model.onnx{flags} --useDLACore=0 --allowGPUFallback\n"
        if device.dla
        else ""
    )
    system = f"JetPack {device.jetpack} (TensorRT {pack.tensorrt})"
    return f"""# {request.network}, {request.precision}, for {device.name} with {system}

Needs only what JetPack brings: Python 3, numpy (`sudo apt install python3-numpy`) and TensorRT's Python module
(`sudo apt install python3-libnvinfer`). Before measuring: `sudo nvpmodel -m 0 && sudo jetson_clocks`.

    python3 runner.py all{limit}

That is, one after the other:

    python3 runner.py build{limit}                 # model.onnx -> model.engine, minutes, once
    python3 runner.py check                        # does the engine answer as the network did on the host?
    python3 runner.py evaluate                     # against the depth in frames.npz -> metrics.json
    python3 runner.py benchmark --minutes 10       # latency, power, temperature -> metrics.json, profile.json

With a RealSense camera (pyrealsense2), and without any engine:

    python3 runner.py live --record recording.npz
    python3 runner.py evaluate --outputs stored    # the outputs stored in frames.npz; needs numpy alone

TensorRT's own benchmark, for comparison:

    /usr/src/tensorrt/bin/trtexec --onnx=model.onnx{flags}
{dla}
An engine is for the board and the TensorRT that built it: build it anew after an update. Nothing here was measured on a
{device.name}: what the network takes there is what `benchmark` writes. Give its profile.json back on the host:
`deploy.py ... device={device.name} device.profile=profile.json` reports it, and
`prune.py ... prune.budget=fps prune.target=30 prune.profile=profile.json` prunes by it.
"""


def _list(buffer: Any) -> tuple[float, ...]:
    """ImageGraph keeps mean and std in grey levels."""
    return tuple((buffer.flatten() / 255).tolist())
