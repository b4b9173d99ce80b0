"""Offline W&B runs hold every figure, the table and the pictures; the dashboard shows nothing that runs do not log."""

import io
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from PIL import Image

from mde.app.entry import register
from mde.app.sweep_latency import measure
from mde.names import file_name
from mde.records import read_record, write_record
from mde.report.dashboard import main
from mde.report.pictures import save_picture, sheet_path
from mde.report.wandb_results import log_results
from mde.report.wandb_run import WandbRun, end_wandb
from tests.conftest import ROOT, TINY, call, write_frames
from tests.report.wandb_file import OfflineRun, read_run

STEPS = 10  # enough that the images a second are logged
GROUP = "tonight"
NAME = "../nyu/<b>$x$"  # of a set: nothing of it may be taken for a path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on frames called "tiny", as a user starts it."""
    root = tmp_path_factory.mktemp("dashboard")
    frames = write_frames(root / "tiny")
    options = [f"data.root={frames}", f"hydra.run.dir={root / 'run'}", f"logger.group={GROUP}"]
    staging = {"WANDB_DATA_DIR": str(root / "staging")}
    done = call("data=folder", *TINY, "logger=wandb", "measure.rounds=2", *options, steps=STEPS, **staging)
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture(scope="module")
def logged(run_dir: Path) -> OfflineRun:
    return read_run(run_dir)


def test_the_run_is_whole_and_says_what_it_was(logged, run_dir):
    assert logged.finished
    assert (logged.project, logged.group) == ("mde", GROUP)
    assert logged.config["prune"]["kind"] == "none"
    assert logged.config["size"] == [64, 64]
    assert logged.config["data"]["root"].endswith("tiny")


def test_every_figure_of_the_record_is_logged_with_sparsity_as_its_axis(logged, run_dir):
    record = read_record(run_dir)
    entries = {"model": record["model"], "test/tiny": record["quality"]["tiny"]}
    entries |= {f"latency/{engine}": entry for engine, entry in record["latency"].items()}
    assert len(entries) == 4, "two engines"
    figures = {
        f"{prefix}/{key}": value
        for prefix, entry in entries.items()
        for key, value in entry.items()
        if type(value) in (int, float)
    }
    assert {"model/sparsity", "model/macs", "test/tiny/delta1", "latency/openvino/p50_ms"} < figures.keys()
    (row,) = [row for row in logged.rows if "model/sparsity" in row]
    assert {key: row[key] for key in figures} == pytest.approx(figures, rel=1e-12)
    assert row["trainer/global_step"] == STEPS
    assert logged.step_metrics["test/*"] == logged.step_metrics["latency/*"] == "model/sparsity"


def test_every_curve_of_the_csv_file_is_logged(logged, run_dir):
    columns = (run_dir / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "val/tiny/delta1"} < set(columns)
    assert set(columns) - {"step"} <= logged.keys


def test_the_table_has_a_row_for_each_set_with_its_picture(logged, run_dir):
    (files,) = [files for name, files in logged.artifacts.items() if name.endswith("-results")]
    table = json.loads(files["results.table.json"].read_text())
    quality = read_record(run_dir)["quality"]
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["dataset"] for row in rows] == list(quality)
    for row in rows:
        expected = {key: quality[row["dataset"]][key] for key in ("delta1", "rmse", "mae", "abs_rel")}
        assert {key: row[key] for key in expected} == expected
        assert (row["sparsity"], row["prune"]) == (read_record(run_dir)["model"]["sparsity"], "none")
        sheet = run_dir / "pictures" / f"{row['dataset']}.png"
        assert files[row["pictures"]["path"]].read_bytes() == sheet.read_bytes()
    assert logged.last("results")["nrows"] == len(rows)
    assert (logged.files / logged.last("results")["path"]).exists()


def test_every_picture_lies_among_the_runs_files(logged, run_dir):
    sheet = logged.files / logged.last("test/tiny/pictures")["path"]
    assert sheet.read_bytes() == (run_dir / "pictures/tiny.png").read_bytes()
    for name in logged.last("pictures")["filenames"]:
        with Image.open(logged.files / name) as shown, Image.open(run_dir / f"pictures/step_{STEPS:06}.png") as saved:
            assert shown.tobytes() == saved.tobytes()


def specification(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--dry-run"]) == 0
    return json.loads(capsys.readouterr().out)["spec"]["section"]


def test_the_dashboard_shows_only_what_runs_log(logged, capsys):
    section = specification(capsys, "me/mde", "--datasets", "tiny")
    sections = section["panelBankConfig"]["sections"]
    assert len(sections) == 5
    for panel in (panel for section in sections for panel in section["panels"]):
        keys = set(keys_of(panel["config"]))
        assert keys, panel
        assert keys <= logged.keys, panel
    (runs,) = section["runSets"]
    columns = [column.removeprefix("summary:") for column in runs["runFeed"]["columnOrder"] if "summary:" in column]
    assert "model/sparsity" in columns
    assert {*columns, runs["sort"]["keys"][0]["key"]["name"]} <= logged.keys
    assert [key["name"] for key in runs["grouping"]] == ["group", "displayName"]
    options = set(re.findall(r"(\w+)\.value\.(\w+)", json.dumps(section)))
    assert options == {("prune", "kind")}
    assert all(option in logged.config[group] for group, option in options)


def keys_of(config: dict[str, Any]) -> Iterator[str]:
    """The logged keys that a panel's configuration names."""
    for name in ("metrics", "mediaKeys"):
        yield from config.get(name, [])
    for name in ("xAxis", "yAxis"):
        if name in config:
            yield config[name].removeprefix("summary:")
    if "panel2Config" in config:
        yield config["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]


def test_each_dataset_has_panels_of_its_own(capsys):
    text = json.dumps(specification(capsys, "--datasets", "nyu", "kitti"))
    for key in ("test/nyu/delta1", "test/kitti/delta1", "test/nyu/pictures", "test/kitti/pictures", "val/kitti/delta1"):
        assert f'"{key}"' in text
    assert "synthetic" not in text


def test_a_dry_run_stays_offline(monkeypatch, capsys):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("asked W&B")

    monkeypatch.setattr(wandb, "Api", refuse)
    assert specification(capsys)["panelBankConfig"]["sections"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: dashboard: '' is not ENTITY/PROJECT; give your W&B user or team, and logger.project\n"),
        (["mde"], "error: dashboard: 'mde' is not ENTITY/PROJECT; give your W&B user or team, and logger.project\n"),
        (["me/mde"], "error: dashboard: no W&B key; set WANDB_API_KEY, call `wandb login`, or add --dry-run\n"),
    ],
)
def test_what_the_user_can_mend_is_one_line(monkeypatch, tmp_path, capsys, arguments, message):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))  # not the one of whoever runs the tests
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # at a terminal W&B asks for the key itself
    assert main(arguments) == 2
    assert capsys.readouterr().err == message


def test_a_missing_package_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    for name in [name for name in sys.modules if name.startswith(("wandb_workspaces.", "mde.report.workspace"))]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["me/mde", "--dry-run"]) == 2
    assert re.fullmatch(
        r"error: dashboard: package wandb_workspaces\S* is missing; pip install -e '.\[dashboard\]'\n",
        capsys.readouterr().err,
    )


def test_what_a_sweep_measures_at_its_end_joins_the_runs_of_its_jobs(monkeypatch, tmp_path, run_dir):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    job = shutil.copytree(run_dir, tmp_path / "job")
    write_record(job, read_record(job) | {"latency": {}})
    assert measure([job]) == []
    (first, second) = job.glob("wandb/offline-run-*")
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2], "not the same run"
    found, record = read_run(job), read_record(job)
    assert found.group == GROUP
    assert found.last("model/sparsity") == record["model"]["sparsity"]
    for engine, entry in record["latency"].items():
        assert found.last(f"latency/{engine}/p50_ms") == entry["p50_ms"]
    assert found.step_metrics["latency/*"] == "model/sparsity"


def test_a_network_that_was_pruned_without_training_is_logged_too(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    save_picture(Image.new("RGB", (8, 6), "red"), sheet_path(tmp_path, NAME))
    quality = {"protocol": "raw", "frames": 3, "delta1": None, "rmse": 2.5, "mae": 2.0, "abs_rel": 0.5}
    record = {"model": {"name": "midas_small", "sparsity": 0.25}, "quality": {NAME: quality}, "latency": {}}
    long = "x" * 70_000  # over three blocks of the file
    options = OmegaConf.create({"logger": {"project": "mde", "group": None}, "long": long})
    logger = WandbRun(options, tmp_path, "offline")
    log_results([CSVLogger(tmp_path), logger], record, "layer", tmp_path, step=0)
    end_wandb()
    found, key = read_run(tmp_path), file_name(NAME)
    assert found.finished
    assert found.config["long"] == long
    assert found.last("model/sparsity") == 0.25
    assert (found.last(f"test/{key}/rmse"), found.last(f"test/{key}/frames")) == (2.5, 3)
    assert f"test/{key}/delta1" not in found.keys
    pictures = [path.relative_to(tmp_path) for path in tmp_path.rglob("pictures_*.png")]
    assert [path.parent.name for path in pictures] == [key], "W&B wrote elsewhere"
    (files,) = found.artifacts.values()
    assert json.loads(files["results.table.json"].read_text())["data"][0][:4] == [0.25, "layer", NAME, None]


def test_a_run_without_wandb_draws_no_table(tmp_path):
    log_results([CSVLogger(tmp_path)], {}, "none", tmp_path / "missing", step=0)


def test_runs_of_a_sweep_share_its_directorys_name_as_their_group(tmp_path):
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        assert compose("train").logger.group is None
        options = [f"hydra.sweep.dir={tmp_path}/night", "hydra.mode=MULTIRUN", "hydra.job.num=0", "hydra.job.id=0"]
        config = compose("train", options, return_hydra_config=True)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            assert config.logger.group == "night"
        finally:
            HydraConfig.instance().cfg = before
