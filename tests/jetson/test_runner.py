"""The bundle's runner, on stored outputs with NumPy alone and on a fake engine."""

import json
import os
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mde.data.transforms import resize_image
from mde.jetson import FILES, builder, depth, runner
from mde.jetson.cudart import Cuda
from mde.metrics import DepthMetrics, resize_prediction
from tests.jetson import fakes

SOURCE = Path(runner.__file__).parent
ORIN = {"device": "Orin", "compute_capability": "8.7"}
CALIBRATION = {"scale": 0.004, "shift": 0.02, "cap": 20.0}


def frames(count=3):
    """Images that are grey and bright where it is near: their mean over the channels is an inverse depth."""
    draw = np.random.default_rng(0)
    truth = draw.uniform(1, 9, (count, 12, 18)).astype(np.float32)
    rgb = np.repeat((np.clip(250 / truth, 0, 255)).astype(np.uint8)[..., None], 3, axis=-1)
    reference = np.stack([depth.prepare(image, description())[0].mean(axis=2) for image in rgb]).astype(np.float32)
    mask = draw.random(truth.shape) < 0.7
    mask[1] = False
    truth[0, 0] = 0
    return {"rgb": rgb, "depth": truth, "mask": mask, "dataset": "l515", "cap": 8.0, "reference": reference}


def description(**changes):
    return {
        "network": "midas_small",
        "input": [4, 6],
        "layout": "nhwc",
        "dtype": "uint8",
        "precision": "fp16",
        "calibration": None,
        "graph_sha256": "f00d",
        **changes,
    }


@pytest.fixture
def bundle(tmp_path):
    """A folder as the bundle is, for the fake network of 4 x 6; call it to change the description or the frames."""

    def write(changes=None, without=(), **arrays):
        said = description(graph_sha256=builder.sha256(str(tmp_path / "model.onnx")))
        (tmp_path / "model.onnx.json").write_text(json.dumps({**said, **(changes or {})}))
        kept = {name: array for name, array in {**frames(), **arrays}.items() if name not in without}
        np.savez(tmp_path / "frames.npz", **kept)
        return tmp_path

    fakes.write_graph(tmp_path / "model.onnx", ("conv", "CONVOLUTION", "FLOAT"))
    return write


@pytest.fixture
def jetson(monkeypatch):
    """As on a device with TensorRT 8.5."""
    trt = fakes.tensorrt("8.5", dla_cores=2)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.setattr(builder, "present_device", lambda: dict(ORIN))
    monkeypatch.setattr(runner, "load_cuda", lambda: Cuda(fakes.Cudart()))
    return trt


def run(folder, *arguments):
    return runner.main([*arguments, "--folder", str(folder)])


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def expected_quality(calibration=None):
    """What the package says of the stored outputs."""
    shot = frames()
    accumulated = DepthMetrics(cap=8.0, align=calibration is None)
    for output, truth, mask in zip(shot["reference"], shot["depth"], shot["mask"], strict=True):
        truth, mask = torch.from_numpy(truth)[None, None].double(), torch.from_numpy(mask)[None, None]
        answer = resize_prediction(torch.from_numpy(output)[None, None], truth.shape[-2:]).double()
        if calibration is not None:
            answer = (calibration["scale"] * answer + calibration["shift"]).clamp(min=1 / calibration["cap"])
        accumulated.update(answer, truth, mask)
    return accumulated.compute()


def assert_quality(found, expected, rel=1e-5):
    assert set(expected) == set(found) - {"parity"}
    for name, value in expected.items():
        assert found[name] == (pytest.approx(value, rel=rel) if isinstance(value, float) else value), name


def test_every_shipped_file_is_python_36():
    command = [sys.executable, "-c", "import vermin; vermin.main()", "-t=3.6-", "--no-tips", "--violations"]
    files = [str(SOURCE / name) for name in FILES]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_files_are_shipped():
    assert set(FILES) == {path.name for path in SOURCE.glob("*.py")} - {"__init__.py"}


def test_a_fresh_folder_with_numpy_alone_evaluates_the_stored_outputs(bundle, tmp_path):
    folder = bundle({"calibration": CALIBRATION})
    for name in FILES:
        shutil.copy(SOURCE / name, folder)
    packages = tmp_path / "packages"
    packages.mkdir()
    for found in Path(np.__file__).parent.parent.glob("numpy*"):
        (packages / found.name).symlink_to(found)
    done = subprocess.run(
        [sys.executable, "-S", "-B", "runner.py", "evaluate", "--outputs", "stored"],
        cwd=folder,
        env={"PYTHONPATH": str(packages), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "l515 (per_frame, 2 frames): delta1" in done.stdout
    found = metrics(folder)
    assert (found["schema"], found["status"], found["latency"]) == (1, "complete", {})
    assert found["model"] == {"name": "midas_small", "input": [4, 6]}
    assert_quality(found["quality"]["l515"], expected_quality())
    assert_quality(found["quality"]["l515_calibrated"], expected_quality(CALIBRATION))


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_an_image_is_prepared_as_the_graph_takes_it(layout, dtype):
    image = frames()["rgb"][0]
    prepared = depth.prepare(image, description(layout=layout, dtype=dtype))
    planes = (255 * resize_image(torch.from_numpy(image).permute(2, 0, 1), (4, 6))).round().numpy()
    assert (prepared.dtype, prepared.flags.c_contiguous) == (np.dtype(dtype), True)
    np.testing.assert_array_equal(prepared[0], planes if layout == "nchw" else planes.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "image", [np.zeros((4, 6, 4), np.uint8), np.zeros((4, 6, 3), np.uint16), np.zeros((4, 6), np.uint8)]
)
def test_other_images_are_refused(image):
    with pytest.raises(depth.RunnerError, match="must be uint8 RGB"):
        depth.prepare(image, description())


def test_depth_is_metric_only_with_a_calibration():
    image = frames()["rgb"][0]

    def network(prepared):
        return prepared.astype(np.float32).mean(axis=3)[:, None]

    inverse = depth.predict(network, description(), image)
    assert (inverse.shape, inverse.dtype) == (image.shape[:2], np.float32)
    found = depth.depth(network, description(calibration=CALIBRATION), image)
    np.testing.assert_allclose(found, 1 / np.maximum(0.004 * inverse + 0.02, 1 / 20), rtol=1e-6)
    with pytest.raises(depth.RunnerError, match="no calibration"):
        depth.depth(network, description(), image)


def test_parity_is_the_worst_frames_share_of_its_range():
    references = np.stack([np.linspace(0, 10, 24).reshape(4, 6), np.linspace(0, 1, 24).reshape(4, 6)])
    outputs = references.copy()
    outputs[0, 0, 0] += 0.1
    outputs[1, 2, 2] -= 0.02
    assert depth.parity(outputs, references) == {"largest": pytest.approx(0.02), "frame": 1}
    outputs[0, 1, 1] = np.nan
    assert depth.parity(outputs, references) == {"largest": np.inf, "frame": 0}


def test_differences_from_a_constant_are_measured_by_its_size():
    assert depth.differences(np.full((2, 2), 7.0007), np.full((2, 2), 7.0)) == pytest.approx((0.01, 0.01))
    assert depth.differences(np.zeros((2, 2)), np.zeros((2, 2))) == (0, 0)
    assert depth.differences(np.array([0, 10.0, 20]), np.array([0, 10.0, 10])) == pytest.approx((1, 1 / 3))


def test_fp16_is_held_to_the_reference_and_int8_to_its_accuracy():
    shot = frames()
    rough = shot["reference"] + 0.02 * np.ptp(shot["reference"])
    with pytest.raises(depth.RunnerError, match=r"differs .* 0\.01 is allowed"):
        depth.check_parity(shot, rough, description(precision="fp16"))
    assert depth.check_parity(shot, rough, description(precision="int8"))["largest"] > 0.01
    with pytest.raises(depth.RunnerError, match="delta1 falls"):
        depth.check_parity(shot, shot["reference"][:, ::-1], description(precision="int8"))


def test_all_builds_checks_evaluates_and_measures(bundle, jetson, capsys):
    folder = bundle()
    assert run(folder, "all", "--minutes", "0.002", "--dla", "1", "--workspace-mb", "64") == 0
    assert jetson.config.pool == ("WORKSPACE", 64 << 20)
    assert jetson.runtime.DLA_core == 1
    found = metrics(folder)
    assert_quality(found["quality"]["l515"], expected_quality(), rel=0.01)
    assert found["quality"]["l515"]["parity"]["largest"] < 1e-2
    entry = found["latency"]["tensorrt"]
    assert (entry["status"], entry["precision"], entry["engine_version"]) == ("measured", "fp16", "8.5")
    assert 0 < entry["p50_ms"] <= entry["p95_ms"] <= entry["p99_ms"]
    assert entry["fps"] == pytest.approx(1000 / entry["p50_ms"])
    assert entry["sustained"]["windows"][0]["runs"] > 0
    profile = json.loads((folder / "profile.json").read_text())
    assert profile["layers"] == {"conv + relu": 0.5, "resize": 0.25}
    assert (profile["device"], profile["dla"], profile["input"], profile["latency"]) == ("Orin", 1, [4, 6], entry)
    assert profile["graph_sha256"] == builder.sha256(str(folder / "model.onnx"))
    assert "board" in profile
    assert "image to depth" in capsys.readouterr().out


def test_results_of_one_network_are_kept_together_and_of_another_thrown_away(bundle, jetson):
    folder = bundle()
    assert [run(folder, "build"), run(folder, "evaluate"), run(folder, "benchmark", "--minutes", "0")] == [0, 0, 0]
    assert set(metrics(folder)["quality"]) == {"l515"}
    assert set(metrics(folder)["latency"]) == {"tensorrt"}
    bundle({"graph_sha256": "beef"})
    assert run(folder, "evaluate", "--outputs", "stored") == 0
    assert metrics(folder)["latency"] == {}


def declare_too_much(path):
    """Frames whose header says that they are a million million million bytes."""
    header = str({"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**9, 1, 3)}).encode() + b"\n"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("rgb.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + bytes(60))


@pytest.mark.parametrize(
    ("command", "spoil", "says"),
    [
        ("check", lambda folder: (folder / "model.engine").write_bytes(fakes.PLAN[:5]), "5 bytes instead of 16"),
        ("check", lambda folder: (folder / "model.engine.json").unlink(), "build the engine again"),
        ("check", lambda folder: fakes.write_graph(folder / "model.onnx", ("c", "RESIZE", "FLOAT")), "not built from"),
        ("build", lambda folder: (folder / "model.onnx").write_text("{"), "damaged; copy the bundle again"),
        ("evaluate", lambda folder: (folder / "model.onnx.json").unlink(), "is --folder the bundle's folder"),
        ("evaluate", lambda folder: (folder / "model.onnx.json").write_text("{}"), "says nothing of calibration"),
        ("evaluate", lambda folder: (folder / "frames.npz").unlink(), "no readable frames"),
        ("evaluate", lambda folder: (folder / "frames.npz").write_bytes(b"PK\3\4 half"), "no readable frames"),
        ("evaluate", lambda folder: declare_too_much(folder / "frames.npz"), "no readable frames"),
        ("live", lambda folder: None, "live needs pyrealsense2"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(bundle, jetson, monkeypatch, capsys, command, spoil, says):
    monkeypatch.setitem(sys.modules, "pyrealsense2", None)
    folder = bundle()
    assert run(folder, "build") == 0
    spoil(folder)
    assert run(folder, command) == 2
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("without", "arrays", "says"),
    [
        (["cap"], {}, "no readable frames"),
        ([], {"mask": np.ones((2, 12, 18), bool)}, "not the same number"),
        ([], {"reference": np.ones((2, 4, 6), np.float32)}, "not the same number"),
        (["reference"], {}, "no stored outputs"),
    ],
)
def test_frames_that_do_not_belong_together_are_refused(bundle, capsys, without, arrays, says):
    assert run(bundle(without=without, **arrays), "evaluate", "--outputs", "stored") == 2
    assert says in capsys.readouterr().err


def test_an_engine_of_another_device_is_not_run(bundle, jetson, monkeypatch, capsys):
    folder = bundle()
    assert run(folder, "build") == 0
    monkeypatch.setattr(builder, "present_device", lambda: {"device": "Xavier", "compute_capability": "7.2"})
    assert run(folder, "benchmark") == 2
    assert "built for device Orin, here it is Xavier; build it again with: python3" in capsys.readouterr().err


class FakeCamera:
    """What `live` asks of pyrealsense2: frames of 12 x 18, depth in counts of 0.25 mm, 0 where there is none."""

    unit = 0.00025

    def __init__(self):
        self.shot, self.sent, self.stopped = frames(), 0, False

    def module(self):
        def thing(**attributes):
            return types.SimpleNamespace(**attributes)

        sensor = thing(get_depth_scale=lambda: self.unit)
        started = thing(get_device=lambda: thing(first_depth_sensor=lambda: sensor))
        rs = types.ModuleType("pyrealsense2")
        rs.stream, rs.format = thing(depth=1, color=2), thing(z16=1, rgb8=2)
        rs.config = lambda: thing(enable_stream=lambda *arguments: None)
        rs.align = lambda stream: thing(process=lambda pair: pair)
        rs.pipeline = lambda: thing(start=lambda config: started, wait_for_frames=self.wait, stop=self.stop)
        return rs

    def wait(self):
        number, self.sent = self.sent, self.sent + 1
        counts = (
            np.where(self.shot["mask"][number], self.shot["depth"][number] / self.unit, 0).round().astype(np.uint16)
        )
        pictures = {"color": self.shot["rgb"][number], "depth": counts}
        return types.SimpleNamespace(**{
            f"get_{name}_frame": lambda picture=picture: types.SimpleNamespace(get_data=lambda: picture)
            for name, picture in pictures.items()
        })  # fmt: skip

    def stop(self):
        self.stopped = True


def test_a_camera_that_is_pulled_out_is_one_line(bundle, jetson, monkeypatch, capsys):
    camera = FakeCamera()

    def unplugged():
        raise RuntimeError("Frame didn't arrive within 5000")

    camera.wait = unplugged
    monkeypatch.setitem(sys.modules, "pyrealsense2", camera.module())
    folder = bundle()
    assert [run(folder, "build"), run(folder, "live")] == [0, 2]
    assert camera.stopped
    assert "no frames from a camera (Frame didn't arrive" in capsys.readouterr().err


def test_live_frames_are_evaluated_and_their_recording_gives_the_same(bundle, jetson, monkeypatch, tmp_path):
    camera = FakeCamera()
    monkeypatch.setitem(sys.modules, "pyrealsense2", camera.module())
    folder, recording = bundle(), str(tmp_path / "recording.npz")
    assert run(folder, "build") == 0
    assert run(folder, "live", "--count", "3", "--record", recording) == 0
    assert camera.stopped
    seen = metrics(folder)["quality"]["live"]
    assert (seen["frames"], seen["skipped_frames"]) == (2, 1)
    entry = metrics(folder)["latency"]["tensorrt_live"]
    assert (entry["status"], entry["runs"]) == ("measured", 3)
    assert entry["p50_ms"] > 0
    assert run(folder, "evaluate", "--frames", recording) == 0
    assert metrics(folder)["quality"]["live"] == seen
