"""W&B may be switched off, away, or fall over in the middle: the run beside it goes on, and says so in a line."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb
from omegaconf import DictConfig, OmegaConf

import mde.report.wandb_run
from mde.errors import MdeError
from mde.report.wandb_results import log_results
from mde.report.wandb_run import WandbRun, end_wandb, wandb_logger, wandb_mode
from tests.report.wandb_file import read_run

KEY = "0123456789" * 4


def config(**entries: object) -> DictConfig:
    return OmegaConf.create({"logger": {"project": "mde", "group": None}} | entries)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of whoever runs the tests, and none of the test before: W&B reads them once in a process."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.mark.parametrize(
    ("asked", "key", "mode"),
    [
        (None, "", "offline"),
        (None, KEY, "online"),
        ("", KEY, "online"),
        ("online", KEY, "online"),
        ("online", "", "offline"),
        ("run", KEY, "online"),
        ("shared", KEY, "online"),
        ("offline", KEY, "offline"),
        ("dryrun", KEY, "offline"),
        ("disabled", KEY, "disabled"),
        ("disabled", "", "disabled"),
    ],
)
def test_every_mode_means_what_it_says(monkeypatch: pytest.MonkeyPatch, asked: str | None, key: str, mode: str) -> None:
    if asked is not None:
        monkeypatch.setenv("WANDB_MODE", asked)
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert wandb_mode() == mode


def test_a_mode_that_there_is_not_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(MdeError, match="WANDB_MODE=ofline: unknown; choose online, offline or disabled"):
        wandb_logger(config(), tmp_path)


def test_disabled_is_no_logger(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_logger(config(), tmp_path) is None


def test_a_server_that_is_not_there_is_a_line_and_the_run_is_kept_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setitem(mde.report.wandb_run.PATIENCE, "init_timeout", 1)
    logger = wandb_logger(config(), tmp_path)
    assert logger is not None
    logger.log_metrics({"loss": 0.5}, step=3)
    end_wandb()
    assert read_run(tmp_path).last("loss") == 0.5
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B: ")]
    assert line.endswith("kept offline, wandb sync can send it later")


@pytest.mark.parametrize("variable", ["WANDB_BASE_URL", "WANDB_INIT_TIMEOUT"])
def test_settings_that_wandb_itself_refuses_end_wandb_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "nonsense")
    logger = WandbRun(config(), tmp_path, "offline")
    logger.log_hyperparams({"size": 64})
    logger.log_metrics({"loss": 0.5}, step=3)
    end_wandb()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B: ")]
    assert len(said) == 1
    assert said[0].endswith("; the run goes on without it")


def test_a_failure_in_the_middle_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = WandbRun(config(), tmp_path, "offline")
    logger.log_metrics({"loss": 0.5}, step=0)

    def died(*_: object, **__: object) -> None:
        raise ConnectionResetError("the service is gone\nand more")

    monkeypatch.setattr(logger.experiment, "log", died)
    for step in (1, 2):
        logger.log_metrics({"loss": 0.4}, step=step)
    record = {"model": {"sparsity": 0.0}, "quality": {}, "latency": {}}
    log_results([logger], record, "none", tmp_path, step=2)
    end_wandb()
    assert wandb.run is None, "the next job of a sweep would log into it"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("W&B: ")]
    assert said == ["W&B: ConnectionResetError: the service is gone; the run goes on without it"]


def test_a_process_of_wandb_that_is_killed_does_not_end_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = WandbRun(config(), tmp_path, "offline")
    logger.log_metrics({"loss": 0.5}, step=0)
    service = wandb.setup().ensure_service()._proc
    assert service is not None
    service._process.kill()
    for step in range(1, 4):
        logger.log_metrics({"loss": 0.4}, step=step)
        time.sleep(0.2)
    end_wandb()
    assert wandb.run is None
    assert capsys.readouterr().out.startswith("W&B: ")
