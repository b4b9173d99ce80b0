"""train.py as a user calls it."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from safetensors.torch import load_file

from mde.data.sample import Splits
from mde.data.synthetic import SyntheticFrames
from mde.errors import MdeError
from mde.evaluation.quality import evaluate, ramp_predictor
from mde.models import build_model, load_model, save_model
from mde.pruning.run import prune
from mde.records import new_record, write_record
from mde.training.run import RATES, fill_in, fit, known_qualities, network_options, trained_on
from tests.conftest import ROOT, TINY, quick, script_environment, train_command
from tests.forked import run_script
from tests.test_config import composed

ERRORS = {"rmse", "mae", "abs_rel", "delta1", "delta2", "delta3", "pooled_rmse"}
QUALITY = ERRORS | {"protocol", "alignment", "frames", "coverage", "negative_scale_frames"}


def test_a_run_leaves_everything_the_contract_names(run_train, frames_folder, tmp_path):
    run_dir = tmp_path / "run"
    done = run_train(
        "data=folder",
        f"data.root={frames_folder}",
        f"hydra.run.dir={run_dir}",
        *TINY,
        "logger=wandb",
        "measure.rounds=2",
        steps=2,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["status"] == "complete"
    saved = load_model(run_dir / "model.safetensors")
    assert record["model"]["parameters"] == sum(parameter.numel() for parameter in saved.parameters())
    assert record["model"]["file_bytes"] == (run_dir / "model.safetensors").stat().st_size
    statistics = [tensor for name, tensor in saved.state_dict().items() if name.endswith("running_mean")]
    assert all(mean.any() for mean in statistics), "weights=none: there were none to be kept frozen"
    assert record["quality"].keys() == {"tiny"}
    assert record["quality"]["tiny"].keys() >= QUALITY
    assert record["quality"]["tiny"]["alignment"] == "per_frame"
    assert 0 < record["baselines"]["vertical_ramp"]["tiny"]["delta1"] <= 1
    assert (run_dir / "config.yaml").exists()
    assert list(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert list(run_dir.glob("wandb/offline-run-*/files/media/images/pictures_*.png"))
    assert f"report: {run_dir}/report.html" in done.stdout
    page = (run_dir / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page loads something from outside itself"
    columns = (run_dir / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "lr-AdamW/encoder", "lr-AdamW/decoder", "val/tiny/delta1"} <= set(columns)


def test_a_killed_run_continues_to_the_same_weights_as_one_that_was_not(run_train, frames_folder, tmp_path):
    options = ["data=folder", f"data.root={frames_folder}", *TINY, "trainer.max_steps=12", "trainer.validate_every=5"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_train(*options, f"hydra.run.dir={whole}").returncode == 0
    each_step = "trainer.checkpoint_minutes=0.00001"
    process = subprocess.Popen(
        **train_command(*options, each_step, f"hydra.run.dir={killed}"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = killed / "checkpoints/last.ckpt"
    give_up = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((killed / "metrics.json").read_text())["status"] == "running"
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert 0 < step < 12, "killed too late to show anything"
    resumed = run_train(f"resume={killed}")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((killed / "metrics.json").read_text())["status"] == "complete"
    expected, found = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_a_run_stopped_by_its_deadline_says_how_to_go_on_and_goes_on(run_train, frames_folder, tmp_path):
    run_dir = tmp_path / "run"
    options = ["data=folder", f"data.root={frames_folder}", *TINY, "trainer.max_steps=3", f"hydra.run.dir={run_dir}"]
    stopped = run_train(*options, "trainer.max_minutes=0.00001")
    assert stopped.returncode == 0, stopped.stderr
    assert f"python train.py resume={run_dir}" in stopped.stdout
    assert json.loads((run_dir / "metrics.json").read_text())["status"] == "incomplete"
    assert (run_dir / "report.html").exists()
    moved = frames_folder.rename(tmp_path / "moved")
    done = run_train(f"resume={run_dir}", "trainer.max_minutes=null", f"data.root={moved}")
    assert done.returncode == 0, done.stderr
    assert json.loads((run_dir / "metrics.json").read_text())["status"] == "complete"
    again = run_train(f"resume={run_dir}")
    assert again.returncode == 2
    assert "complete after 3 steps" in again.stderr
    for option in ("data=nyu", "+data.rot=x", "optimizer.rot=x"):
        wrong = run_train(f"resume={run_dir}", option)
        assert wrong.returncode == 2
        assert wrong.stderr.count("\n") == 1
        assert "cannot be exchanged" in wrong.stderr or "unknown option" in wrong.stderr
    network = (run_dir / "model.safetensors").read_bytes()
    anew = run_train(*options, "seed=1")
    assert anew.returncode == 2
    assert f"{run_dir}: holds results already" in anew.stderr
    assert (run_dir / "model.safetensors").read_bytes() == network


def test_a_signal_ends_a_run_with_a_status_that_says_so(tmp_path):
    class Terminated(BoringModel):
        def training_step(self, batch: torch.Tensor, index: int) -> object:
            os.kill(os.getpid(), signal.SIGTERM)
            return super().training_step(batch, index)

    trainer = L.Trainer(
        accelerator="cpu", max_steps=9, logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        fit(tmp_path, trainer, Terminated(), BoringDataModule())  # type: ignore[arg-type]
    signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143
    assert 0 < trainer.global_step < 9, "it was not the signal that ended it"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_stepz=3"], "error: unknown option 'trainer.max_stepz'; did you mean 'trainer.max_steps'?"),
        (["data=foldr"], "error: no 'foldr' in data; did you mean 'folder'?"),
        (["optimizer.encoder_lr=fast"], "error: option optimizer.encoder_lr: Value 'fast'"),
        (["data=folder"], "error: option data.root has no value: give data.root=..."),
        (["data=folder", "data.root=/nowhere"], "error: /nowhere: no such folder"),
        (["size=[250,256]"], "error: size=[250, 256]: height and width as multiples of 32"),
        (["loss.data=huber"], "error: loss.data=huber: unknown; choose one of trimmed, ssi, l1, mse"),
        (["trainer=gpu"], "error: trainer.accelerator=gpu: PyTorch sees no GPU here; use trainer=cpu"),
        (["weights=nothing"], "error: weights=nothing: no such file; choose one of none, midas, imagenet"),
        (["resume=/nowhere"], "error: resume=/nowhere: holds no checkpoints/last.ckpt"),
    ],
)
def test_a_mistake_is_answered_in_one_line(run_train, tmp_path, overrides, message):
    if "trainer=gpu" in overrides and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    answer = run_train(*overrides, f"hydra.run.dir={tmp_path}/run", "logger=csv", steps=1)
    assert answer.returncode == 2
    assert answer.stderr.strip().splitlines()[-1].startswith(message)
    assert "Traceback" not in answer.stderr


def test_a_broken_frame_met_by_a_loader_names_the_file_in_one_line(run_train, frames_folder, tmp_path):
    for image in (frames_folder / "rgb").iterdir():
        image.write_bytes(image.read_bytes()[:200])
    options = [*TINY, "workers=1", f"hydra.run.dir={tmp_path}/run"]
    answer = run_train("data=folder", f"data.root={frames_folder}", *options, steps=1)
    assert answer.returncode == 2
    assert re.match(r"error: .*/rgb/\d+\.png: ", answer.stderr.strip().splitlines()[-1])
    assert "Traceback" not in answer.stderr


def test_the_papers_fine_tuning_shows_its_failure(run_train, frames_folder, tmp_path):
    run_dir = tmp_path / "run"
    options = ["experiment=paper_finetune", "data=folder", f"data.root={frames_folder}", f"hydra.run.dir={run_dir}"]
    done = run_train(*options, "weights=none", "logger=csv", steps=2)
    assert done.returncode == 0, done.stderr
    entry = json.loads((run_dir / "metrics.json").read_text())["quality"]["tiny"]
    assert (entry["protocol"], entry["alignment"], entry["delta1"]) == ("raw", "none", None)
    assert entry["rmse"] > 500  # inverse depth of about 1 against depth in millimetres
    assert "counts of the depth image" in Path(run_dir / "report.html").read_text()


def test_what_null_leaves_to_the_weights(tmp_path):
    """Trained weights bring their size and are trained on in smaller steps."""
    path = tmp_path / "model.safetensors"
    save_model(build_model("midas_small", encoder="lite0"), path, input=[64, 96], trained_on="a+b")
    fresh, trained = composed("weights=imagenet"), composed(f"weights={path}")
    for config in (fresh, trained):
        fill_in(config)
    assert (list(fresh.size), list(trained.size)) == ([160, 224], [64, 96])
    assert (fresh.loss.start_steps, trained.loss.start_steps) == (100, 0)
    assert fresh.optimizer.encoder_lr == 2 * trained.optimizer.encoder_lr == RATES["encoder_lr"]
    asked = {name: value for name, value in network_options(fresh).items() if value is not None}
    assert asked == {"encoder": "lite0", "border": "replicate"}
    assert not any(network_options(trained).values())
    given = composed(f"weights={path}", "size=[32,32]", "optimizer.decoder_lr=1e-5", "loss.start_steps=3")
    fill_in(given)
    assert (list(given.size), given.optimizer.decoder_lr, given.loss.start_steps) == ([32, 32], 1e-5, 3)


def test_a_network_learned_from_what_its_weights_learned_from(tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(build_model("midas_small", encoder="lite0"), path, input=[64, 96], trained_on="a+b")
    splits = Splits("b+c", [], [])
    assert trained_on(str(path), splits) == "a+b+c"
    assert trained_on("imagenet", splits) == trained_on("none", splits) == "b+c"


def test_what_a_network_was_before_is_taken_from_its_own_run_for_the_same_frames_alone(tmp_path):
    model = build_model("midas_small", encoder="lite0")
    save_model(model, tmp_path / "model.safetensors", input=[32, 32])
    config = SimpleNamespace(weights=str(tmp_path / "model.safetensors"), size=[32, 32])
    rooms, streets, again = (
        evaluate(ramp_predictor, SyntheticFrames(2, (32, 32), world=world)) for world in ("rooms", "streets", "rooms")
    )

    def known(quality: object, **entries: object) -> dict:
        record = new_record("complete", model={"input": [32, 32]}) | {"quality": quality} | entries
        write_record(tmp_path, record)
        return known_qualities(config, model, {"rendered": again})

    marked = rooms | {"rmse": 7.0}
    assert known({"synthetic": streets, "called otherwise": marked}) == {"rendered": marked}
    assert known({"rendered": streets}) == {}, "another world of the same name, frames and size"
    assert known({"rendered": {k: v for k, v in rooms.items() if k != "content"}}) == {}, "an older record"
    assert known({"rendered": rooms | {"protocol": "raw"}}) == {}
    assert known({"rendered": rooms}, model={"input": [64, 64]}) == {}
    assert known({"rendered": rooms}, status="incomplete") == {}
    assert known({"rendered": rooms}, deployment={"precision": "int8"}) == {}
    assert known(["of another program"]) == {}
    (tmp_path / "metrics.json").write_text("{")
    assert known_qualities(config, model, {"rendered": again}) == {}
    write_record(tmp_path, new_record("complete", model={"input": [32, 32]}, quality={"rendered": rooms}))
    other = build_model("midas_small", encoder="lite0")
    assert known_qualities(config, other, {"rendered": again}) == {}, "of other weights"


def test_what_is_pruned_is_the_checkpoint(tmp_path):
    with pytest.raises(MdeError, match="weights=imagenet: what is pruned is checkpoint=shipped; leave it out"):
        prune(composed("prune=channel", "sparsity=0.5", "weights=imagenet", script="prune"))


WITHOUT_PICTURES = f"""
import errno, os, runpy, PIL.Image
def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
PIL.Image.Image.save = full
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def test_a_trained_network_is_not_lost_to_pictures_that_cannot_be_written(frames_folder, tmp_path):
    script, run_dir = tmp_path / "train.py", tmp_path / "run"
    script.write_text(WITHOUT_PICTURES)
    options = ["data=folder", f"data.root={frames_folder}", f"hydra.run.dir={run_dir}", *TINY, "logger=wandb"]
    done = run_script(script, quick("train.py", options, 1), ROOT, script_environment())
    assert done.returncode == 0, done.stderr
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["status"] == "complete"
    assert load_model(run_dir / "model.safetensors").name == "midas_small"
    (note,) = [note for note in record["notes"] if note.startswith("left out: pictures: ")]
    assert note.endswith(f"{run_dir}/pictures/tiny.png: not written (No space left on device); free disk space")
    assert note in done.stdout
    assert "left out: report.html: OSError: [Errno 28]" in done.stdout, "its curves are pictures too"
    assert "left out: pictures of step 1: " in done.stdout
    assert not list(run_dir.glob("pictures/*"))
