"""deploy.py data=l515, run as a user runs it, on recordings that the emulator made."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from mde.data.folder import FolderFrames
from mde.deploy.camera.view import Panel
from mde.engines import write_target
from mde.engines.description import Description, read_description, write_description
from mde.engines.request import Request
from mde.engines.runtime import load_runtime
from mde.export import ImageGraph, deployable
from mde.jetson.runner import load_frames
from mde.models import save_model
from mde.renderer.depth_sensor import L515_UNIT
from mde.sensors.realsense import Settings
from mde.sensors.source import open_sensor
from tests.conftest import call
from tests.export import random_network
from tests.sensors.conftest import exact, ideal, noisy

__all__ = ["exact", "ideal", "noisy"]

torch.set_num_threads(1)
INPUT = (64, 64)
LOW, HIGH = 0.25, 9.0  # metres that data=l515 takes
FIGURES = ("rmse", "mae", "abs_rel", "delta1", "delta2", "delta3")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> Path:
    """A random network as deploy.py leaves it."""
    folder = tmp_path_factory.mktemp("deployed")
    model = random_network()
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    write_target("onnxruntime", Request(model.name, graph, INPUT, "fp32", folder), folder / "model.onnx")
    save_model(model, folder / "model.safetensors", input=list(INPUT))
    return folder / "model.onnx"


def deploy(*overrides: object, run_dir: Path):
    return call(*map(str, overrides), f"hydra.run.dir={run_dir}", "threads=1", script="deploy.py")


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "frames.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def reference(prediction: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """The figures of one frame, from their definitions, in float64."""
    valid = (depth >= LOW) & (depth <= HIGH)
    truth, answer = depth[valid].astype(np.float64), prediction[valid].astype(np.float64)
    scale, shift = np.linalg.lstsq(np.stack([answer, np.ones_like(answer)], 1), 1 / truth, rcond=None)[0]
    metres = 1 / np.maximum(scale * answer + shift, 1 / HIGH)
    ratio = np.maximum(metres / truth, truth / metres)
    error = metres - truth
    return {
        "rmse": np.sqrt((error**2).mean()),
        "mae": np.abs(error).mean(),
        "abs_rel": (np.abs(error) / truth).mean(),
        **{f"delta{k}": (ratio < 1.25**k).mean() for k in (1, 2, 3)},
        "scale": scale,
        "shift": shift,
        "coverage": valid.mean(),
    }


def test_errors_are_those_computed_from_the_exact_depth(ideal, exact, deployed, tmp_path):
    """Without noise, from colour's own place: up to what rounding to counts of 0.25 mm changes."""
    done = deploy(f"checkpoint={deployed}", "data=l515", f"data.source={ideal}", run_dir=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, runtime = rows_of(tmp_path), load_runtime(deployed, threads=1)
    with open_sensor(str(ideal), Settings()) as stream:
        images = [frame.rgb for frame in stream]
    assert len(rows) == len(exact) == len(images)
    for row, depth, rgb in zip(rows, exact, images, strict=True):
        expected = reference(runtime.predict(rgb), np.where(np.isfinite(depth), depth, 0))
        for name in ("rmse", "mae"):
            assert abs(float(row[name]) - expected[name]) <= L515_UNIT, name
        for name in ("abs_rel", "delta1", "delta2", "delta3", "coverage"):
            assert float(row[name]) == pytest.approx(expected[name], abs=2e-3), name
    page = (tmp_path / "report.html").read_text()
    assert "Intel RealSense L515" in page
    assert "data:image/png" in page
    assert "delta1" in done.stdout


def test_errors_of_a_noisy_camera_are_those_of_the_frames_read_back(noisy, deployed, tmp_path):
    done = deploy(f"checkpoint={deployed}", "data=l515", f"data.source={noisy}", run_dir=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, runtime = rows_of(tmp_path), load_runtime(deployed, threads=1)
    with open_sensor(str(noisy), Settings()) as stream:
        frames = list(stream)
    expected = [reference(runtime.predict(frame.rgb), frame.depth) for frame in frames]
    for row, figures in zip(rows, expected, strict=True):
        for name, value in figures.items():
            assert float(row[name]) == pytest.approx(value, rel=2e-4, abs=1e-5), name
    record = json.loads((tmp_path / "metrics.json").read_text())
    (candidate,) = record["candidates"]
    quality = candidate["quality"]["noisy"]
    assert quality["frames"] == record["sensor"]["frames"] == len(frames)
    for name in FIGURES:
        assert quality[name] == pytest.approx(np.mean([figures[name] for figures in expected]), rel=2e-4)
    times = [sum(float(row[f"{stage}_ms"]) for stage in ("preprocess", "infer", "postprocess")) for row in rows]
    stages = candidate["stages"]
    assert sum(stages[stage]["mean_ms"] for stage in stages) == pytest.approx(np.mean(times), rel=1e-3)


def test_networks_are_set_side_by_side_and_one_that_fails_is_named(noisy, deployed, tmp_path):
    (tmp_path / "broken.tflite").write_bytes(b"half a file")
    run_dir = tmp_path / "run"
    files = f"compare=[{deployed},{deployed.with_suffix('.safetensors')},{tmp_path / 'broken.tflite'}]"
    done = deploy(files, "data=l515", f"data.source={noisy}", "data.frames=4", run_dir=run_dir)
    assert done.returncode == 2
    assert "1 of 3 networks failed: broken.tflite" in done.stderr
    record = json.loads((run_dir / "metrics.json").read_text())
    one, other, _ = record["candidates"]
    assert [entry["status"] for entry in record["candidates"]] == ["complete", "complete", "failed"]
    assert one["quality"]["noisy"]["delta1"] == pytest.approx(other["quality"]["noisy"]["delta1"], abs=1e-3)
    assert len(rows_of(run_dir)) == 2 * 4
    assert (run_dir / "pictures" / "frames.png").exists()


def test_a_checkpoint_is_exported_and_agrees_on_the_frames_themselves(noisy, deployed, tmp_path):
    checkpoint = deployed.with_suffix(".safetensors")
    done = deploy(f"checkpoint={checkpoint}", "data=l515", f"data.source={noisy}", "data.frames=3", run_dir=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    (candidate,) = json.loads((tmp_path / "metrics.json").read_text())["candidates"]
    assert candidate["parity"]["frames"] == 3
    assert candidate["parity"]["largest"] < 1e-3
    assert read_description(tmp_path / "model.onnx").precision == "fp32"


@pytest.fixture(scope="module")
def red(tmp_path_factory) -> Path:
    """A network whose answer is the image's red channel."""
    path = tmp_path_factory.mktemp("red") / "model.onnx"
    nodes = [
        helper.make_node("Slice", ["image", "zero", "one", "axis"], ["red"]),
        helper.make_node("Cast", ["red"], ["answer"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["answer"], ["depth"], perm=[0, 3, 1, 2]),
    ]
    constants = [
        helper.make_tensor(name, TensorProto.INT64, [1], [v]) for name, v in (("zero", 0), ("one", 1), ("axis", 3))
    ]
    image = helper.make_tensor_value_info("image", TensorProto.UINT8, [1, *INPUT, 3])
    depth = helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, 1, *INPUT])
    graph = helper.make_graph(nodes, "red", [image], [depth], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    write_description(path, Description("red", "onnxruntime", "fp32", INPUT))
    return path


def paint(root: Path, frames: int, seed: int) -> Path:
    """Frames whose red channel is 500 x (1 / depth) - 40, and a tenth of whose depth is wrong, as behind glass."""
    rng = np.random.default_rng(seed)
    for part in ("rgb", "depth"):
        (root / part).mkdir(parents=True)
    for number in range(frames):
        red = np.linspace(20, 240, INPUT[0])[:, None] + rng.integers(-10, 11, INPUT)
        red = red.round().clip(0, 255).astype(np.uint8)
        depth = 500 / (red + 40.0)
        depth[rng.uniform(size=INPUT) < 0.1] = 8.5
        image = np.zeros((*INPUT, 3), np.uint8)
        image[..., 0] = red
        Image.fromarray(image).save(root / "rgb" / f"{number}.png")
        Image.fromarray(np.rint(depth / L515_UNIT).astype(np.uint16)).save(root / "depth" / f"{number}.png")
    (root / "meta.json").write_text(json.dumps({"depth_unit_m": L515_UNIT}))
    return root


@pytest.mark.parametrize("first", [True, False])
def test_calibrated_on_some_frames_it_predicts_metres_on_others(red, tmp_path, first):
    if first:
        source, calibrate, evaluated = paint(tmp_path / "seen", 6, 1), "3", 3
    else:
        source, calibrate, evaluated = paint(tmp_path / "seen", 3, 1), paint(tmp_path / "other", 3, 2), 3
    run_dir = tmp_path / "run"
    done = deploy(f"checkpoint={red}", "data=l515", f"data.source={source}", f"calibrate={calibrate}", run_dir=run_dir)
    assert done.returncode == 0, done.stderr[-2000:]
    (candidate,) = json.loads((run_dir / "metrics.json").read_text())["candidates"]
    file = Path(candidate["file"])
    assert read_description(red).calibration is None  # the given file is left as it was
    calibration = read_description(file).calibration
    assert calibration.scale == pytest.approx(1 / 500, rel=1e-3)
    assert calibration.shift == pytest.approx(40 / 500, rel=1e-3)
    frame = FolderFrames(source)[0]
    metres = load_runtime(file, threads=1).depth(frame.image.permute(1, 2, 0).numpy())
    assert np.median(np.abs(metres - frame.depth[0].numpy())) < 0.001
    aligned, frozen = candidate["quality"]["seen"], candidate["quality"]["seen_calibrated"]
    assert frozen["frames"] == aligned["frames"] == evaluated
    assert (aligned["alignment"], frozen["alignment"]) == ("per_frame", "frozen")
    assert frozen["delta1"] == pytest.approx(0.9, abs=0.03)  # all but the wrong tenth


def test_calibrating_keeps_what_else_is_said_of_a_file(red, tmp_path):
    """A TensorRT engine's description is the record of how it was built, too."""
    place = tmp_path / "engine"
    shutil.copytree(red.parent, place)
    about = place / "model.onnx.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"library": "tensorrt"}))
    source = paint(tmp_path / "seen", 4, 1)
    given = [f"checkpoint={place / 'model.onnx'}", "data=l515", f"data.source={source}", "calibrate=3"]
    done = deploy(*given, run_dir=tmp_path / "run")
    assert done.returncode == 0, done.stderr[-2000:]
    (candidate,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["candidates"]
    after = json.loads(Path(candidate["file"]).with_name("model.onnx.json").read_text())
    assert after["library"] == "tensorrt"
    assert after["calibration"] is not None


def test_a_network_that_fails_ends_the_run(noisy, tmp_path):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"half a file")
    done = deploy(f"checkpoint={broken}", "data=l515", f"data.source={noisy}", run_dir=tmp_path / "run")
    assert done.returncode == 2
    assert "broken.tflite" in done.stderr
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["sensor"]["frames"] <= 1


def test_what_is_recorded_is_what_was_seen(noisy, deployed, tmp_path):
    """Recording alone, to a folder and for the bundle, and recording while evaluating."""
    for name, options in (("room", []), ("room.npz", []), ("both", [f"checkpoint={deployed}"])):
        command = ["data=l515", f"data.source={noisy}", "data.frames=3", f"record={tmp_path / name}"]
        done = call(*command, *options, f"hydra.run.dir={tmp_path / 'runs' / name}", script="deploy.py")
        assert done.returncode == 0, done.stderr[-2000:]
        assert f"recorded: {tmp_path / name}, 3 frames" in done.stdout
    with open_sensor(str(noisy), Settings()) as stream:
        depth = np.stack([frame.depth for frame in stream])[:3]
    for name in ("room", "both"):
        frames = FolderFrames(tmp_path / name)
        assert np.allclose(np.stack([frames[i].depth[0].numpy() for i in range(3)]), depth, atol=1e-5)
    assert np.allclose(load_frames(str(tmp_path / "room.npz"))["depth"], depth, atol=1e-5)


def test_a_view_shows_what_is_seen(noisy, deployed, tmp_path):
    command = [f"checkpoint={deployed}", "data=l515", f"data.source={noisy}", "data.frames=4"]
    done = deploy(*command, f"view={tmp_path / 'seen.mp4'}", run_dir=tmp_path / "a")
    assert done.returncode == 0, done.stderr[-2000:]
    with av.open(str(tmp_path / "seen.mp4")) as video:
        pictures = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(pictures) == 4
    height, width = pictures[0].shape[:2]
    tile = pictures[0][:96, : width // 4].astype(int)
    with open_sensor(str(noisy), Settings()) as stream:
        first = next(iter(stream)).rgb.astype(int)
    assert np.abs(tile - first).mean() < 12  # compressed
    assert height > 96  # a line of figures below
    alone = ["checkpoint=null", *command[1:], f"view={tmp_path / 'unseen.mp4'}", f"hydra.run.dir={tmp_path / 'c'}"]
    done = call(*alone, script="deploy.py")
    assert done.returncode == 0, done.stderr[-2000:]
    with av.open(str(tmp_path / "unseen.mp4")) as video:
        assert next(video.decode(video=0)).width == width // 2
    done = deploy(*command, f"view={tmp_path / 'seen.rrd'}", run_dir=tmp_path / "b")
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "seen.rrd").stat().st_size > 4 * 1000


def test_a_frame_without_depth_is_shown(noisy):
    with open_sensor(str(noisy), Settings()) as stream:
        first = next(iter(stream))
    blind = replace(first, depth=np.zeros_like(first.depth))
    panel = Panel()
    shown = panel(blind, None, {"candidate": "network"})
    assert shown.shape == panel(first, first.depth + 1, {"candidate": "network"}).shape
    width = shown.shape[1] // 4
    height = shown.shape[0] * first.rgb.shape[0] // (first.rgb.shape[0] + 30)
    assert np.abs(shown[:height, :width].mean() - first.rgb.mean()) < 5
    assert not shown[:height, 2 * width :].any()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["data.source=none.bag"], "no such file"),
        ([], "data.source has no value"),
        (["data.source={noisy}", "checkpoint=null"], "to evaluate, record=PATH to record, view= to watch"),
        (["data.source={noisy}", "data.min_depth=9"], "must be less"),
        (["data.source={noisy}", "data.frames=0"], "at least 1"),
        (["data.source={noisy}", "data.min_depth=8.9"], "no frame has a depth"),
        (["data.source={noisy}", "data.warmup=100"], "no frame with colour and depth"),
        (["data.source={noisy}", "calibrate=0"], "calibrate=0"),
        (["data.source={noisy}", "calibrate={noisy}"], "is what is evaluated"),
        (["data.source={noisy}", "record=copy.db3"], "of a live camera"),
        (["data.source={noisy}", "view=seen.gif"], "give window"),
        (["data.source={noisy}", "view=window"], "display|tkinter"),
        (["data.source={noisy}", "bundle=true"], "means nothing"),
        (["data.source={noisy}", "source=photo.jpg"], "only predicts"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(noisy, deployed, tmp_path, monkeypatch, options, reason):
    monkeypatch.delenv("DISPLAY", raising=False)
    given = [option.format(noisy=noisy) for option in options]
    done = deploy(f"checkpoint={deployed}", "data=l515", *given, run_dir=tmp_path)
    assert done.returncode == 2, done.stdout
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert re.search(reason, line), line


def test_a_frame_without_depth_is_counted_and_changes_nothing(red, tmp_path):
    whole, dark = paint(tmp_path / "whole", 3, 1), paint(tmp_path / "dark", 4, 1)
    Image.fromarray(np.zeros(INPUT, np.uint16)).save(dark / "depth" / "3.png")
    records = []
    for source in (whole, dark):
        done = deploy(f"checkpoint={red}", "data=l515", f"data.source={source}", run_dir=tmp_path / f"of_{source.name}")
        assert done.returncode == 0, done.stderr[-2000:]
        records.append(json.loads((tmp_path / f"of_{source.name}" / "metrics.json").read_text()))
    assert [record["sensor"]["skipped"] for record in records] == [0, 1]
    one, other = (record["candidates"][0]["quality"] for record in records)
    assert one["whole"]["frames"] == other["dark"]["frames"] == 3
    assert one["whole"]["rmse"] == pytest.approx(other["dark"]["rmse"], rel=1e-6)
    assert rows_of(tmp_path / "of_dark")[3]["rmse"] == ""


def test_nothing_calibrates_int8_or_trains_on_a_stream(noisy, deployed, tmp_path):
    checkpoint = deployed.with_suffix(".safetensors")
    given = [f"checkpoint={checkpoint}", "data=l515", f"data.source={noisy}", "quantize=int8"]
    done = deploy(*given, run_dir=tmp_path / "deployed")
    assert done.returncode == 2
    assert "record it first" in done.stderr
    done = call("data=l515", f"data.source={noisy}", "weights=none", f"hydra.run.dir={tmp_path / 'trained'}", steps=1)
    assert done.returncode == 2
    assert "record it first" in done.stderr
