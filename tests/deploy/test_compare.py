"""deploy.py compare=[...], run as a user runs it."""

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hydra.types import RunMode
from PIL import Image
from safetensors.torch import save_file

from mde.data.folder import FolderFrames, folder_splits
from mde.deploy import compare as module
from mde.deploy import options
from mde.deploy.compare import short_names
from mde.engines import write_target
from mde.engines.description import Description, read_description, write_description
from mde.engines.openvino import default_precision
from mde.engines.request import Request
from mde.engines.runtime import Runtime, load_runtime, runtime_predictor
from mde.errors import MdeError
from mde.evaluation.quality import evaluate, evaluation_sets
from mde.export import ImageGraph, deployable
from mde.models import save_model
from mde.records import new_record
from mde.report.comparison_page import plot
from tests.conftest import call, write_frames
from tests.export import random_network
from tests.models.conftest import official_state
from tests.test_config import composed

torch.set_num_threads(1)
SIZE = (64, 64)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """own/: a deployed network as deploy.py leaves it; foreign/: the same file described as nobody's."""
    folder = tmp_path_factory.mktemp("deployed")
    model = random_network()
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    for place in ("own", "foreign"):
        (folder / place).mkdir()
        write_target("onnxruntime", Request(model.name, graph, SIZE, "fp32", folder), folder / place / "model.onnx")
    save_model(model, folder / "own/model.safetensors", input=list(SIZE))
    (folder / "own/report.html").write_text("how it was made")
    write_description(folder / "foreign/model.onnx", Description("theirs", "openvino", "fp32", SIZE))
    return folder


def compare(*overrides: str, run_dir: Path) -> subprocess.CompletedProcess[str]:
    return call(*overrides, f"hydra.run.dir={run_dir}", "threads=1", script="deploy.py")


def test_files_are_compared_on_one_page_and_one_that_fails_is_named(deployed: Path, tmp_path: Path) -> None:
    frames, other = write_frames(tmp_path / "frames"), write_frames(tmp_path / "other", size=(32, 64))
    (tmp_path / "broken.tflite").write_bytes(b"half a file")
    files = [deployed / "own/model.onnx", deployed / "foreign/model.onnx", tmp_path / "broken.tflite"]
    run_dir = tmp_path / "run"
    listed = ",".join(map(str, files))
    done = compare("data=folder", f"data.root={frames}", f"evaluate=[{other}]", f"compare=[{listed}]", run_dir=run_dir)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: compare: 1 of 3 files failed: broken.tflite: " in done.stderr
    assert "Traceback" not in done.stderr
    record = json.loads((run_dir / "metrics.json").read_text())
    assert set(new_record("")) <= set(record)
    assert record["status"] == "failed"
    own, foreign, broken = record["candidates"]
    assert [entry["status"] for entry in record["candidates"]] == ["complete", "complete", "failed"]
    assert [entry["name"] for entry in record["candidates"]] == [
        "own/model.onnx",
        "foreign/model.onnx",
        "broken.tflite",
    ]
    (test, _) = evaluation_sets(folder_splits(frames), [str(other)])
    expected = evaluate(runtime_predictor(load_runtime(files[0], threads=1)), test, limit=4)
    for entry in (own, foreign):
        assert set(entry["quality"]) == {"frames", "other"}
        assert entry["quality"]["frames"]["delta1"] == pytest.approx(expected["delta1"], abs=1e-3)
    ours, theirs = own["latency"]["onnxruntime"], foreign["latency"]["openvino"]
    assert ours["baseline"] == "published graph of midas_small lite0, 64 x 64 nhwc uint8, fp32 in onnxruntime"
    assert theirs["baseline"] == "own/model.onnx"
    assert ours["runs"] == theirs["runs"] == 2
    page = (run_dir / "report.html").read_text()
    assert page.count("src='data:image/png;base64,") == 2
    assert "2 of 3 files compared" in page
    (link,) = re.findall(r"href='(.*?)'", page)  # the other file's run left no report
    assert (run_dir / link).resolve() == (deployed / "own/report.html").resolve()
    assert "<td># 1</td>" in page
    with open(run_dir / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["complete", "complete", "failed"]
    assert float(rows[0]["other/delta1"]) == own["quality"]["other"]["delta1"]
    assert rows[2]["error"] == broken["error"]
    assert f"- {files[0]}" in (run_dir / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("overrides", "line"), [(["compare=[a.onnx]", "quantize=int8"], "error: quantize: means nothing to compare=")]
)
def test_what_cannot_be_compared_is_one_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    done = compare(*overrides, run_dir=tmp_path)
    assert done.returncode == 2
    (last,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert last.startswith(line)


@pytest.fixture
def compare_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Compares files in this process and returns the record, and what was raised as `raised`."""
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    hydra = SimpleNamespace(
        runtime=SimpleNamespace(output_dir=str(run_dir)), mode=RunMode.RUN, overrides=SimpleNamespace(task=[])
    )
    for user in (module, options):
        monkeypatch.setattr(user, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    monkeypatch.setattr(module, "peak_memory", lambda *_: 1.0)
    frames = write_frames(tmp_path / "frames")

    def run(*files: Path, given: str = "seed=0") -> dict[str, Any]:
        listed = f"compare=[{','.join(map(str, files))}]"
        options = ["data=folder", f"data.root={frames}", "threads=1", "experiment=quick"]
        config = composed(*options, listed, given, script="deploy")
        raised: BaseException | None = None
        try:
            module.compare(config)
        except (MdeError, KeyboardInterrupt) as error:
            raised = error
        return json.loads((run_dir / "metrics.json").read_text()) | {"raised": raised}

    return run


def copied(deployed: Path, folder: Path) -> Path:
    """The deployed ONNX file and its description, alone in a folder."""
    folder.mkdir()
    for name in ("model.onnx", "model.onnx.json"):
        shutil.copy(deployed / "own" / name, folder / name)
    return folder / "model.onnx"


def test_a_neighbour_that_is_not_ours_costs_the_published_baseline_and_nothing_else(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied(deployed, tmp_path / "theirs")
    save_file({"weight": torch.zeros(3)}, path.with_name("model.safetensors"))
    (tmp_path / "run/pictures").mkdir()
    (tmp_path / "run/pictures/earlier.png").write_bytes(b"of another comparison")
    record = compare_here(path)
    assert (record["status"], record["raised"]) == ("complete", None)
    (entry,) = record["candidates"]
    assert entry["latency"]["onnxruntime"]["baseline"] == "model.onnx"
    assert "model.onnx: no speed-up against the published graph" in capsys.readouterr().out
    page = (tmp_path / "run/report.html").read_text()
    assert page.count("src='data:image/png;base64,") == 2
    assert "alt='frames'" in page
    assert "earlier" not in page


def test_a_comparison_whose_only_file_fails_when_its_memory_is_measured_has_a_page(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> float:
        raise MdeError("cannot be run in a process of its own")

    monkeypatch.setattr(module, "peak_memory", fail)
    record = compare_here(copied(deployed, tmp_path / "alone"), given="measure.memory=true")
    reason = "compare: 1 of 1 files failed: model.onnx: cannot be run in a process of its own"
    assert str(record["raised"]) == record["error"] == reason
    assert [entry["status"] for entry in record["candidates"]] == ["failed"]
    assert reason in (tmp_path / "run/report.html").read_text()


def test_a_comparison_that_is_interrupted_says_so(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> dict[str, list[float]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "interleave", interrupt)
    record = compare_here(copied(deployed, tmp_path / "alone"))
    assert isinstance(record["raised"], KeyboardInterrupt)
    assert (record["status"], record["error"]) == ("failed", "KeyboardInterrupt")
    assert [entry["status"] for entry in record["candidates"]] == ["incomplete"]
    page = (tmp_path / "run/report.html").read_text()
    assert "KeyboardInterrupt" in page
    assert "0 of 1 files compared" in page


def test_tensorrts_baseline_is_built_by_the_library_that_built_the_engine(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = load_runtime(deployed / "own/model.onnx", threads=1)
    path = tmp_path / "model.engine"
    path.write_bytes(b"an engine")
    shutil.copy(deployed / "own/model.safetensors", tmp_path)
    about = {"library": "tensorrt_rtx", "library_version": "1.5", "precision": "fp16", "engine_bytes": 9}
    path.with_name("model.engine.json").write_text(json.dumps(about | {"onnx_sha256": ""}))
    description = replace(network.description, engine="tensorrt", precision="fp16")
    monkeypatch.setattr(module, "load_runtime", lambda *_, **__: Runtime(path, description, network.infer))
    requests: list[Request] = []

    def baseline(_: str, request: Request, *__: Any) -> Callable[[np.ndarray], np.ndarray]:
        requests.append(request)
        return network.infer

    monkeypatch.setattr(module, "open_published", baseline)
    record = compare_here(path)
    assert record["status"] == "complete"
    entry = record["candidates"][0]["latency"]["tensorrt"]
    assert entry["engine_version"] == "tensorrt_rtx 1.5"
    assert entry["baseline"].endswith("fp32 in tensorrt_rtx")
    assert [(request.library, request.precision) for request in requests] == [("tensorrt_rtx", "fp32")]


def test_pre_and_post_processing_are_timed_on_the_threads_that_the_page_names(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def timed(runtime: Runtime, rounds: int) -> dict[str, float]:
        used.append(torch.get_num_threads())
        return {}

    monkeypatch.setattr(module, "time_around", timed)
    torch.set_num_threads(2)
    try:
        assert compare_here(copied(deployed, tmp_path / "alone"))["status"] == "complete"
    finally:
        torch.set_num_threads(1)
    assert used == [1]


def test_what_predicts_depth_is_fitted_there_too_and_each_frame_has_a_row(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    own, theirs = deployed / "own/model.onnx", tmp_path / "theirs.onnx"
    shutil.copy(own, theirs)
    write_description(theirs, Description("theirs", "onnxruntime", "fp32", SIZE, output="depth"))
    record = compare_here(own, theirs)
    assert record["status"] == "complete"
    plain, depth = record["candidates"]
    assert "quality_in_depth" not in plain
    assert depth["quality"]["frames"]["alignment"] == "per_frame"
    (test,) = evaluation_sets(folder_splits(tmp_path / "frames"), [])
    predict = runtime_predictor(load_runtime(theirs, threads=1))
    expected = evaluate(predict, test, align="depth", limit=8)
    assert depth["quality_in_depth"]["frames"] == pytest.approx(expected, abs=1e-3)
    page = (tmp_path / "run/report.html").read_text()
    assert "theirs.onnx predicts depth. Its figures are fitted in inverse depth, as all others are; fitted in" in page
    with open(tmp_path / "run/frames.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["scene"] for row in rows} == {test[index].scene for index in range(len(test))}
    for name, entry in (
        ("vertical_ramp", record["baselines"]["vertical_ramp"]["frames"]),
        (plain["name"], plain["quality"]["frames"]),
        (f"{depth['name']}, fitted in depth", depth["quality_in_depth"]["frames"]),
    ):
        assert np.mean([float(row[name]) for row in rows]) == pytest.approx(entry["delta1"], abs=1e-4)


def test_openvinos_fp32_files_are_compared_once_more_as_it_computes_by_default(
    deployed: Path, compare_here: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    own, folder = deployed / "own/model.onnx", tmp_path / "openvino"
    folder.mkdir()
    shutil.copy(deployed / "own/model.safetensors", folder)
    shutil.copy(own, folder / "model.onnx")
    write_description(folder / "model.onnx", Description("midas_small", "openvino", "fp32", SIZE))
    record = compare_here(own, folder / "model.onnx", given="default_precision=true")
    assert record["status"] == "complete"
    _, held, default = record["candidates"]
    assert (held["engine"], default["engine"]) == ("openvino", "openvino_default")
    assert (default["name"], default["file"]) == (f"{held['name']}, default precision", held["file"])
    assert default["precision"] == default_precision()
    times = default["latency"]["openvino_default"]
    assert times["precision"] == default["precision"]
    assert times["baseline"].endswith("fp32 in openvino_default")
    assert held["latency"]["openvino"]["baseline"].endswith("fp32 in openvino")


def test_files_are_named_by_as_many_folders_as_tell_them_apart() -> None:
    assert short_names(["/a/b/x.onnx", "/a/c/y.onnx"]) == ["x.onnx", "y.onnx"]
    assert short_names(["/a/b/x.onnx", "/a/c/x.onnx", "/z.onnx"]) == ["b/x.onnx", "c/x.onnx", "z.onnx"]
    with pytest.raises(MdeError, match=r"/a/\.\./a/x\.onnx is given twice"):
        short_names(["/a/../a/x.onnx", "/a/x.onnx"])


def test_depth_of_a_network_of_others_becomes_inverse_depth(tmp_path: Path) -> None:
    frames = FolderFrames(write_frames(tmp_path / "frames"))
    depth = np.array([[[[0.0, 0.5], [2.0, 4.0]]]], np.float32)
    description = Description("theirs", "litert", "int8", (2, 2), output="depth")
    runtime = Runtime(tmp_path / "model.tflite", description, lambda image: depth)
    found = runtime.infer(runtime.preprocess(frames[0].image.permute(1, 2, 0).numpy()))
    np.testing.assert_allclose(found[0, 0], [[2, 2], [0.5, 0.25]])


def test_a_description_says_what_comes_out_and_old_ones_mean_inverse_depth(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"a file")
    write_description(path, Description("theirs", "onnxruntime", "fp32", (2, 2), output="depth"))
    assert read_description(path).output == "depth"
    content = json.loads((tmp_path / "model.onnx.json").read_text())
    (tmp_path / "model.onnx.json").write_text(json.dumps(content | {"output": "disparity"}))
    with pytest.raises(MdeError, match='output must be inverse_depth or depth, not "disparity"'):
        read_description(path)
    del content["output"]
    (tmp_path / "model.onnx.json").write_text(json.dumps(content))
    assert read_description(path).output == "inverse_depth"


def test_an_official_files_speed_up_is_against_its_own_published_graph(tmp_path):
    torch.save(official_state("lite1"), tmp_path / "official.pt")
    save_model(random_network(), tmp_path / "model.safetensors")  # a neighbour, of another encoder
    runtime = SimpleNamespace(description=load_runtime(tmp_path / "official.pt").description)
    baseline = module.published(SimpleNamespace(path=tmp_path / "official.pt", runtime=runtime))
    assert baseline.options["encoder"] == "lite1"
    assert baseline.about.input == (256, 256)


def test_the_plot_is_as_tall_as_the_names_of_its_files():
    def height(files: int) -> int:
        figures = {"latency": {"openvino": {"p50_ms": 1.0}}, "quality": {"tiny": {"delta1": 0.5}}}
        done = {"status": "complete", "name": "model.xml", "engine": "openvino", "precision": "int8"} | figures
        candidates = [*[done] * files, {"status": "failed", "name": "damaged.xml"}]
        return Image.open(io.BytesIO(plot({"candidates": candidates}))).height

    assert height(3) == height(4)
    assert height(40) > 40 * 15  # pixels: a line of the legend


def test_an_experiment_means_something_to_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    task = ["compare=[a.onnx]", "experiment=quick"]
    hydra = SimpleNamespace(mode=RunMode.RUN, overrides=SimpleNamespace(task=task))
    monkeypatch.setattr(options, "HydraConfig", SimpleNamespace(get=lambda: hydra))
    options.only({"compare"}, "compare=")
    task.append("quantize=int8")
    with pytest.raises(MdeError, match="quantize: means nothing to compare="):
        options.only({"compare"}, "compare=")
