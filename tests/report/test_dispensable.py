"""What a run can do without is left out in a line; what it is for is not."""

from pathlib import Path

import pytest

from mde.deploy.job import recorded
from mde.errors import MdeError
from mde.records import new_record, read_record
from mde.report.dispensable import dispensable


def no_page(run_dir: Path) -> Path:
    raise MdeError(f"{run_dir}/report.html: not written (No space left on device); free disk space")


def test_an_error_of_any_type_is_a_line_and_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    notes: list[str] = ["before"]
    for error in (MdeError("a.png: not written"), ValueError("no font\nof this name"), MemoryError()):
        with dispensable("pictures", notes):
            raise error
    said = ["pictures: a.png: not written", "pictures: ValueError: no font", "pictures: MemoryError"]
    assert notes == ["before", *(f"left out: {line}" for line in said)]
    assert capsys.readouterr().out.splitlines() == notes[1:]


def test_whoever_stops_a_run_stops_it_there_too() -> None:
    with pytest.raises(KeyboardInterrupt), dispensable("pictures"):
        raise KeyboardInterrupt


def test_a_page_that_cannot_be_written_leaves_the_run_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(tmp_path, new_record("running"), no_page):
        pass
    assert read_record(tmp_path)["status"] == "complete"
    assert capsys.readouterr().out.startswith(f"left out: report.html: {tmp_path}/report.html: not written")


def test_a_record_that_cannot_be_written_does_not_hide_why_the_run_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MdeError("metrics.json: not written")

    def fail() -> None:
        with recorded(tmp_path, new_record("running"), no_page):
            monkeypatch.setattr("mde.deploy.job.write_record", full)
            raise MdeError("the first reason")

    with pytest.raises(MdeError, match="the first reason"):
        fail()


def test_a_record_that_cannot_be_written_is_no_complete_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MdeError("metrics.json: not written")

    with pytest.raises(MdeError, match=r"^metrics\.json"), recorded(tmp_path, new_record("running"), no_page):
        monkeypatch.setattr("mde.deploy.job.write_record", full)
