"""Pruning in training and after it, as a user asks for it."""

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mde.config import ImportanceConfig, PruneConfig, RecoveryConfig
from mde.models import build_model, load_model, read_metadata, save_model
from mde.models.counts import multiply_adds
from mde.pruning import Pruner, build_pruner, pruner
from mde.pruning.channels import Limits, Search
from mde.pruning.cost import cost, layers_of
from mde.pruning.importance import channel_importance
from mde.pruning.schedule import Schedule
from mde.pruning.structure import channel_groups, keep_channels
from mde.training.trainer import LAST
from tests.conftest import TINY, train_command
from tests.test_config import composed


@pytest.fixture
def tiny(frames_folder, tmp_path):
    """Options of a small run on a small folder."""
    return ["data=folder", f"data.root={frames_folder}", *TINY]


@pytest.fixture
def trained(tmp_path):
    """A checkpoint; its weights are random, which does not matter here."""
    torch.manual_seed(0)
    path = tmp_path / "trained.safetensors"
    save_model(build_model("midas_small", encoder="lite0"), path, input=[64, 64], licence="of its teacher")
    return path


def prune(run, tiny, trained, tmp_path, *overrides):
    """Runs prune.py and returns its record, which must be complete."""
    options = [item for item in tiny if not item.startswith("weights=")]
    options += [f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/pruned"]
    done = run(*options, *overrides, script="prune.py")
    assert done.returncode == 0, done.stderr
    return json.loads((tmp_path / "pruned/metrics.json").read_text())


def test_a_run_from_untrained_weights_trains_dense_then_prunes_and_says_so(run_train, tiny, tmp_path):
    options = ["prune=channel", "sparsity=0.3", "importance.images=2", "recovery.batchnorm_images=2"]
    done = run_train(*tiny, *options, f"hydra.run.dir={tmp_path}/run", "measure.rounds=2", steps=4)
    assert done.returncode == 0, done.stderr
    assert "trains dense for 2 steps, then prunes" in done.stdout
    assert "step 2: pruned from" in done.stdout
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert record["model"]["sparsity"] == pytest.approx(0.3, abs=0.005)
    assert (
        record["model"]["parameters"] < record["before"]["model"]["parameters"] == record["model"]["dense_parameters"]
    )
    assert record["model"]["macs"] < record["before"]["model"]["macs"]
    assert record["teacher"].endswith("dense.safetensors")
    assert record["before"]["quality"].keys() == record["quality"].keys() == {"tiny"}
    for latency in record["latency"], record["before"]["latency"], record["reference_latency"]:
        assert {entry["status"] for entry in latency.values()} == {"measured"}
    columns = (tmp_path / "run/logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/distil_output", "train/distil_features"} <= set(columns)
    saved = load_model(tmp_path / "run/model.safetensors")
    assert sum(parameter.numel() for parameter in saved.parameters()) == record["model"]["parameters"]
    assert ": before<" in (tmp_path / "run/report.html").read_text()


@pytest.mark.parametrize("kind", ["channel", pytest.param("fine_grained", marks=pytest.mark.whole)])
def test_a_run_killed_in_mid_schedule_ends_with_the_same_network_as_one_that_was_not(run_train, tiny, tmp_path, kind):
    options = [*tiny, f"prune={kind}", "sparsity=0.4", "schedule=cubic", "schedule.start=2", "schedule.end=6"]
    options += ["schedule.interval=2", "trainer.max_steps=8", "importance=l1", "recovery.batchnorm_images=2"]
    options += ["prune.blocks=2"] if kind == "channel" else []
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_train(*options, f"hydra.run.dir={whole}").returncode == 0
    each_step = "trainer.checkpoint_minutes=0.00001"
    command = train_command(*options, each_step, f"hydra.run.dir={killed}")
    process = subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    for line in process.stdout:
        if "step 4: pruned" in line:
            break
    checkpoint, before = killed / "checkpoints/last.ckpt", time.monotonic()
    while torch.load(checkpoint, weights_only=True)["global_step"] < 5 and time.monotonic() - before < 60:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert torch.load(checkpoint, weights_only=True)["global_step"] < 7, "killed too late to show anything"
    resumed = run_train(f"resume={killed}")
    assert resumed.returncode == 0, resumed.stderr
    assert "step 4: pruned" not in resumed.stdout, "done already"
    assert "step 6: pruned" in resumed.stdout
    expected, found = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name
    record = json.loads((killed / "metrics.json").read_text())
    assert record["model"]["sparsity"] == pytest.approx(0.4, abs=0.005)


def test_masked_weights_stay_zero_while_the_others_train(run_train, tiny, trained, tmp_path):
    options = ["prune=fine_grained", "prune.scope=layer", "sparsity=0.9", "trainer.max_steps=3", "importance=l1"]
    record = prune(run_train, tiny, trained, tmp_path, *options, "recovery.batchnorm_images=2")
    assert record["model"]["sparsity"] == pytest.approx(0.9, abs=0.001)
    assert read_metadata(tmp_path / "pruned/model.safetensors")["licence"] == "of its teacher"
    before, after = load_file(trained), load_file(tmp_path / "pruned/model.safetensors")
    for name, tensor in after.items():
        if tensor.ndim == 4 and "decoder" in name:
            kept = tensor != 0
            assert 0 < kept.float().mean() < 1
            assert not torch.equal(tensor[kept], before[name][kept]), "did not train"


@pytest.mark.parametrize("kind", ["layer", "two_four"])
def test_prune_and_evaluate_only(run_train, tiny, trained, tmp_path, kind):
    sparsity = ["sparsity=0.2"] if kind == "layer" else []
    record = prune(run_train, tiny, trained, tmp_path, f"prune={kind}", *sparsity, "recovery=none", "importance=l1",
                   "recovery.batchnorm_images=2")  # fmt: skip
    assert record["model"]["steps"] == 0
    assert record["teacher"] == ""
    low, high = (0.1, 0.3) if kind == "layer" else (0.3, 0.5)
    assert low < record["model"]["sparsity"] < high
    before, after = load_file(trained), load_file(tmp_path / "pruned/model.safetensors")
    for name, tensor in after.items():
        if tensor.ndim == 4:
            assert torch.equal(tensor[tensor != 0], before[name][tensor != 0])


def test_a_pruned_network_can_be_pruned_again_counted_from_the_dense_one(run_train, tiny, trained, tmp_path):
    options = ["prune=channel", "recovery=none", "importance=l1", "recovery.batchnorm_images=2"]
    prune(run_train, tiny, trained, tmp_path, *options, "sparsity=0.3")
    once = (tmp_path / "pruned").rename(tmp_path / "once")
    record = prune(run_train, tiny, once / "model.safetensors", tmp_path, *options, "sparsity=0.6")
    assert record["before"]["model"]["sparsity"] == pytest.approx(0.3, abs=0.005)
    assert record["model"]["sparsity"] == pytest.approx(0.6, abs=0.005)


def test_a_budget_of_multiply_adds_is_met(run_train, tiny, trained, tmp_path):
    record = prune(run_train, tiny, trained, tmp_path, "prune=channel", "prune.budget=macs", "prune.target=1e8",
                   "recovery=none", "importance=l1", "recovery.batchnorm_images=2")  # fmt: skip
    assert record["model"]["macs"] == pytest.approx(1e8, rel=0.02)


def test_a_budget_of_time_is_measured_here_or_taken_from_another_devices_profile(run_train, tiny, trained, tmp_path):
    options = ["prune=channel", "recovery=none", "importance=l1", "recovery.batchnorm_images=2"]
    measured = ["prune.budget=fps", "prune.target=0.01", "prune.scan=true"]
    record = prune(run_train, tiny, trained, tmp_path, *options, *measured)
    assert record["model"]["macs"] == record["before"]["model"]["macs"], "fast enough already"
    assert (tmp_path / "pruned/pictures/sensitivity.png").exists()
    here = (tmp_path / "pruned").rename(tmp_path / "here")
    profile = json.loads((here / "profile.json").read_text())
    path = tmp_path / "profile.json"
    # Of a device that is exactly so fast: what was measured here, of layers of microseconds, is mostly noise.
    profile |= profile_by_macs(load_model(trained)) | {"total_ms": 4.0}
    path.write_text(json.dumps(profile))
    options += ["prune.budget=latency_ms", "prune.target=2.6", f"prune.profile={path}"]
    given = prune(run_train, tiny, trained, tmp_path, *options)
    assert given["model"]["macs"] < 0.8 * given["before"]["model"]["macs"]
    path.write_text(json.dumps(profile | {"input": [96, 96]}))
    options += [f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/refused"]
    refused = run_train(*tiny[:-3], *options, script="prune.py")
    assert refused.returncode == 2
    assert "of input [96, 96], not [64, 64]" in refused.stderr


def test_the_search_for_a_time_is_corrected_by_what_is_measured(monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = build_model("midas_small", encoder="lite0")
    groups = channel_groups(model)
    layers = layers_of(model, groups, (64, 64))
    widths = {group.name: group.width for group in groups}
    dense = cost(layers, widths).macs
    profile = profile_by_macs(model) | {"total_ms": 10.0}

    def as_many_macs(network):
        return multiply_adds(network, (64, 64)) / dense

    monkeypatch.setattr(pruner, "measure_profile", lambda *_: profile)
    # A device on which what remains takes longer than its layers alone would say.
    asked = []
    monkeypatch.setattr(
        pruner, "time_share", lambda network, *_: asked.append(as_many_macs(network) ** 0.8) or asked[-1]
    )
    options = PruneConfig(kind="channel", sparsity=None, budget="latency_ms", target=6.0)
    callback = Pruner(
        options, ImportanceConfig("l1"), Schedule("one_shot", 0, 0, 1), RecoveryConfig("none"), (64, 64), tmp_path
    )
    callback.share = 1.0
    save_model(model, callback.dense_file)
    scores = channel_importance(model, groups, "l1")

    def search(aims):
        return Search(layers, groups, widths, scores, Limits(8, 0.9, {}), "global", aims).run()

    keep = callback._within_latency(model, groups, layers, search)
    keep_channels(model, groups, keep)
    assert len(asked) > 1
    assert asked[0] > 0.6, "the first aim missed, or the test shows nothing"
    assert 0.5 < as_many_macs(model) ** 0.8 <= 0.6


def ideal(layer, widths):
    """Times in proportion to the multiply-adds."""
    reads, writes = layer.read(widths), layer.written(widths)
    grid = [reads] if layer.depthwise else [0, reads]
    whole = layer.macs(widths)
    return {"reads": grid, "writes": [0, writes], "ms": [[0, whole * r / reads] for r in grid]}


def profile_by_macs(model):
    groups = channel_groups(model)
    widths = {group.name: group.width for group in groups}
    layers = {layer.name: ideal(layer, widths) for layer in layers_of(model, groups, (64, 64)) if layer.area}
    described = {"network": model.name, "options": model.options, "input": [64, 64]}
    return described | {"widths": widths, "layers": layers}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sparsity=0.1"], "sparsity=0.1: without pruning; add prune=channel"),
        (["prune=channel"], "prune=channel: how much? give sparsity=0.5"),
        (["prune=channel", "sparsity=1"], "sparsity=1.0: a share of the parameters, at least 0 and below 1"),
        (["prune=channel", "sparsity=-0.1"], "sparsity=-0.1: a share of the parameters"),
        (["prune=channel", "sparsity=0.999"], "cannot be pruned that far"),
        (["prune=two_four", "sparsity=0.3"], "sparsity=0.3: prune=two_four zeroes two of every four"),
        (["prune=channel", "sparsity=0.3", "prune.budget=fps"], "sparsity=0.3 and prune.budget=fps: give one of them"),
        (["prune=layer", "prune.budget=fps", "prune.target=30"], "prune.budget=fps: zeros save no time"),
        (["prune=channel", "prune.budget=fps"], "prune.budget=fps: how much? give prune.target="),
        (["prune=channel", "sparsity=0.3", "importance=lamp"], "importance=lamp: not with prune=channel"),
        (["prune=channel", "sparsity=0.3", "schedule.start=0"], "recovery=distill: with weights=none"),
        (["prune=channel", "sparsity=0.3", "schedule.start=9"], "schedule.start=9: after the last step"),
        (["prune=layer", "sparsity=0.3", "prune.blocks=2"], "prune.blocks=2: only with prune=channel and"),
        (["prune=channel", "sparsity=0.3", "prune.blocks=99"], "prune.blocks=99: midas_small has 16 residual blocks"),
        (["prune=chanel", "sparsity=0.3"], "no 'chanel' in prune; did you mean 'channel'?"),
    ],
)
def test_contradicting_options_are_answered_in_one_line(run_train, tiny, tmp_path, overrides, message):
    answer = run_train(*tiny, *overrides, f"hydra.run.dir={tmp_path}/run", "trainer.max_steps=2")
    assert answer.returncode == 2
    assert answer.stderr.strip().splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in answer.stderr


def test_structural_pruning_in_several_processes_is_refused_in_one_line(run_train, tiny, tmp_path):
    options = ["prune=channel", "sparsity=0.3", "trainer=ddp", "trainer.accelerator=cpu"]
    answer = run_train(*tiny, *options, f"hydra.run.dir={tmp_path}/run", "trainer.max_steps=2")
    assert answer.returncode != 0
    assert "prune=channel: not in several processes" in answer.stderr


@pytest.mark.whole
def test_masks_hold_in_several_processes(run_train, tiny, tmp_path):
    options = ["prune=fine_grained", "sparsity=0.5", "schedule.start=1", "schedule.end=2", "trainer=ddp"]
    options += ["trainer.accelerator=cpu", "trainer.devices=2", "batch_size=2", "trainer.max_steps=3"]
    answer = run_train(*tiny, *options, f"hydra.run.dir={tmp_path}/run")
    assert answer.returncode == 0, answer.stderr[-2000:]
    record = json.loads((tmp_path / "run/metrics.json").read_text())
    assert record["status"] == "complete"
    assert record["model"]["sparsity"] == pytest.approx(0.5, abs=0.005)  # after a step more: zeros stay zeros
    checkpoint = torch.load(tmp_path / "run" / LAST, weights_only=True)
    weights = checkpoint["state_dict"]
    masks = next(state["masks"] for state in checkpoint["callbacks"].values() if "masks" in state)
    assert masks
    for name, mask in masks.items():
        assert not weights[f"model.{name}"][~mask.bool()].any(), name


def test_a_teachers_weight_falls_to_zero_sooner_where_it_is_half_trained():
    options = ["prune=channel", "sparsity=0.3", "trainer.max_steps=400", "size=[64,64]"]
    config = composed(*options, "weights=imagenet")
    build_pruner(config, Path("unused"))
    assert (config.schedule.start, config.schedule.end, config.recovery.fade) == (200, 200, 50)
    config = composed(*options, "weights=/trained")
    callback = build_pruner(config, Path("unused"))
    assert (config.schedule.start, config.recovery.fade) == (0, 400)
    assert [callback.teacher_weight(step) for step in (0, 100, 399, 400)] == pytest.approx([1, 0.75, 0.0025, 0])
