"""What a network costs beside what it was before (pruning, quantization) and beside the published graph."""

from typing import Any


def cost_table(record: dict[str, Any]) -> list[list[str]]:
    """Rows of text, the first one the headings: parameters, multiply-adds, file size, latency.

    The published graph has a latency only; a network that was not changed has nothing before it.
    """
    networks = {"published graph": {"latency": record.get("reference_latency", {})}} if record["latency"] else {}
    networks |= {"before": record["before"]} if "before" in record else {}
    networks |= {record["model"]["name"]: record}
    rows = [["", *networks]]
    for heading, key, unit, digits in (
        ("parameters, M", "parameters", 1e6, 2),
        ("non-zero, M", "nonzero_parameters", 1e6, 2),
        ("sparsity", "sparsity", 1, 3),
        ("multiply-adds, G", "macs", 1e9, 3),
        ("file, MB", "file_bytes", 1e6, 1),
    ):
        values = [network.get("model", {}).get(key) for network in networks.values()]
        rows.append([heading, *("" if value is None else f"{value / unit:.{digits}f}" for value in values)])
    for engine in record["latency"]:
        entries = [network.get("latency", {}).get(engine) for network in networks.values()]
        rows.append([f"{engine}, ms", *map(milliseconds, entries)])
        speedups = [entry and entry.get("speedup_vs_reference") for entry in entries]
        if any(speedups):
            rows.append(["  speed-up", *("" if speedup is None else f"{speedup:.2f}" for speedup in speedups)])
    return rows


def milliseconds(entry: dict[str, Any] | None) -> str:
    """The median of a `latency` entry as text; an estimate is marked as one wherever it is shown."""
    if entry is None:
        return ""
    if "p50_ms" not in entry:
        return str(entry["status"]).replace("_", " ")
    return f"estimate, at least {entry['p50_ms']:.2f}" if entry["status"] == "estimate" else f"{entry['p50_ms']:.1f}"
