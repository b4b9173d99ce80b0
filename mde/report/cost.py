"""What a network costs beside what it was before (pruning, quantization) and beside the published graph."""

from typing import Any


def cost_table(record: dict[str, Any]) -> list[list[str]]:
    """Rows of text, the first one the headings: parameters, multiply-adds, file size, latency where it was measured.

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
        times = [entry for entry in entries if entry and entry["status"] != "built_not_run"]
        rows.append([f"{engine}, ms", *(_of(entry, "p50_ms", 1) for entry in entries)])
        if times:
            rows.append(["  speed-up", *(_of(entry, "speedup_vs_reference", 2) for entry in entries)])
    return rows


def _of(entry: dict[str, Any] | None, key: str, digits: int) -> str:
    if entry is None:
        return ""
    return f"{entry[key]:.{digits}f}" if key in entry else entry["status"].replace("_", " ")
