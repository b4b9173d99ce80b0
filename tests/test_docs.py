"""Every command that README and docs show does what they say, run as they show it but for smaller images, from another
directory."""

import re
import shlex
import subprocess
from pathlib import Path

import av
import pytest
import torch
from PIL import Image

from mde.models import build_model, save_model
from mde.sensors import emulator
from tests.conftest import ROOT, call, write_frames
from tests.test_config import composed

NAMES = ("train", "networks", "prune", "sweeps", "dashboards", "deploy", "l515")
PAGES = ["README.md", *(f"docs/{name}.md" for name in NAMES)]
EMULATOR = "-m mde.sensors.emulator"
Command = tuple[str, list[str]]  # script, arguments


def commands(page: str) -> list[Command]:
    """Each `python train.py ...`, `prune.py`, `deploy.py` or emulator of a page, comments left out."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(python (?:train|prune|deploy)\.py [^`]*)`", text)
    scripts = r"(train\.py|prune\.py|deploy\.py|-m mde\.sensors\.emulator)\b"
    found = [re.match(rf"(?:\$ )?(?:\.venv/bin/)?python {scripts}(.*)", line) for line in lines]
    return [(match[1], shlex.split(match[2], comments=True)) for match in found if match]


def run(script: str, arguments: list[str], directory: Path, steps: int = 1) -> subprocess.CompletedProcess[str]:
    return call(*arguments, steps=steps, script=script, directory=directory, WANDB_DATA_DIR=str(directory))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    path = tmp_path / "trained/model.safetensors"
    path.parent.mkdir()
    save_model(build_model("midas_small", encoder="lite0"), path, input=[64, 64])
    return path


def write_sources(folder: Path) -> None:
    """What docs/deploy.md predicts depth of."""
    picture = Image.new("RGB", (64, 48), "grey")
    (folder / "holiday").mkdir()
    for name in ("photo.jpg", "holiday/beach.png"):
        picture.save(folder / name)
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height = picture.size
        container.mux([*stream.encode(av.VideoFrame.from_image(picture)), *stream.encode()])


def check(script: str, arguments: list[str], directory: Path) -> None:
    """Runs one command and expects what its page says of it."""
    if script == EMULATOR:
        assert emulator.main([str(directory / arguments[0]), "--frames", "24", "--size", "48", "64"]) == 0
        return
    if script != "deploy.py" and not any(argument.startswith("resume=") for argument in arguments):
        arguments = [argument for argument in arguments if not argument.startswith("trainer.max_steps=")]
    two = {"trainer.max_minutes=0.00001", "resume=outputs/train/long"}  # of two steps one is left to continue with
    done = run(script, arguments, directory, steps=2 if two & set(arguments) else 1)
    if "trainer.max_stepz=3" in arguments:  # shown as a mistake
        assert done.returncode == 2
        assert "did you mean 'trainer.max_steps'?" in done.stderr
    elif "experiment=full" in arguments and not torch.cuda.is_available():  # said to need a GPU and a download
        assert done.returncode == 2
        assert re.match(r"error: .*(GPU|weights)", done.stderr.strip().splitlines()[-1])
    elif "--cfg" in arguments:
        assert done.returncode == 0
        assert "max_steps:" in done.stdout
    elif "trainer.max_minutes=0.00001" in arguments:
        assert "to continue: python train.py resume=" in done.stdout
    elif any(argument.startswith("calibrate=") for argument in arguments):  # an untrained network may see far as near
        assert done.returncode == 0 or "calibrate: " in done.stderr
        assert "report: " in done.stdout
    else:
        assert done.returncode == 0, f"{arguments}: {done.stderr[-2000:]}"
        assert "report: " in done.stdout
        if "-m" in arguments or any(argument.startswith("experiment=paper_table") for argument in arguments):
            assert "jobs complete; report:" in done.stdout
        if any(argument.startswith("sweep.resume=") for argument in arguments):
            assert done.stdout.count("complete already, skipped") == 2


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.whole
def test_the_commands_of_a_page_run_in_order(page, tmp_path, trained):
    frames = write_frames(tmp_path / "frames")
    write_sources(tmp_path)
    assert commands(page), "no command found: the page's code blocks changed shape"
    shown_before = commands("README.md") if page != "README.md" else []
    for script, arguments in [command for command in commands(page) if command not in shown_before]:
        path = str(frames if script == "train.py" else trained)
        arguments = [argument.replace("PATH", path) for argument in arguments]
        # Shown as a run that is stopped and continued by the next command.
        shorter = {"trainer.max_minutes=30": "trainer.max_minutes=0.00001"}
        shorter |= dict.fromkeys(["sparsity=0.1,0.3,0.5", "sparsity=0.3,0.6", "sparsity=0.1,0.3"], "sparsity=0.3")
        arguments = [shorter.get(argument, argument) for argument in arguments]
        if any(argument.startswith("experiment=paper_table") for argument in arguments):
            arguments.append("sparsity=0.1")  # of ten values
        named = ("resume=", "size=") if script == "train.py" else ("checkpoint=", "compare=", "record=")
        if script != EMULATOR and not any(argument.startswith(named) for argument in arguments):
            arguments.append("size=[64,64]")  # the shipped network's, and what training takes, are large
        if any(argument.startswith("prune=") for argument in arguments):
            arguments += ["importance.images=4", "recovery.batchnorm_images=4"]
        comparing = any(argument.startswith("compare=") for argument in arguments)
        if (
            script == "deploy.py" and not comparing and "data=l515" not in arguments
        ):  # what an untrained network loses in INT8 says nothing
            arguments += ["quantize.max_drop=1", "quantize.frames=8", "quantize.gate_frames=4"]
        check(script, arguments, tmp_path)


@pytest.mark.parametrize("page", [*PAGES, "docs/results.md", "docs/notebook.md"])
def test_the_commands_of_a_page_compose(page):
    """All of them: each kind is executed where its tests are, and every one as written by `make test-all`."""
    for script, arguments in commands(page):
        if script == EMULATOR or {"--cfg", "trainer.max_stepz=3"} & set(arguments) or "resume=" in " ".join(arguments):
            continue
        single = [re.sub(r"^([\w./]+=[^\[,]+),.*", r"\1", argument) for argument in arguments if argument != "-m"]
        kept = [argument for argument in single if not argument.startswith("hydra.") and "interval(" not in argument]
        composed(*kept, script=script.removesuffix(".py"))
