"""What moves accuracy: short trainings that differ in one thing, judged on the frames that may decide.

    python -m benchmarks.ablation               # the rows that are not there yet; four minutes each on one core
    python -m benchmarks.ablation --write       # only the table in docs/notebook.md, from what there is
    python -m benchmarks.ablation --only size   # rows whose name holds this

Choices are made on a tenth of NYU's training scenes (train.py's validation part), on redkitchen and on every second
KITTI scene. So that nothing else can decide, the runs are shown no other frames: links to the training part of NYU and
to half of KITTI are laid under outputs/results/ablation/frames.
"""

import argparse
import json
import os
from pathlib import Path

from benchmarks.results import write
from benchmarks.results_steps import OUT, ROOT, SHARED, Step, slug
from benchmarks.results_tables import rows
from mde.data.folder import FolderFrames
from mde.data.holdout import hold_out
from mde.records import read_record

FRAMES = OUT / "ablation/frames"
NYU, HELD_OUT, KITTI, KITCHEN = FRAMES / "nyu", FRAMES / "held_out", FRAMES / "kitti", f"{SHARED}/data/redkitchen"
TEACHER = f"teacher={SHARED}/peers/fast_depth_224.tflite"
NYU_TRAINING = f"train.py data=folder data.root={NYU}"
PHOTOS = (
    f"train.py data=mix_photos data@data.parts.labelled=folder data.parts.labelled.root={NYU} "
    f"data.parts.photos.root={SHARED}/photos"
)
SYNTHETIC = "train.py data=synthetic"
ALTERED = "-m benchmarks.altered"
BASE, STEPS = "NYU, Lite 0, 160 x 224", 150
ROWS = {
    BASE: NYU_TRAINING,
    "another seed": f"{NYU_TRAINING} seed=1",
    "FastDepth teaches": f"{NYU_TRAINING} {TEACHER}",
    "FastDepth teaches, and half photos": f"{PHOTOS} {TEACHER}",
    "encoder Lite 2": f"{NYU_TRAINING} model.encoder=lite2",
    "size 192 x 192": f"{NYU_TRAINING} size=[192,192]",
    "600 steps": f"{NYU_TRAINING} trainer.max_steps=600",
    "600 steps, scale not held": NYU_TRAINING.replace("train.py", f"{ALTERED} scale_not_held")
    + " trainer.max_steps=600",
    "moving average of the weights": NYU_TRAINING.replace("train.py", f"{ALTERED} moving_average"),
    "no colour jitter": NYU_TRAINING.replace("train.py", f"{ALTERED} no_colour_jitter"),
    "no crops": NYU_TRAINING.replace("train.py", f"{ALTERED} whole_frames"),
    "synthetic alone": SYNTHETIC,
    "synthetic alone, another seed": f"{SYNTHETIC} seed=1",
    "synthetic alone, plain textures": SYNTHETIC.replace("train.py", f"{ALTERED} plain_textures"),
    "synthetic alone, one light": SYNTHETIC.replace("train.py", f"{ALTERED} one_light"),
    "synthetic alone, one exposure": SYNTHETIC.replace("train.py", f"{ALTERED} one_exposure"),
    "synthetic alone, one field of view": SYNTHETIC.replace("train.py", f"{ALTERED} one_field_of_view"),
    "synthetic alone, one object scale": SYNTHETIC.replace("train.py", f"{ALTERED} one_object_scale"),
    "synthetic alone, rooms": f"{SYNTHETIC} data.world=rooms",
    "synthetic alone, as an L515 measures": f"{SYNTHETIC} data.sensor=l515",
}


def lay_links(source: Path, target: Path, keep: set[str]) -> None:
    """A folder of the frames `keep` of another, as links, without its split."""
    meta = json.loads((source / "meta.json").read_text())
    for part in ("rgb", "depth"):
        (target / part).mkdir(parents=True, exist_ok=True)
        for file in (source / part).iterdir():
            link = target / part / file.name
            if file.stem in keep and not link.exists():
                link.symlink_to(file.resolve())
    meta["scenes"] = {frame: scene for frame, scene in meta["scenes"].items() if frame in keep}
    meta["name"] = target.name
    meta.pop("split", None)
    (target / "meta.json").write_text(json.dumps(meta))


def lay_frames(shared: Path) -> None:
    nyu = json.loads((shared / "nyu/meta.json").read_text())["split"]
    lay_links(shared / "nyu", NYU, {frame for frame, part in nyu.items() if part == "train"})
    frames = FolderFrames(NYU)
    held_out = hold_out(frames.scenes, frames.name)[1]  # as data=folder cuts it
    lay_links(shared / "nyu", HELD_OUT, {frames.ids[index] for index in held_out})
    kitti = json.loads((shared / "kitti/meta.json").read_text())["scenes"]
    chosen = sorted(set(kitti.values()))[::2]
    lay_links(shared / "kitti", KITTI, {frame for frame, scene in kitti.items() if scene in chosen})


def step(name: str) -> Step:
    """A row's run; NYU's held-out scenes are evaluated in every row, those that do not train on NYU included."""
    command = f"{ROWS[name]} weights=imagenet evaluate=[{HELD_OUT},{KITCHEN},{KITTI}] trainer.validate_every={STEPS}"
    if "trainer.max_steps=" not in command:
        command += f" trainer.max_steps={STEPS}"
    return Step(f"ablation/{slug(name)}", command, (Path("benchmarks/altered.py"),) if ALTERED in command else ())


def table() -> str:
    lines = []
    for name, command in ROWS.items():
        if step(name).complete:
            quality = read_record(step(name).path)["quality"]
            cells = [f"{quality[dataset]['delta1']:.3f}" for dataset in ("held_out", "redkitchen", "kitti")]
            shown = command.replace(str(FRAMES), "FRAMES").replace(SHARED, "$MDE_SHARED")
            lines.append(f"| {name} | " + " | ".join(cells) + f" | `{shown}` |")
    return rows("| delta1 | NYU, held-out scenes | redkitchen | KITTI, half | command |", *lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run nothing, only write the table")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    if not arguments.write:
        lay_frames(Path(SHARED, "data"))
        for name in ROWS:
            if arguments.only in name and not step(name).complete:
                step(name).run()
    write("ablation", table())
    if missing := [name for name in ROWS if not step(name).complete]:
        raise SystemExit(f"ablation: not complete, and left out: {'; '.join(missing)}")


if __name__ == "__main__":
    main()
