"""One table: trained networks beside the vertical ramp and FastDepth INT8 on every real set of the shared folder.

    python -m benchmarks.real_sets nyu=outputs/train/nyu synthetic=outputs/train/synthetic --out outputs/real_sets

Each argument is NAME=RUN_DIRECTORY. Sets with an official split are evaluated on its test part, others whole; sets that
are renders, or whose depth has no scale, are left out. Protocol: inverse depth, per-frame scale and shift, metrics in
metres at the truth's size.
"""

import argparse
import json
import os
from pathlib import Path

from mde.data.folder import FolderFrames
from mde.engines.runtime import load_runtime, runtime_predictor
from mde.evaluation.quality import Predictor, evaluate, network_predictor, ramp_predictor
from mde.models import load_model
from mde.records import environment, read_record


def real_sets(shared: Path) -> list[FolderFrames]:
    """Every set that is not a render and whose depth is metres, largest first."""
    sets = []
    for root in sorted((shared / "data").iterdir()):
        about = json.loads((root / "meta.json").read_text()) if (root / "meta.json").exists() else {}
        if "depth_unit_m" in about and not about.get("synthetic"):
            frames = FolderFrames(root)
            sets.append(FolderFrames(root, split="test") if frames.has_split else frames)
    return sorted(sets, key=len, reverse=True)


def markdown(results: dict[str, dict[str, dict]], metric: str, trained_on: dict[str, str]) -> str:
    """Sets as rows, predictors as columns; a set that a network was trained on is marked with *."""
    names = list(results)
    lines = [f"| {metric} | frames | " + " | ".join(names) + " |", "| --- | ---: |" + " ---: |" * len(names)]
    for dataset, first in results[names[0]].items():
        cells = []
        for name in names:
            value = results[name][dataset][metric]
            mark = "*" if dataset in trained_on.get(name, "").split("+") else ""
            cells.append(f"{value:.3f}{mark}")
        lines.append(f"| {dataset} | {first['frames']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="NAME=RUN_DIRECTORY")
    parser.add_argument("--frames", type=int, help="of each set, spread evenly; default: all")
    parser.add_argument("--out", type=Path, required=True, help="folder for table.json and table.md")
    arguments = parser.parse_args()
    shared = Path(os.environ.get("MDE_SHARED", "../shared"))
    peer = shared / "peers/fast_depth_224.tflite"
    fastdepth = runtime_predictor(load_runtime(peer, threads=2))  # its description is known
    predictors: dict[str, Predictor] = {"vertical ramp": ramp_predictor, "FastDepth INT8": fastdepth}
    trained_on = {"FastDepth INT8": "nyu"}
    for run in arguments.runs:
        name, _, folder = run.partition("=")
        record = read_record(Path(folder))
        trained_on[name] = record["model"]["trained_on"]
        predictors[name] = network_predictor(load_model(Path(folder) / "model.safetensors"), record["model"]["input"])
    sets = real_sets(shared)
    results = {
        name: {
            frames.name: evaluate(predict, frames, limit=arguments.frames, progress=f"{name} on {frames.name}")
            for frames in sets
        }
        for name, predict in predictors.items()
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    content = {"environment": environment(), "trained_on": trained_on, "results": results}
    (arguments.out / "table.json").write_text(json.dumps(content, indent=1))
    tables = "\n\n".join(markdown(results, metric, trained_on) for metric in ("delta1", "rmse", "mae", "abs_rel"))
    (arguments.out / "table.md").write_text(tables + "\n\n\\* trained on this set's training frames\n")
    print(tables)


if __name__ == "__main__":
    main()
