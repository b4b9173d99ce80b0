"""`make results`: remakes, from the shipped files, every table and figure of docs/results.md that is about them.

    python -m benchmarks.results            # what is not there yet: hours on two cores; can be stopped
    python -m benchmarks.results --write    # only the documents, from what there is

Each step is a command in a run directory under outputs/results, left out when that is complete. The parts of the
documents and of the model cards between `<!-- results: NAME -->` and `<!-- end -->` are rewritten, and the pictures in
docs/images.
"""

import argparse
import os
import re
import shutil
from pathlib import Path

from benchmarks.paired import PerFrame
from benchmarks.results_steps import FREE, NETWORKS, ROOT, SHARED, Step, record_room, steps, weights
from benchmarks.results_tables import (
    DENSE,
    FASTDEPTH,
    Figures,
    against_sensor,
    card,
    pareto,
    peer,
    pruned_table,
    sets,
    speed,
    summary,
    targets,
)
from mde.records import read_record
from mde.report.sweep_page import picture_grid
from mde.report.sweep_table import read_jobs


def write(name: str, content: str) -> None:
    """Replaces the part called `name` in the documents, one of which must have it."""
    pattern, written = rf"(<!-- results: {name} -->\n).*?(<!-- end -->)", 0
    for page in (*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "weights").glob("*.md")):
        text, count = re.subn(
            pattern, lambda found: f"{found[1]}\n{content}\n\n{found[2]}", page.read_text(), flags=re.DOTALL
        )
        page.write_text(text)
        written += count
    if not written:
        raise SystemExit(f"results: {name}: no document has such a part")


def finished(step: Step) -> bool:
    """Whether it left something to write about: a comparison also when one of its files failed."""
    path = step.path / "metrics.json"
    return step.complete or (step.name == "compare" and path.exists() and read_record(step.path)["status"] == "failed")


def document() -> None:
    """Everything that the finished steps allow."""
    done = {step.name: step.path for step in steps() if finished(step)}
    images = ROOT / "docs/images"
    if "compare" in done:
        figures = Figures(read_record(done["compare"]), PerFrame(done["compare"]))
        if missing := {DENSE, FASTDEPTH} - set(figures.of):
            raise SystemExit(f"results: all is held against {missing}, which could not be compared")
        for make in (targets, peer, summary, speed, sets):
            write(make.__name__, make(figures))
        for network in NETWORKS | FREE:
            if (network, *DENSE[1:]) in figures.of:
                write(f"card {weights(network).stem}", card(figures, network))
        if "figure4" in done:
            write("sensor", against_sensor(read_record(done["figure4"]), figures))
        pareto(figures, images / "pareto.png")
    for name, kinds in {"table1": ("layer", "channel"), "table2": ("fine_grained",)}.items():
        if name in done:
            jobs = read_jobs(done[name])
            for kind in kinds:
                write(f"{name} {kind}", pruned_table(jobs, kind))
    if "photos" in done:
        shutil.copyfile(done["photos"] / "pictures/depth.png", images / "photos.png")
    for name in ("figure2", "figure3"):
        if name in done:
            (images / f"{name}.png").write_bytes(picture_grid(read_jobs(done[name])))
    if "figure4" in done:
        shutil.copyfile(done["figure4"] / "pictures/frames.png", images / "figure4.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run nothing, only write the documents")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if not arguments.write:
        if not Path(SHARED, "data").is_dir():
            parser.error(f"MDE_SHARED={SHARED}: holds no data; the frames are not part of the project")
        record_room()
        for step in steps():
            if not step.complete:
                step.run()
    document()
    if missing := [step.name for step in steps() if not step.complete]:
        raise SystemExit(f"results: not complete, and left out: {', '.join(missing)}")


if __name__ == "__main__":
    main()
