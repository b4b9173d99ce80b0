"""A run directory: one process's at a time, and options that are whole and call nothing."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
from collections.abc import Callable

import pytest
from omegaconf import OmegaConf

from mde.builders import BUILDERS
from mde.config import TrainConfig
from mde.errors import MdeError
from mde.overrides import quoted
from mde.runs import CHECKSUM, claim, leads, link_out, load_options, save_options, used
from tests.test_config import composed


def in_child(function: Callable[[], object]) -> int:
    """The exit status of a forked process that calls `function`: 0, or 2 after an MdeError."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except MdeError:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_directory_is_one_processs_until_it_lets_go(tmp_path, monkeypatch):
    with claim(tmp_path / "new/run", "hydra.run.dir"):
        assert in_child(lambda: claim(tmp_path / "new/run", "hydra.run.dir")) == 2
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert in_child(lambda: claim(tmp_path / "new/run", "hydra.run.dir")) == 0, "a run's own further process"
        monkeypatch.delenv("LOCAL_RANK")
    assert in_child(lambda: claim(tmp_path / "new/run", "hydra.run.dir")) == 0


def test_a_killed_run_lets_go_although_a_data_loader_of_its_own_still_lives(tmp_path):
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        lock = claim(tmp_path, "hydra.run.dir")
        loader = os.fork()
        if loader == 0:
            os.write(write, b"%d" % os.getpid())
        signal.pause()
        os._exit(lock.closed)
    loader = int(os.read(read, 20))
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    os.kill(loader, 0)  # lives
    claim(tmp_path, "hydra.run.dir").__exit__(None, None, None)
    os.kill(loader, signal.SIGKILL)
    os.close(read), os.close(write)


def test_what_cannot_be_written_to_is_named_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(MdeError, match=rf"^{path}: cannot be written to \(.*\); choose another hydra.sweep.dir$"):
            claim(path, "hydra.sweep.dir")


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "checkpoints/last.ckpt", "bundle/x", "logs/version_0/metrics.csv", "depth/1.png", "frames.csv"],
)
def test_results_make_a_directory_used_and_what_is_left_of_a_run_without_any_does_not(tmp_path, name):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/metrics.json").write_text('{"status": "complete"}')
    for left in ("train.log", "config.yaml", "report.html"):
        (tmp_path / left).touch()
    for status in ("running", "incomplete", "failed"):
        (tmp_path / "metrics.json").write_text(json.dumps({"status": status}))
        assert not used(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert used(tmp_path)
    shutil.copy(tmp_path / "other/metrics.json", tmp_path / "other/..")
    (tmp_path / name).unlink()
    assert used(tmp_path)


@pytest.mark.parametrize("name", [".hydra/config.yaml", "train.log", "logs", "pictures", "a/b/c", "wandb"])
def test_a_link_out_of_a_directory_is_found_and_one_inside_is_not(tmp_path, name):
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (run_dir / "wandb/run-1/logs").mkdir(parents=True)
    (run_dir / "wandb/latest").symlink_to("run-1")
    (run_dir / "wandb/run-1/logs/debug-core.log").symlink_to(elsewhere / "core.log")  # as W&B does
    (run_dir / "inside").symlink_to(run_dir / "wandb")
    (run_dir / "itself").symlink_to("itself")
    (tmp_path / "alias").symlink_to(run_dir)
    assert link_out(run_dir) is link_out(tmp_path / "alias") is None
    if name == "wandb":
        (run_dir / "inside").unlink()
        shutil.rmtree(run_dir / name)
    (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
    (run_dir / name).symlink_to("../" * name.count("/") + "../elsewhere")
    assert link_out(run_dir) == run_dir / name


def test_an_empty_rank_is_none(monkeypatch):
    monkeypatch.setenv("RANK", "")
    assert leads()
    monkeypatch.setenv("RANK", "1")
    assert not leads()


def test_options_come_back_as_they_were_but_for_what_the_moment_decided(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_TEST_ROOT", "/frames")
    config = composed("data=folder", "data.root=${oc.env:MDE_TEST_ROOT}/a", "evaluate=['${oc.env:MDE_TEST_ROOT}']")
    save_options(tmp_path, config)
    monkeypatch.delenv("MDE_TEST_ROOT")
    found = load_options(tmp_path, TrainConfig)
    assert (found.data.root, found.evaluate) == ("/frames/a", ["/frames"])
    found.sparsity = 0.25
    assert found.prune.sparsity == 0.25, "an option that follows another no longer does"
    assert config.data._get_node("root")._value() == "${oc.env:MDE_TEST_ROOT}/a", "the caller's was changed"


@pytest.mark.parametrize("name", ["u${x", "${oc.env:HOME}", "a\\${b}", "${seed}", "\\\\${x"])
def test_a_path_that_looks_like_an_interpolation_stays_what_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    monkeypatch.setenv("MDE_TEST_ROOT", name)
    for option in (quoted(f"data.root={name}"), "data.root=${oc.env:MDE_TEST_ROOT}"):
        save_options(tmp_path, composed("data=folder", option))
        assert load_options(tmp_path, TrainConfig).data.root == name


def test_options_that_are_not_whole_are_refused(tmp_path):
    save_options(tmp_path, composed())
    path = tmp_path / "config.yaml"
    text = path.read_text()
    lines = text.splitlines(keepends=True)
    for kept in [
        *("".join(lines[:count]) for count in range(0, len(lines), 9)),
        text[:40],
        text[:-3],
        text + "seed: 1\n",
    ]:
        path.write_text(kept)
        with pytest.raises(MdeError, match=f"^{path}: "):
            load_options(tmp_path, TrainConfig)
    path.write_text("".join(lines[1:]))  # as versions before wrote it
    assert load_options(tmp_path, TrainConfig).size == composed().size


def test_damaged_options_are_one_line_that_names_the_file(tmp_path):
    text = OmegaConf.to_yaml(composed("data=mix", "data.parts.folder.root=/frames")).encode()
    path, draw, refused = tmp_path / "config.yaml", random.Random(0), 0
    for _ in range(24):
        at = draw.randrange(len(text))
        put = draw.choice([b"\t", b"*a", b"${", b"- ", b"[", b"\xff", b"!!python/name:os.system ", b": "])
        path.write_bytes(text[:at] + put + text[at + draw.choice([0, 1, 9]) :])
        with contextlib.suppress(MdeError):
            load_options(tmp_path, TrainConfig)
            continue  # what is left says something
        refused += 1
        with pytest.raises(MdeError, match=rf"^{path}: [^\n]*$"):
            load_options(tmp_path, TrainConfig)
    assert refused > 12
    for content in ("", "text", "- a", "seed: 1", "data: 5", "data: {_target_: mde.data.folder.folder_splits, rot: x}"):
        path.write_text(content)
        with pytest.raises(MdeError, match=f"^{path}: "):
            load_options(tmp_path, TrainConfig)


@pytest.mark.parametrize(
    "data",
    [
        {"_target_": "torch.load", "f": "FILE", "weights_only": False},
        {
            "_target_": "mde.data.mix.mix_splits",
            "parts": {"a": {"_target_": "builtins.open", "file": "FILE", "mode": "w"}},
        },
        {"_target_": "mde.data.mix.mix_splits", "parts": {"a": [{"b": {"_target_": "os.unlink", "path": "FILE"}}]}},
        {"_target_": "mde.data.mix.mix_splits", "parts": {"a": "${evaluate}"}, "_partial_": True},
        {"_target_": "mde.data.folder.folder_splits", "root": "${oc.env:HOME}"},
        {"_target_": "mde.data.folder.folder_splits", "root": "${${seed}.x:HOME}"},
        {"_target_": next(iter(BUILDERS["prune"]))},
    ],
)
def test_what_would_call_other_code_or_tell_of_this_machine_is_refused(tmp_path, data):
    """Also with a checksum, which anybody can compute."""
    config = OmegaConf.create(OmegaConf.to_yaml(composed("data=folder", "data.root=/frames")))
    config.data = data
    text = OmegaConf.to_yaml(config)
    (tmp_path / "config.yaml").write_text(f"{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    with pytest.raises(MdeError, match=r"config.yaml: (data: _|.*a resolver)"):
        load_options(tmp_path, TrainConfig)
