"""Multiruns: what happens to each job, and what the sweep leaves."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import combinations

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import mde.app.entry
from mde.app import chosen
from mde.app.callback import SweepCallback
from mde.app.chosen import evaluate_chosen
from mde.app.entry import _checked, register, run
from mde.app.jobs import LONGEST_NAME, job_name
from mde.app.search import NAME, study_storage, trials_left
from mde.app.sweep_latency import measure
from mde.models import build_model, save_model
from mde.pruning.pruner import DENSE
from mde.records import describe_model, new_record, read_record, write_record
from mde.report.sweep_table import caption, read_jobs, table
from mde.runs import LAST, claim, save_options
from tests.app import tiny_job
from tests.conftest import TINY, call, train_command, write_frames
from tests.test_config import composed

QUIET = ["hydra/job_logging=disabled", "hydra/hydra_logging=disabled"]


@pytest.fixture
def sweep(monkeypatch, tmp_path):
    """Runs tiny_job in this process as `python train.py overrides` would run, and returns the exit status."""
    register()

    def call(*overrides: str, multirun: bool = True) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *(["-m"] if multirun else []), *QUIET, *overrides])
        monkeypatch.setattr(SweepCallback, "directory", None)
        monkeypatch.setattr(mde.app.entry, "_failed", [])
        with pytest.raises(SystemExit) as ended:
            run(tiny_job.main)
        return ended.value.code

    return call


def summary(directory) -> dict[str, dict]:
    return {row["job"]: row for row in json.loads((directory / "summary.json").read_text())["jobs"]}


def test_a_jobs_directory_depends_on_the_set_of_its_overrides_alone():
    assert job_name(["sparsity=0.1", "prune=channel"]) == job_name(["prune=channel", "sparsity=0.1"])
    assert job_name(["prune=channel", "sparsity=0.1"]) == "prune-channel+sparsity-0.1"
    assert job_name(["seed=1", "sweep.resume=a/b", "sweep=optuna"]) == "seed-1"
    assert job_name([]) == "defaults"
    several = [
        [],
        ["a=x/y"],
        ["a=x_y"],
        ["a=x+b-y"],
        ["a=x", "b=y"],
        ["size=[64,64]"],
        ["size=[64,96]"],
        *([f"data.root={'x' * length}"] for length in (90, 120, 121)),
        ["data.root='/a b'", "weights=/w/ü.pt"],
        ["+extra=1"],
        ["extra=1"],
    ]
    names = [job_name(overrides) for overrides in several]
    assert all(first != second for first, second in combinations(names, 2))
    parser = OverridesParser.create()
    for name in names:
        assert len(name) <= LONGEST_NAME
        assert parser.parse_override(f"resume=outputs/{name}").value() == f"outputs/{name}", "cannot be typed unquoted"


def test_failing_jobs_are_recorded_and_counted_and_do_not_stop_the_others(sweep, tmp_path, capfd):
    assert sweep(f"hydra.sweep.dir={tmp_path}", "seed=101,1,102,2", "data=synthetic,folder") == 6
    output = capfd.readouterr()
    found = summary(tmp_path)
    assert len(found) == 8
    assert {name for name, row in found.items() if row["status"] == "complete"} == {
        "data-synthetic+seed-1",
        "data-synthetic+seed-2",
    }
    assert found["data-synthetic+seed-101"]["error"] == "seed=101: too large; take a smaller one"
    assert found["data-synthetic+seed-102"]["error"] == "ZeroDivisionError: in two lines"
    assert found["data-folder+seed-1"]["error"] == "option data.root has no value: give data.root=..."
    record = read_record(tmp_path / "data-synthetic+seed-101")
    assert (record["status"], record["error"]) == ("failed", "seed=101: too large; take a smaller one")
    assert output.err.count("Traceback") == 1
    assert "2 of 8 jobs complete" in output.out
    page = (tmp_path / "report.html").read_text()
    assert "seed=101: too large" in page
    assert "href='data-synthetic%2Bseed-1/" not in page, "a link to a page that is not there"
    assert "href='data-synthetic%2Bseed-101/report.html'" in page


def test_a_single_run_fails_as_before(sweep, tmp_path, capfd):
    assert sweep(f"hydra.run.dir={tmp_path}", "seed=101", multirun=False) == 2
    assert capfd.readouterr().err == "error: seed=101: too large; take a smaller one\n"
    assert not (tmp_path / "metrics.json").exists()
    with pytest.raises(ZeroDivisionError):
        sweep(f"hydra.run.dir={tmp_path}", "seed=102", multirun=False)
    assert sweep(f"hydra.run.dir={tmp_path}", "sweep.resume=x", multirun=False) == 2
    assert "add -m" in capfd.readouterr().err


def test_a_used_directory_is_refused_before_anything_is_written(sweep, tmp_path, capfd):
    run_dir = tmp_path / "run"
    assert sweep(f"hydra.run.dir={run_dir}", "seed=1", multirun=False) == 0
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    assert sweep(f"hydra.run.dir={run_dir}", "seed=2", multirun=False) == 2
    assert sweep(f"hydra.sweep.dir={run_dir}", "seed=2,3") == 2
    refusals = capfd.readouterr().err.splitlines()
    assert refusals[0] == f"error: {run_dir}: holds results already; choose another hydra.run.dir"
    assert refusals[1].startswith(f"error: {run_dir}: holds results already; choose another hydra.sweep.dir")
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
    (run_dir / LAST).parent.mkdir()
    (run_dir / LAST).touch()
    assert sweep(f"hydra.run.dir={run_dir}", "seed=2", multirun=False) == 2
    assert capfd.readouterr().err.endswith(f"choose another hydra.run.dir, or go on with resume={run_dir}\n")
    assert sweep(f"resume={run_dir}", "seed=2", multirun=False) == 0
    assert sweep(f"resume={tmp_path}/nowhere", multirun=False) == 2
    assert not (tmp_path / "nowhere").exists()

    assert sweep(f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=1,2") == 0
    assert sweep(f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=1,3") == 2
    assert not (tmp_path / "sweep/seed-3").exists()


def test_a_directory_in_use_is_refused_and_its_record_left_alone(sweep, tmp_path, capfd):
    (tmp_path / "file").touch()
    assert sweep(f"hydra.run.dir={tmp_path}/file/run", "seed=1", multirun=False) == 2
    assert "cannot be written to (Not a directory); choose another hydra.run.dir" in capfd.readouterr().err
    for option, directory, multirun in (("run", "run", False), ("sweep", "sweep", True), ("sweep", "job/seed-1", True)):
        told, tell = os.pipe()
        other = os.fork()
        if other == 0:
            claimed = claim(tmp_path / directory, "hydra.run.dir")
            os.write(tell, b"x")
            signal.pause()
            os._exit(claimed.closed)
        os.read(told, 1)
        root = tmp_path / directory.partition("/")[0]
        status = sweep(f"hydra.{option}.dir={root}", "seed=1", multirun=multirun)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        assert status == (1 if root.name == "job" else 2)
        assert f"{tmp_path / directory}: another process is writing there" in capfd.readouterr().err
        assert not list(root.rglob("begun")) + list(root.rglob("metrics.json"))


@pytest.mark.parametrize("argument", ["data._target_=torch.load", "+data.parts={a:{_target_:os.getcwd}}"])
def test_a_command_line_names_no_code(sweep, tmp_path, capfd, argument):
    assert sweep(f"hydra.run.dir={tmp_path}", argument, multirun=False) == 2
    assert capfd.readouterr().err.startswith(f"error: {argument}: names code")
    assert sweep(f"hydra.sweep.dir={tmp_path}", "hydra.launcher._target_=os.getcwd", "seed=1") == 2
    assert sweep(f"hydra.run.dir={tmp_path}", "hydra.job_logging.handlers.file.class=os.getcwd", multirun=False) == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("multirun", [False, True])
def test_a_directory_with_links_out_of_it_is_not_gone_on_with(sweep, tmp_path, capfd, multirun):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    run_dir = tmp_path / "theirs"
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra/config.yaml").symlink_to(kept)
    (run_dir / "multirun.yaml").symlink_to(kept)
    assert sweep(f"{'sweep.' if multirun else ''}resume={run_dir}", "seed=1", multirun=multirun) == 2
    assert re.search(rf"^error: {run_dir}/\S+: a link out of {run_dir}, to {kept}; put ", capfd.readouterr().err)
    assert kept.read_text() == "mine"


def test_what_hydra_cannot_write_is_one_line(sweep, tmp_path, capfd):
    (tmp_path / ".hydra/config.yaml").mkdir(parents=True)
    assert sweep(f"hydra.run.dir={tmp_path}", "seed=1", multirun=False) == 2
    assert capfd.readouterr().err.startswith(f"error: {tmp_path}/.hydra/config.yaml: not opened (Is a directory); ")


def test_a_page_or_a_record_that_cannot_be_written_is_one_line(sweep, tmp_path, capfd):
    (tmp_path / "sweep/summary.csv/x").mkdir(parents=True)
    assert sweep(f"sweep.resume={tmp_path / 'sweep'}", "seed=1") == 2
    (tmp_path / "sweep/seed-101/metrics.json/x").mkdir(parents=True)
    (tmp_path / "sweep/multirun.yaml").touch()
    assert sweep(f"sweep.resume={tmp_path / 'sweep'}", "seed=101,1") == 2
    output = capfd.readouterr()
    assert f"error: {tmp_path}/sweep/summary.csv: not written" in output.err
    assert "left out: seed-101: the record of its failure: " in " ".join(output.out.split())
    assert "Traceback" not in output.err
    assert (tmp_path / "sweep/seed-1/begun").exists(), "the failure's record ended the sweep"


def test_data_options_beside_resume_are_not_held_to_the_default_choice():
    assert _checked(["resume=a", "data.root=b", "+data.cap=1", "data=folder", "size=[64,64]"]) == [
        "resume=a",
        "++data.root=b",
        "++data.cap=1",
        "data=folder",
        "size=[64,64]",
    ]
    assert _checked(["resume=null", "data.root=b"]) == ["resume=null", "data.root=b"]


def test_a_resumed_sweep_runs_what_is_not_complete_and_nothing_else(sweep, tmp_path):
    assert sweep(f"hydra.sweep.dir={tmp_path}", "seed=1,101", "batch_size=2") == 1
    assert sweep("batch_size=2", "seed=2,1,101", f"sweep.resume={tmp_path}") == 1
    begun = {path.parent.name: path.read_text() for path in tmp_path.glob("*/begun")}
    assert begun == {"batch_size-2+seed-1": "x", "batch_size-2+seed-2": "x", "batch_size-2+seed-101": "xx"}
    assert sweep("batch_size=4", "seed=1", f"sweep.resume={tmp_path}") == 1
    assert (tmp_path / "batch_size-4+seed-1/begun").exists(), "taken for a job with other options"


def test_a_sweep_that_is_not_there_cannot_be_resumed(sweep, tmp_path, capfd):
    assert sweep(f"sweep.resume={tmp_path}/nowhere", "seed=1,2") == 2
    assert capfd.readouterr().err.startswith(f"error: sweep.resume={tmp_path}/nowhere: holds no jobs")
    assert not (tmp_path / "nowhere").exists()


def test_an_interrupt_ends_the_sweep_but_leaves_its_page(monkeypatch, tmp_path):
    register()
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *QUIET, f"hydra.sweep.dir={tmp_path}", "seed=1,104,2"])
    monkeypatch.setattr(SweepCallback, "directory", None)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_job.main)
    assert {name: row["status"] for name, row in summary(tmp_path).items()} == {
        "seed-1": "complete",
        "seed-104": "no result",
    }
    assert "its process died" in (tmp_path / "report.html").read_text()


def test_the_exit_status_stays_below_what_shells_use_themselves(sweep, monkeypatch, tmp_path):
    monkeypatch.setattr(mde.app.entry, "_finish", lambda directory: 300)
    assert sweep(f"hydra.sweep.dir={tmp_path}", "seed=1,2") == 125


def test_a_typing_error_is_one_line_and_starts_nothing(sweep, tmp_path, capfd):
    assert sweep(f"hydra.sweep.dir={tmp_path}", "seed=1,2", "loss=l1,l3") == 2
    assert capfd.readouterr().err == "error: no 'l3' in loss; choices: l1, mse, ssi, trimmed\n"
    assert not list(tmp_path.glob("*/begun"))
    assert sweep(f"hydra.sweep.dir={tmp_path}", "seed=1,2", "hydra/launcher=nothing") == 2
    assert "a plugin may be missing" in capfd.readouterr().err


def test_latency_cannot_be_searched_for_in_parallel(sweep, tmp_path, capfd):
    options = ["sweep.cost=latency_ms", "seed=1,2", f"hydra.sweep.dir={tmp_path}"]
    assert sweep(*options) == 2
    assert sweep(*options, "sweep=optuna", "hydra.sweeper.n_jobs=2") == 2
    assert capfd.readouterr().err.count("only in a serial search") == 2


def test_latency_cannot_be_searched_for_where_nothing_is_measured(sweep, tmp_path, capfd):
    assert sweep("sweep.cost=latency_ms", "measure.rounds=0", "seed=1,2", f"hydra.sweep.dir={tmp_path}") == 2
    assert "sweep.cost=latency_ms: not with measure.rounds=0" in capfd.readouterr().err


def test_deployments_do_not_disturb_each_others_measurements(tmp_path):
    done = call("-m", "hydra/launcher=processes", "checkpoint=a,b", f"hydra.sweep.dir={tmp_path}", script="deploy.py")
    assert done.returncode == 2
    assert "error: hydra/launcher: deploy.py measures" in done.stderr


def test_a_search_finds_the_pareto_set_past_failures_and_goes_on_where_it_was_killed(sweep, tmp_path, monkeypatch):
    seen = []  # jobs that were tested
    monkeypatch.setattr(chosen, "_evaluate", lambda job: seen.append(job.overrides["seed"]))
    space = ["sweep=optuna", "prune=none", "sparsity=null", "seed=choice(3,20,50,101)"]
    sampler = ["hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=0"]
    failures = sweep(*space, *sampler, "sweep.trials=12", f"hydra.sweep.dir={tmp_path}")
    tried = {row["overrides"]["seed"]: tmp_path / name / "begun" for name, row in summary(tmp_path).items()}
    assert set(tried) == {"3", "20", "50", "101"}, "the seed of this test must draw every choice"
    assert failures == 1
    assert all(tried[seed].read_text() == "x" for seed in ("3", "20", "50")), "the same trial ran twice"
    pareto = yaml.safe_load((tmp_path / "optimization_results.yaml").read_text())["solutions"]
    assert {trial["params"]["seed"]: trial["values"] for trial in pareto} == {3: [0.897, 997e6], 20: [0.88, 980e6]}
    assert {row["overrides"]["seed"] for row in summary(tmp_path).values() if row["pareto"]} == {"3", "20"}
    assert set(seen) == {"3", "20"}, "jobs that were not chosen were tested"

    study = optuna.load_study(study_name=NAME, storage=study_storage(str(tmp_path)))
    complete = sum(trial.state == optuna.trial.TrialState.COMPLETE for trial in study.trials)
    assert trials_left(20, str(tmp_path)) == 20 - complete
    lost = study.ask()  # the sweep is killed while this trial runs
    lost._suggest("seed", optuna.distributions.CategoricalDistribution([3, 20, 50, 101]))
    lost_params = lost.params
    study = optuna.load_study(study_name=NAME, storage=study_storage(str(tmp_path)))
    assert study.trials[lost.number].state == optuna.trial.TrialState.FAIL
    waiting = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.WAITING]
    assert [trial.system_attrs["fixed_params"] for trial in waiting] == (
        [{"seed": 101}] if lost_params["seed"] != 101 else [lost_params]
    )


def test_what_a_search_chose_is_tested_once_beside_what_it_was_before(monkeypatch, tmp_path):
    frames = write_frames(tmp_path / "tiny", split={f"{n:03}": "test" if n < 4 else "train" for n in range(10)})
    options = ["data=folder", f"data.root={frames}", "size=[64,64]", "weights=shipped", "sweep.search=true"]
    model, row = build_model("midas_small", encoder="lite0"), {"protocol": "inverse_depth", "alignment": "per_frame"}
    for name, worse in (("a", 0.0), ("b", 0.1)):
        run_dir = tmp_path / "sweep" / name
        (run_dir / ".hydra").mkdir(parents=True)
        (run_dir / ".hydra/overrides.yaml").write_text(f"- prune={name}")
        save_options(run_dir, composed(*options, "logger.group=null", script="prune"))
        for file in ("model.safetensors", DENSE):
            save_model(model, run_dir / file)
        record = new_record("complete", model=describe_model(model, (64, 64)), notes=[])
        record |= {"before": {"model": {}, "quality": {}}}
        write_record(run_dir, record | {"validation": {"tiny": row | {"delta1": 0.5 - worse}}})
    assert evaluate_chosen(read_jobs(tmp_path / "sweep")) == []
    first, second = (read_record(tmp_path / "sweep" / name) for name in "ab")
    assert second["quality"] == {}, "tested, though it was not chosen"
    assert first["quality"]["tiny"]["frames"] == 4
    assert first["before"]["quality"] == first["quality"]  # the same network
    assert first["baselines"]["vertical_ramp"].keys() == {"tiny"}
    assert (tmp_path / "sweep/a/pictures/tiny.png").exists()
    assert "tiny: validation" in (tmp_path / "sweep/a/report.html").read_text()
    jobs = read_jobs(tmp_path / "sweep")
    headings, rows = table(jobs)
    column = headings.index("delta1, test")
    assert [row[column] for row in rows] == [f"{first['quality']['tiny']['delta1']:.3f}", "-"]
    assert "validation frames of tiny" in caption(jobs)
    monkeypatch.setattr(chosen, "_evaluate", lambda job: pytest.fail("tested twice"))
    assert evaluate_chosen(jobs) == []


def test_latency_of_finished_networks_is_measured_beside_their_reference(tmp_path):
    model = build_model("midas_small", encoder="lite0")
    for name, size in (("a", (64, 64)), ("wide", (64, 96)), ("bad", (64, 64))):
        (tmp_path / name).mkdir()
        save_model(model, tmp_path / name / "model.safetensors")
        write_record(tmp_path / name, new_record("complete", model=describe_model(model, size)))
        save_options(tmp_path / name, composed("measure.rounds=2", "measure.memory=false"))
    (tmp_path / "bad/model.safetensors").write_bytes(b"no network")
    problems = measure([tmp_path / name for name in ("a", "wide", "bad")])
    assert len(problems) == 1
    assert problems[0].startswith("bad: latency not measured: ")
    for name in ("a", "wide"):
        record = read_record(tmp_path / name)
        assert record["latency"].keys() == record["reference_latency"].keys() == {"onnxruntime", "openvino"}
        for entry in record["latency"].values():
            assert entry["p50_ms"] > 0
            assert entry["runs"] == 2
        assert (tmp_path / name / "report.html").exists()
    before = (tmp_path / "wide/metrics.json").stat().st_mtime_ns
    measure([tmp_path / "wide"])
    assert (tmp_path / "wide/metrics.json").stat().st_mtime_ns == before, "measured twice"


def test_a_killed_sweep_is_resumed_and_completes_without_running_anything_twice(tmp_path):
    options = [
        *TINY,
        "measure.rounds=2",
        "data.test=2",
        "data.validation=2",
        "loss=l1,trimmed",
        "trainer.checkpoint_minutes=0.00001",
    ]
    command = train_command("-m", *options, f"hydra.sweep.dir={tmp_path}", steps=2)
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def states() -> list[str]:
        return [json.loads(path.read_text())["status"] for path in tmp_path.glob("*/metrics.json")]

    give_up = time.monotonic() + 300
    while sorted(states()) != ["complete", "running"] and process.poll() is None and time.monotonic() < give_up:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert sorted(states()) == ["complete", "running"], "killed at the wrong time to show anything"
    begun = {path.parent: path.stat().st_mtime_ns for path in tmp_path.glob("*/config.yaml")}
    done = next(path for path in begun if read_record(path)["status"] == "complete")
    weights = (done / "model.safetensors").read_bytes()

    resumed = call("-m", *reversed(options), f"sweep.resume={tmp_path}", steps=2)
    assert resumed.returncode == 0, resumed.stderr
    assert states() == ["complete", "complete"]
    assert {path.parent for path in tmp_path.glob("*/config.yaml")} == begun.keys()
    assert (done / "config.yaml").stat().st_mtime_ns == begun[done], "a finished job ran again"
    assert (done / "model.safetensors").read_bytes() == weights
    assert "2 of 2 jobs complete" in resumed.stdout
    for row in summary(tmp_path).values():
        assert row["openvino/p50_ms"] > 0
