"""What deployment buys in time: rewrites, pruning and INT8 against the published graph in FP32, in each engine.

    python -m benchmarks.deploy                                  # random weights, MiDaS small as published in size
    python -m benchmarks.deploy --checkpoint PATH --size 160 224 --pruned PATH PATH     # networks that prune.py left
    python -m benchmarks.deploy --fastdepth $MDE_SHARED/peers/fast_depth_224.tflite      # a peer's row, absolute
    python -m benchmarks.deploy --checkpoint PATH --apart        # and what doubling inside the last convolution saves
    python -m benchmarks.deploy --sparsities 0.75 0.8 0.85 --layers      # and what the smallest spends its time on

All graphs of an engine are timed in turn in one process. Widths and precision decide the times, not the values of the
weights: channels are chosen by their L1 norm, and INT8 is calibrated on our rendered scenes. What it costs in accuracy
is measured by prune.py and deploy.py.
"""

import argparse
import copy
import json
import tempfile
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.pruning import pruned
from mde.data.synthetic import synthetic_splits
from mde.data.transforms import resize_image
from mde.engines import ENGINES, layer_times, open_engine, write_target
from mde.engines.request import Request
from mde.export import ImageGraph, deployable
from mde.models import build_model, load_model
from mde.models.network import DepthNetwork
from mde.models.registry import PUBLISHED
from mde.records import describe_model, environment
from mde.speed.interleaved import interleave, latency_entry

CHOICES = ("onnxruntime", "openvino", "litert")
REFERENCE = "published graph, fp32"
SLOWEST = 12  # layers listed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a network of ours or an official one; default: random weights")
    parser.add_argument("--encoder", default="lite3", help="of random weights")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--engines", nargs="+", default=CHOICES, choices=CHOICES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.75], help="of channels, beside dense")
    parser.add_argument("--pruned", nargs="+", help="networks pruned from the checkpoint, in the place of --sparsities")
    parser.add_argument("--apart", action="store_true", help="each network with its last doubling apart as well")
    parser.add_argument("--layers", action="store_true", help="time by operator and layer, of the last INT8 graph")
    parser.add_argument("--fastdepth", type=Path, help="another network's .tflite, timed beside LiteRT's graphs")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    size = (options.size[0], options.size[1])
    given = {} if options.checkpoint else {"encoder": options.encoder}
    dense = build_model("midas_small", weights=options.checkpoint, border="replicate", **given)
    reference = build_model("midas_small", weights=options.checkpoint, **given | PUBLISHED)
    networks = {"dense": dense}
    if options.pruned:
        networks |= {path: load_model(path) for path in options.pruned}
    else:
        networks |= {f"channel {share:g}": pruned(dense, "channel", share, size) for share in options.sparsities}
    if options.apart:
        networks = {f"{name}, doubling apart": doubling_apart(network) for name, network in networks.items()} | networks
    frames = synthetic_splits(frames=64, validation=1, test=1, size=list(size)).train
    images = [np.ascontiguousarray(frames[i].image.permute(1, 2, 0)[None].numpy()) for i in range(min(16, len(frames)))]
    figures: dict[str, dict] = {}
    for engine in options.engines:
        with tempfile.TemporaryDirectory() as folder:
            runs = graphs(engine, reference, networks, size, images, Path(folder), options.threads)
            if engine == "litert" and options.fastdepth:
                runs["FastDepth, int8 (a peer)"] = peer(options.fastdepth, images[0], options.threads)
            if engine == "onnxruntime":
                runs["published graph in PyTorch, eager"] = eager(reference, images[0], options.threads)
            times = interleave(runs, 5, options.rounds)
            if options.layers and ENGINES[engine].profiler:
                path = Path(folder) / str(2 * len(networks)) / f"model{ENGINES[engine].suffix}"
                print(operators(engine, path, images[0], options.rounds, options.threads))
        figures[engine] = {name: latency_entry(values, times[REFERENCE]) for name, values in times.items()}
    about = {"published graph": describe_model(reference, size)}
    about |= {name: describe_model(network, size) for name, network in networks.items()}
    print(table(figures))
    for name, entry in about.items():
        print(f"{name}: {entry['parameters'] / 1e6:.2f} M parameters, {entry['macs'] / 1e9:.3f} G multiply-adds")
    if options.out:
        versions = {engine: ENGINES[engine].version for engine in options.engines}
        content = {"environment": environment(), "engines": versions, "size": size, "threads": options.threads}
        content |= {"rounds": options.rounds, "networks": about, "latency": figures}
        options.out.write_text(json.dumps(content, indent=1))


def doubling_apart(network: DepthNetwork) -> DepthNetwork:
    """A copy with border="zeros", as published, which the doubling before it cannot be made one with."""
    network = copy.deepcopy(network)
    network.border = network.decoder.head.conv2.padding_mode = "zeros"
    return network


def graphs(
    engine: str,
    reference: DepthNetwork,
    networks: dict[str, DepthNetwork],
    size: tuple[int, int],
    images: list[np.ndarray],
    folder: Path,
    threads: int,
) -> dict[str, partial]:
    """Name -> a call of the graph in `engine`."""
    suffix = ENGINES[engine].suffix
    wanted = {REFERENCE: (reference, "fp32")}
    for name, network in networks.items():
        for precision in ("fp32", "int8"):
            wanted[f"{name}, {precision}"] = (network, precision)
    runs = {}
    for number, (name, (network, precision)) in enumerate(wanted.items()):
        published = name == REFERENCE
        graph = ImageGraph(network if published else deployable(network), network.mean, network.std).eval()
        place = folder / str(number)
        place.mkdir()
        request = Request(network.name, graph, size, precision, place, images, as_published=published)
        path = place / f"model{suffix}"
        write_target(engine, request, path)
        runs[name] = partial(open_engine(engine, path, threads), images[0])
    return runs


def eager(network: DepthNetwork, image: np.ndarray, threads: int) -> partial:
    graph = ImageGraph(network, network.mean, network.std).eval()

    def run(pixels: torch.Tensor) -> torch.Tensor:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return graph(pixels)

    return partial(run, torch.from_numpy(image))


def peer(path: Path, image: np.ndarray, threads: int) -> partial:
    """Another network at its own size and in its own input type."""
    from ai_edge_litert.interpreter import Interpreter

    details = Interpreter(str(path)).get_input_details()[0]
    planes = resize_image(torch.from_numpy(image[0]).permute(2, 0, 1), details["shape"][1:3]) * 255
    pixels = planes.round().permute(1, 2, 0)[None].numpy().astype(details["dtype"])
    return partial(open_engine("litert", path, threads), np.ascontiguousarray(pixels))


def operators(engine: str, path: Path, image: np.ndarray, runs: int, threads: int) -> str:
    """Milliseconds of each kind of operator, slowest first, and of how many layers, then the slowest layers; profiling
    itself costs some.
    """
    kinds = defaultdict(list)
    layers = layer_times(engine, path, image, runs, threads)
    for layer in layers:
        kinds[layer.operator].append(layer.ms)
    total = sum(map(sum, kinds.values()))
    lines = [f"{engine}, the last INT8 graph: {total:.2f} ms in its layers"]
    for kind, times in sorted(kinds.items(), key=lambda item: -sum(item[1])):
        lines.append(f"  {kind}: {sum(times):.2f} ms in {len(times)} ({sum(times) / total:.0%})")
    for layer in sorted(layers, key=lambda layer: -layer.ms)[:SLOWEST]:
        lines.append(f"    {layer.ms:.3f} ms ({layer.ms / total:.0%}) {layer.operator} {layer.name}")
    return "\n".join(lines)


def table(figures: dict[str, dict]) -> str:
    """Markdown, a row for every graph."""
    names = list(dict.fromkeys(name for entries in figures.values() for name in entries))
    head = ["network", *(f"{engine}, {unit}" for engine in figures for unit in ("ms", "x"))]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name in names:
        cells = [name]
        for entries in figures.values():
            entry = entries.get(name)
            cells += [f"{entry['p50_ms']:.1f}", f"{entry['speedup_vs_reference']:.2f}"] if entry else ["", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
