"""What lies between convolutions: additions, activations, paddings, upsampling."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A node of a file's graph, whatever the file: its name, the tensors it reads and writes."""

    name: str
    reads: Sequence[str]
    writes: Sequence[str]
    is_convolution: bool


def between_floats(nodes: Sequence[Node], floats: Collection[str]) -> list[str]:
    """The names of those nodes, no convolutions, all of whose nearest convolutions, before and after, are `floats`.

    A convolution in float alone gives little back as long as the addition after it rounds to 8 bits.
    """
    makers = {tensor: node for node in nodes for tensor in node.writes}
    readers: dict[str, list[Node]] = {}
    for node in nodes:
        for tensor in node.reads:
            readers.setdefault(tensor, []).append(node)

    def before(node: Node) -> Iterable[Node]:
        return [makers[tensor] for tensor in node.reads if tensor in makers]

    def after(node: Node) -> Iterable[Node]:
        return [reader for tensor in node.writes for reader in readers.get(tensor, [])]

    def nearest(node: Node) -> set[str]:
        found, seen = set(), set()
        for step in (before, after):
            waiting = list(step(node))
            while waiting:
                other = waiting.pop()
                if other.is_convolution:
                    found.add(other.name)
                elif (step, other.name) not in seen:
                    seen.add((step, other.name))
                    waiting += step(other)
        return found

    near = {node.name: nearest(node) for node in nodes if not node.is_convolution}
    return [name for name, convolutions in near.items() if convolutions and convolutions <= set(floats)]
