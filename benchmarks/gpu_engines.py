"""TensorRT's engines of the shipped networks, built and run on a machine with a GPU: FP32, FP16 and INT8.

    python -m benchmarks.gpu_engines pack outputs/gpu                   # here: graphs, images and the library, in parts
    python3 -m benchmarks.gpu_engines unpack outputs/gpu                # there: the standard library is enough
    python3 -m benchmarks.gpu_engines measure outputs/gpu --out FILE    # there: numpy beside it

The machine with the GPU needs no registry: `pack` puts TensorRT-RTX as it is installed here (NVIDIA's wheels from PyPI,
95 MB), CUDA's runtime and the graphs into one archive and cuts it into parts of less than `--megabytes`, which travel
one by one (carry=["outputs/gpu/parts.json", "outputs/gpu/part.000"], the next time part.001, ...); the Python there has
to be the one here, to the minor version. Graphs are those that `deploy.py target=tensorrt` builds engines from, INT8
calibrated on rendered scenes, without its gate on accuracy.

`measure` prints a table: the largest and the mean distance of each engine's output from that of the FP32 engine, as
shares of its range, and the median time of one image on the GPU, all precisions in turn. FP32 is as TensorRT computes
it by default (TF32), and is itself held against ONNX Runtime's FP32. Without a GPU the engines are built, and one line
says that they were not run.
"""

import argparse
import ctypes
import hashlib
import importlib.metadata
import io
import json
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from site import addsitedir
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PRECISIONS = ("fp32", "fp16", "int8")
LIBRARY = ("tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs")
CUDART = "libcudart.so.13"
MEGABYTE = 2**20
IMAGES, CALIBRATION = 8, 32
WARMUP, ROUNDS = 20, 200


def library_files() -> Iterator[tuple[str, Path]]:
    """(name in the archive, file) of everything that the library's packages installed, and of CUDA's runtime."""
    for package in LIBRARY:
        for file in importlib.metadata.files(package) or ():
            path = Path(str(file.locate()))
            if path.is_file() and "__pycache__" not in path.parts and ".." not in file.parts:
                yield f"site/{file.as_posix()}", path
    runtime = importlib.metadata.distribution("nvidia-cuda-runtime").files or ()
    yield from ((f"site/{CUDART}", Path(str(file.locate()))) for file in runtime if file.name == CUDART)


def graph_files(networks: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """(name in the archive, content): of each network its three graphs, and images with what FP32 answers here."""
    import tempfile

    import numpy as np

    from mde.data.synthetic import synthetic_splits
    from mde.engines import open_engine
    from mde.engines.request import Request, float_onnx, typed_onnx
    from mde.engines.runtime import load_runtime
    from mde.export import ImageGraph, deployable
    from mde.models import load_model, read_metadata

    for path in networks:
        model, (height, width) = load_model(path).float(), read_metadata(path)["input"]
        graph = ImageGraph(deployable(model), model.mean, model.std).eval()
        splits = synthetic_splits(frames=CALIBRATION, validation=1, test=IMAGES, size=[height, width])
        prepare = load_runtime(path, threads=2).preprocess
        seen, shown = (
            [prepare(part[index].image.permute(1, 2, 0).numpy()) for index in range(len(part))]
            for part in (splits.train, splits.test)
        )
        with tempfile.TemporaryDirectory() as folder:
            for precision in PRECISIONS:
                request = Request(model.name, graph, (height, width), precision, Path(folder), calibration=seen)
                yield f"graphs/{path.stem}/{precision}.onnx", typed_onnx(request).read_bytes()
            run = open_engine("onnxruntime", float_onnx(request), 2)
            content = io.BytesIO()
            np.savez_compressed(content, images=np.stack(shown), reference=np.stack([run(image) for image in shown]))
        yield f"graphs/{path.stem}/images.npz", content.getvalue()


def pack(folder: Path, networks: list[Path], megabytes: int) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, path in library_files():
            packed.write(path, name)
        for name, content in graph_files(networks):
            packed.writestr(name, content)
    print(f"{split(archive.getvalue(), folder, megabytes * MEGABYTE)} parts in {folder}")


def split(content: bytes, folder: Path, size: int) -> int:
    """Cuts it into parts of less than `size` bytes, which replace others, and returns how many."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("part.*"):
        old.unlink()
    pieces = [content[start : start + size - 1] for start in range(0, len(content), size - 1)]
    for number, piece in enumerate(pieces):
        (folder / f"part.{number:03}").write_bytes(piece)
    about = {"parts": len(pieces), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "parts.json").write_text(json.dumps(about))
    return len(pieces)


def join(folder: Path) -> bytes:
    """What was cut. Ends the program in one line when a part is missing or not what it was."""
    try:
        about = json.loads((folder / "parts.json").read_text())
        content = b"".join((folder / f"part.{number:03}").read_bytes() for number in range(about["parts"]))
    except FileNotFoundError as error:
        raise SystemExit(f"{error.filename}: has not arrived; copy it too") from None
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise SystemExit(f"{folder}: the parts are not those that parts.json is of; copy all of them again")
    return content


def unpack(folder: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(join(folder))) as packed:
        packed.extractall(folder / "unpacked")
    print(f"unpacked: {folder / 'unpacked'}")


def measure(folder: Path, out: Path | None, rounds: int = ROUNDS) -> None:
    """Builds every engine, runs all of a network in turn, and prints a table. Ends the program in one line without a
    GPU, after building."""
    site = folder / "unpacked/site"
    if not site.is_dir():
        raise SystemExit(f"{site}: not there; first unpack {folder}")
    addsitedir(str(site))
    ctypes.CDLL(str(site / CUDART), ctypes.RTLD_GLOBAL)  # found by this name from now on
    from mde.jetson.builder import build_engine, load_tensorrt
    from mde.jetson.cudart import CudaError, load_cuda

    trt, results = load_tensorrt(["tensorrt_rtx"]), {}
    places = sorted((folder / "unpacked/graphs").iterdir())
    for place in places:
        for precision in PRECISIONS:
            graph, engine = place / f"{precision}.onnx", place / f"{precision}.engine"
            record = build_engine(trt, str(graph), str(engine), precision, log=lambda _: None)
            print(f"built: {place.name}, {precision}, {record['engine_bytes'] / 1e6:.1f} MB", flush=True)
    try:
        cuda = load_cuda()
        device = cuda.device()
    except CudaError as error:
        raise SystemExit(f"{len(places)} networks: engines built, not run ({error})") from None
    for place in places:
        results[place.name] = run_engines(trt, cuda, place, rounds)
    library = f"{trt.__name__} {trt.__version__}"
    print(table(results), f"\n{device['device']} (compute capability {device['compute_capability']}), {library}.")
    if out is not None:
        out.write_text(json.dumps({"device": device, "library": library, "results": results}, indent=1))


def run_engines(trt: Any, cuda: Any, place: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Precision -> distances from the FP32 engine (of FP32: from ONNX Runtime's), and median milliseconds."""
    import numpy as np

    from mde.jetson.engine import Engine

    with np.load(place / "images.npz") as file:
        images, expected = file["images"], file["reference"]
    engines = {precision: Engine(trt, cuda, str(place / f"{precision}.engine")) for precision in PRECISIONS}
    outputs = {name: np.stack([engine(image) for image in images]) for name, engine in engines.items()}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for number in range(WARMUP + rounds):
        for name, engine in engines.items():
            start = time.perf_counter()
            engine(images[number % len(images)])
            whole = time.perf_counter()
            engine.execute()
            times[name].append((1000 * (whole - start), 1000 * (time.perf_counter() - whole)))
    for engine in engines.values():
        engine.close()
    medians = {name: np.median(pairs[WARMUP:], axis=0).tolist() for name, pairs in times.items()}
    return {
        name: distances(output, expected if name == "fp32" else outputs["fp32"])
        | {"p50_ms": medians[name][0], "compute_ms": medians[name][1]}
        for name, output in outputs.items()
    }


def distances(outputs: Any, references: Any) -> dict[str, float]:
    """Largest and mean distance, as shares of the range that an image's reference has: of the worst image, and of all.

    What is no number is infinitely far.
    """
    import numpy as np

    apart = np.abs(outputs.astype(np.float64) - references)
    apart[~np.isfinite(apart)] = np.inf
    shares = [each / (reference.max() - reference.min()) for each, reference in zip(apart, references, strict=True)]
    return {"largest": float(np.max(shares)), "mean": float(np.mean(shares))}


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: a row for each engine."""
    lines = ["| engine | largest distance, % of range | mean, % | with copies, ms | on the GPU, ms | x |"]
    lines.append("| --- |" + " ---: |" * 5)
    for network, precisions in results.items():
        for precision, found in precisions.items():
            cells = [f"{100 * found['largest']:.2f}", f"{100 * found['mean']:.3f}"]
            cells += [f"{found['p50_ms']:.3f}", f"{found['compute_ms']:.3f}"]
            cells.append(f"{precisions['fp32']['compute_ms'] / found['compute_ms']:.2f}")
            lines.append(f"| {network}, {precision.upper()} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("pack", "unpack", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", type=Path, help="pack these; default: every one in weights/")
    parser.add_argument("--megabytes", type=int, default=30, help="parts are smaller")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    if options.command == "pack":
        pack(options.folder, options.networks or sorted((ROOT / "weights").glob("*.safetensors")), options.megabytes)
    elif options.command == "unpack":
        unpack(options.folder)
    else:
        measure(options.folder, options.out)


if __name__ == "__main__":
    main()
