"""The baseline of a speed-up: the network as published, in FP32, with nothing rewritten."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mde.engines import ENGINES, Run, open_engine, write_target
from mde.engines.request import Request
from mde.export import ImageGraph
from mde.models import build_model
from mde.models.registry import as_published


def published_graph(name: str, options: Mapping[str, Any], layout: str = "nhwc", dtype: str = "uint8") -> ImageGraph:
    """The graph of network `name` as it was published. Its weights are random: times do not depend on them."""
    network = build_model(name, **as_published(options))
    return ImageGraph(network, network.mean, network.std, layout, dtype).eval()


def open_published(target: str, request: Request, threads: int, engine: str | None = None) -> Run:
    """`request.graph`, a published graph, in the engine of `target`, or in another that reads such files; its file is
    left in the request's folder.
    """
    if run_graph := ENGINES[target].run_graph:
        return run_graph(request.graph, threads)
    request = replace(request, precision="fp32", as_published=True)
    path = request.folder / f"reference{ENGINES[target].suffix}"
    write_target(target, request, path)
    return open_engine(engine or target, path, threads)
