"""What pruning buys in time: each kind and sparsity against the published graph, in each engine, interleaved.

    python -m benchmarks.pruning                                  # random weights, MiDaS small as published in size
    python -m benchmarks.pruning --checkpoint PATH --size 160 224

Widths decide the times, not the values of the weights: channels are chosen by their L1 norm, which needs no data. Which
channels a trained network can spare, and at what cost in accuracy, is measured by prune.py.
"""

import argparse
import copy
import json
import time
from pathlib import Path

import torch
from torch import nn

from mde.export import deployable
from mde.models import build_model
from mde.models.network import DepthNetwork
from mde.models.registry import PUBLISHED
from mde.pruning.channels import Limits, Search, sparsity_aims
from mde.pruning.cost import dense_widths, layers_of
from mde.pruning.importance import channel_importance, weight_importance
from mde.pruning.masks import apply_masks, fine_grained_masks, layer_masks, layer_weights, two_four_masks
from mde.pruning.structure import channel_groups, keep_channels
from mde.records import describe_model, environment
from mde.speed.interleaved import measure_latency

ROWS = [("channel", s) for s in (0.1, 0.25, 0.5, 0.75, 0.9)] + [
    ("fine_grained", 0.9),
    ("layer", 0.5),
    ("two_four", 0.5),
]


def pruned(model: DepthNetwork, kind: str, sparsity: float, size: tuple[int, int]) -> DepthNetwork:
    """A copy of `model`, one-shot, L1 norms."""
    model = copy.deepcopy(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if kind == "channel":
        groups = channel_groups(model)
        layers, dense = layers_of(model, groups, size), dense_widths(model, groups)
        scores = channel_importance(model, groups, "l1")
        search = Search(
            layers, groups, dense, scores, Limits(16, 0.9, {}), "global", sparsity_aims(layers, dense, sparsity)
        )
        keep_channels(model, groups, search.run())
        return model
    scores = weight_importance(model, layer_weights(model), "l1")
    if kind == "layer":
        masks = layer_masks(model, sparsity, parameters, "share")
    elif kind == "two_four":
        masks = two_four_masks(model, scores)
    else:
        masks = fine_grained_masks(model, scores, sparsity, parameters, "layer")
    apply_masks(model, masks)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a network of ours or an official one; default: random weights")
    parser.add_argument("--encoder", default="lite3", help="of random weights")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 256])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args()
    torch.manual_seed(0)
    size = tuple(options.size)
    given = {} if options.checkpoint else {"encoder": options.encoder}
    model = build_model("midas_small", weights=options.checkpoint, border="replicate", **given)
    published = build_model("midas_small", weights=options.checkpoint, **given | PUBLISHED)
    graphs: dict[str, nn.Module] = {
        "reference": published,
        "dense": deployable(model),
    }
    about = {name: describe_model(network, size) for name, network in (("reference", published), ("dense", model))}
    for kind, sparsity in ROWS:
        began = time.perf_counter()
        network = pruned(model, kind, sparsity, size)
        name = f"{kind} {sparsity:g}"
        about[name] = describe_model(network, size) | {"seconds": time.perf_counter() - began}
        graphs[name] = deployable(network)
    latency = measure_latency(graphs, size, threads=options.threads, rounds=options.rounds)
    print(table(about, latency))
    if options.out:
        figures = {"environment": environment(), "size": size, "threads": options.threads, "rounds": options.rounds}
        options.out.write_text(json.dumps(figures | {"networks": about, "latency": latency}, indent=1))


def table(about: dict[str, dict], latency: dict[str, dict[str, dict]]) -> str:
    """Markdown, a row for every graph."""
    engines = list(latency["reference"])
    head = ["network", "non-zero, M", "multiply-adds, G", "pruned in, s"]
    head += [f"{engine}, {unit}" for engine in engines for unit in ("ms", "x")]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for name, entry in about.items():
        seconds = f"{entry['seconds']:.1f}" if "seconds" in entry else ""
        cells = [name, f"{entry['nonzero_parameters'] / 1e6:.2f}", f"{entry['macs'] / 1e9:.3f}", seconds]
        for engine in engines:
            times = latency[name][engine]
            cells += [f"{times['p50_ms']:.1f}", f"{times['speedup_vs_reference']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
