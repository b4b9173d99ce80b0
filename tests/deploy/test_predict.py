"""deploy.py source=: what is written of pictures, folders, videos and cameras is what the network predicts."""

import contextlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image

from mde.app.command_line import CONF
from mde.data.transforms import normalise
from mde.deploy.parity import Parity
from mde.deploy.predict import run as module
from mde.deploy.predict import source as sources
from mde.deploy.predict.rerun_file import Recording
from mde.deploy.predict.results import ColourRange, Pictures, Prediction, Video
from mde.deploy.predict.run import CheckedRuntime, check_options, export, follow
from mde.deploy.predict.source import Frame, open_source
from mde.engines import write_target
from mde.engines.request import Request
from mde.engines.runtime import Runtime, load_runtime
from mde.errors import MdeError
from mde.export import ImageGraph, deployable
from mde.models import load_model, save_model
from mde.quantization.fake import SCALES, activation_scales, load_fake_quantized
from tests.conftest import call
from tests.export import random_network
from tests.test_config import composed

torch.set_num_threads(1)
CODECS = {"film": "libx264", "cover": "mjpeg", "sound": "aac"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.safetensors, and the same network as model.onnx beside it."""
    folder = tmp_path_factory.mktemp("trained")
    model = random_network()
    save_model(model, folder / "model.safetensors", input=[64, 64])
    graph = ImageGraph(deployable(model), model.mean, model.std).eval()
    write_target("onnxruntime", Request(model.name, graph, (64, 64), "fp32", folder), folder / "model.onnx")
    return folder / "model.safetensors"


@pytest.fixture(scope="module")
def runtime(checkpoint: Path) -> Runtime:
    return load_runtime(checkpoint.with_suffix(".onnx"), threads=1)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No recording: where the viewer is installed, importing it takes seconds."""
    monkeypatch.setattr(module, "viewer_installed", lambda: False)


def deploy(*overrides: str) -> subprocess.CompletedProcess[str]:
    return call(*overrides, script="deploy.py")


def photo(seed: int = 0, height: int = 50, width: int = 70) -> np.ndarray:
    """Smooth, so that JPEG and H.264 keep it."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def raw(path: Path) -> np.ndarray:
    """Inverse depth of a 16-bit PNG, by the scale that it holds."""
    with Image.open(path) as image:
        assert image.mode.startswith("I;16")
        low, high = float(image.text["low"]), float(image.text["high"])
        return low + (high - low) * np.asarray(image) / 65535


def write_video(path: Path, frames: list[np.ndarray], rate: int = 10) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        for rgb in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


def read_video(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    av = pytest.importorskip("av")
    frames = []
    # The last fragment of a file that was never closed is cut.
    with av.open(str(path)) as container, contextlib.suppress(av.error.InvalidDataError):
        frames.extend(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [frame.pts * frame.time_base for frame in frames]


def run(source: str, runtime: Runtime, folder: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"source": source}
    follow(open_source(source), CheckedRuntime(runtime), folder, entry)
    return entry


def test_a_picture_is_predicted_out_of_the_box(checkpoint: Path, tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    run_dir = tmp_path / "run"
    done = deploy(f"checkpoint={checkpoint}", f"source={tmp_path / 'photo.png'}", f"hydra.run.dir={run_dir}")
    assert done.returncode == 0, done.stderr[-2000:]
    expected = load_runtime(run_dir / "model.onnx", threads=1).predict(photo())
    assert np.abs(raw(run_dir / "inverse_depth/photo.png") - expected).max() < np.ptp(expected) / 60000
    picture = np.asarray(Image.open(run_dir / "depth/photo.png"))
    assert (picture[:, :70] == photo()).all()
    low, high = np.quantile(expected, (0.02, 0.98))
    shown = matplotlib.colormaps["inferno"](np.clip((expected - low) / (high - low), 0, 1))[..., :3] * 255
    assert np.abs(picture[:, 70:] - shown).max() <= 3
    record = json.loads((run_dir / "metrics.json").read_text())
    assert (record["status"], record["quality"], record["latency"]) == ("complete", {}, {})
    assert record["model"]["file_bytes"] == (run_dir / "model.onnx").stat().st_size
    assert 0 < record["prediction"]["parity"]["largest"] < 1e-3
    assert record["prediction"]["compared_with"] == "PyTorch"
    page = (run_dir / "report.html").read_text()
    assert "data:image/png" in page
    assert "photo.png" in page


def test_a_deployed_file_is_not_exported_again_and_a_bad_picture_shows_in_the_exit_code(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder, run_dir = tmp_path / "holiday", tmp_path / "run"
    folder.mkdir()
    Image.fromarray(photo()).save(folder / "photo.png")
    (folder / "bad.png").write_bytes(b"no picture")
    done = deploy(f"checkpoint={checkpoint.with_suffix('.onnx')}", f"source={folder}", f"hydra.run.dir={run_dir}")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == f"error: source={folder}: could not be read: bad.png"
    assert not list(run_dir.glob("model.*"))
    assert (run_dir / "depth/photo.png").exists()
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["status"] == "failed"
    assert (record["prediction"]["parity"], record["prediction"]["compared_with"]) == (None, None)
    assert list(record["prediction"]["failed"]) == ["bad.png"]
    assert "damaged image" in (run_dir / "report.html").read_text()


def test_a_bad_picture_does_not_lose_the_others(quiet: None, runtime: Runtime, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    for index, suffix in enumerate((".png", ".jpg", ".bmp", ".webp")):
        Image.fromarray(photo(index)).save(folder / f"{index}{suffix}")
    Image.fromarray(photo(0)).save(folder / "0.tif")  # of the same name
    Image.fromarray(photo(0, 500, 700)).save(folder / "bad.JPG")
    (folder / "bad.JPG").write_bytes((folder / "bad.JPG").read_bytes()[:2000])
    (folder / "notes.txt").write_text("no picture")
    entry: dict[str, Any] = {"source": str(folder)}
    with pytest.raises(MdeError, match=r"could not be read: bad\.JPG"):
        follow(open_source(str(folder)), CheckedRuntime(runtime), tmp_path, entry)
    assert entry["frames"] == 5
    assert "damaged image" in entry["failed"]["bad.JPG"]
    assert "bad.JPG" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "depth").iterdir()}
    assert written == {"0.png.png", "0.tif.png", "1.png", "2.png", "3.png"}
    expected = runtime.predict(photo(2))
    assert np.abs(raw(tmp_path / "inverse_depth/2.png") - expected).max() < np.ptp(expected) / 60000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_predicted_upright(orientation: int, tmp_path: Path) -> None:
    upright = photo()
    # What a camera stores so that the viewer, who undoes it, sees `upright`; EXIF 2.3, orientation.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    (frame,) = open_source(str(tmp_path / "photo.png")).frames
    assert (frame.rgb == upright).all()


def names_of(folder: Path, *names: str) -> list[str]:
    """What frames are called that come of pictures so called."""
    for name in names:
        Image.new("L", (4, 3)).save(folder / "any.png")
        (folder / "any.png").rename(folder / name)
    return [frame.name for frame in open_source(str(folder)).frames]


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png", "a.jpg.png"],
        ["a.png", "A.PNG", "a.PNG"],
        ["e\N{COMBINING ACUTE ACCENT}.png", "\N{LATIN SMALL LETTER E WITH ACUTE}.png", "e.png"],
        [f"{'日' * 83}.png", f"{'日' * 83}.jpg", f"{'日' * 82}本.png", "x" * 251 + ".png"],
        ["a.png (2).png", "a.png", "a.jpg", "a.PNG"],
        [os.fsdecode(b"Stra\xdfe.png"), os.fsdecode(b"Stra\xdee.png")],
    ],
)
def test_no_picture_of_depth_is_written_over_another(names: list[str], tmp_path: Path) -> None:
    found = names_of(tmp_path, *names)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in found}) == len(names)
    assert max(len(f".{name}.png.{'0' * 32}.part".encode()) for name in found) <= 255


def test_names_stay_what_they_are_where_they_can(tmp_path: Path) -> None:
    assert names_of(tmp_path, "1.5.png", "$5_$6.png", "日本.jpg") == ["$5_$6", "1.5", "日本"]


def test_of_a_folder_only_pictures_are_predicted(quiet: None, runtime: Runtime, tmp_path: Path) -> None:
    folder = tmp_path / "7scenes"
    folder.mkdir()
    Image.fromarray(photo()).save(folder / "0.color.png")
    Image.fromarray(np.full((50, 70), 1500, np.uint16)).save(folder / "0.depth.png")
    Image.fromarray(np.full((50, 70), 1500, np.uint16)).save(folder / "0.ir.png")
    (folder / "._0.color.png").write_bytes(b"\0\5\x16\7")
    entry: dict[str, Any] = {"source": str(folder)}
    with pytest.raises(MdeError, match=r"could not be read: 0\.depth\.png$"):
        follow(open_source(str(folder)), CheckedRuntime(runtime), tmp_path, entry)
    assert {path.name for path in (tmp_path / "depth").iterdir()} == {"0.color.png", "0.ir.png"}
    assert "a depth map by its name" in entry["failed"]["0.depth.png"]


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK", "I;16"])
def test_other_kinds_of_pixels_are_converted(mode: str, tmp_path: Path) -> None:
    image = Image.fromarray(photo())
    grey = np.asarray(image.convert("L"))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "P":
        image = image.quantize(256)
    else:
        image = image.convert(mode)
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    image.save(path)
    (frame,) = open_source(str(path)).frames
    expected = np.repeat(grey[..., None], 3, axis=2) if mode in ("L", "LA", "I;16") else photo()
    assert (frame.rgb.dtype, frame.rgb.shape) == (np.uint8, (50, 70, 3))
    assert np.abs(frame.rgb.astype(int) - expected).mean() < (8 if mode == "P" else 1)


def test_a_video_becomes_one_of_image_and_depth_at_its_times(quiet: None, runtime: Runtime, tmp_path: Path) -> None:
    source = write_video(tmp_path / "film.mp4", [photo(seed // 4, 64, 96) for seed in range(12)], rate=12)
    entry = run(str(source), runtime, tmp_path)
    (before, before_times), (frames, times) = read_video(source), read_video(tmp_path / "depth.mp4")
    assert entry["frames"] == len(frames) == 12
    assert times == before_times
    limits = ColourRange(Fraction(12))
    for seen, frame in zip(before, frames, strict=True):
        assert np.abs(frame[:, :96].astype(int) - seen).mean() < 6
        inverse = runtime.predict(seen)
        low, high = limits(inverse)
        shown = matplotlib.colormaps["inferno"](np.clip((inverse - low) / (high - low), 0, 1))[..., :3] * 255
        assert np.abs(frame[:, 96:] - shown).mean() < 8


def test_a_video_filmed_lying_down_is_turned_upright(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", [photo(0, 64, 96)] * 2)
    (stored, _), content = read_video(path), path.read_bytes()
    one, minus, unit = (value.to_bytes(4, "big", signed=True) for value in (65536, -65536, 1 << 30))
    zero = bytes(4)
    whole = one + zero * 3 + one + zero * 3 + unit  # the matrix in the track's header, ISO/IEC 14496-12: first movie's
    quarter = zero + one + zero + minus + zero * 4 + unit  # clockwise, as a telephone writes it
    at = content.index(b"tkhd")
    path.write_bytes(content[:at] + content[at:].replace(whole, quarter, 1))
    frames = [frame.rgb for frame in open_source(str(path)).frames]
    assert [frame.shape for frame in frames] == [(96, 64, 3)] * 2
    assert np.abs(frames[0].astype(int) - np.rot90(stored[0], -1)).max() <= 2


def test_a_video_may_have_a_colon_in_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("film.mp4"), [photo(0, 64, 96)] * 2).rename("12:30?#.mp4")
    assert len(list(open_source("12:30?#.mp4").frames)) == 2


@pytest.mark.parametrize("kind", ["mkv", "mp4"])  # in mp4 the cover is marked as one
@pytest.mark.parametrize("streams", [["film", "cover"], ["cover", "film"]])
def test_of_a_film_with_a_cover_the_film_is_predicted(kind: str, streams: list[str], tmp_path: Path) -> None:
    path = write_streams(tmp_path / f"film.{kind}", streams)
    assert [frame.rgb.shape for frame in open_source(str(path)).frames] == [(48, 64, 3)] * 3


def test_the_cover_of_a_song_is_no_film(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "song.mp4", ["sound", "cover"])
    with pytest.raises(MdeError, match="no picture in it; give a video"):
        open_source(str(path))


def write_streams(path: Path, kinds: list[str]) -> Path:
    """A film of three frames, a cover, larger than the film, and sound, as far as they are asked for."""
    av = pytest.importorskip("av")
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    sound.sample_rate = 16000
    with av.open(str(path), "w") as container:
        streams = [container.add_stream(CODECS[kind], rate=16000 if kind == "sound" else 10) for kind in kinds]
        for kind, stream in zip(kinds, streams, strict=True):
            if kind != "sound":
                stream.width, stream.height = (64, 48) if kind == "film" else (640, 480)
                stream.pix_fmt = "yuv420p" if kind == "film" else "yuvj420p"
            if kind == "cover":
                stream.disposition = av.stream.Disposition.attached_pic
        for kind, stream in zip(kinds, streams, strict=True):
            for _ in range(3 if kind == "film" else 1):
                picture = sound
                if kind != "sound":
                    picture = av.VideoFrame.from_ndarray(photo(0, stream.height, stream.width), format="rgb24")
                    picture = picture.reformat(format=stream.pix_fmt)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    return path


def test_a_video_that_breaks_off_gives_what_came_before(quiet: None, runtime: Runtime, tmp_path: Path) -> None:
    noise = [np.random.default_rng(seed).integers(0, 256, (64, 96, 3), dtype=np.uint8) for seed in range(30)]
    path = write_video(tmp_path / "film.mkv", noise)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    entry = run(str(path), runtime, tmp_path)
    assert 5 < entry["frames"] < 30
    assert len(read_video(tmp_path / "depth.mp4")[0]) == entry["frames"]


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg's own test picture, which never ends, in place of a camera."""
    pytest.importorskip("av")
    monkeypatch.setattr(sources, "CAMERA", ("lavfi", "testsrc=size=64x48:rate=10,setpts=PTS+{}00"))


def stop_after(runtime: Runtime, count: int) -> Callable[[np.ndarray], np.ndarray]:
    seen = []

    class Stopped(CheckedRuntime):
        def __call__(self, rgb: np.ndarray) -> np.ndarray:
            seen.append(rgb)
            if len(seen) > count:
                raise KeyboardInterrupt
            return super().__call__(rgb)

    return Stopped(runtime)


def test_ctrl_c_ends_a_camera_with_a_whole_file(camera: None, quiet: None, runtime: Runtime, tmp_path: Path) -> None:
    entry: dict[str, Any] = {"source": "1"}
    follow(open_source("1"), stop_after(runtime, 7), tmp_path, entry)
    assert entry["frames"] == 7
    frames, times = read_video(tmp_path / "depth.mp4")
    assert times == [Fraction(index, 10) for index in range(7)]
    assert frames[0].shape == (48, 128, 3)
    assert (tmp_path / "pictures/depth.png").exists()


def test_ctrl_c_stops_a_video_with_a_whole_file(quiet: None, runtime: Runtime, tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", [photo(0, 64, 96)] * 8)
    with pytest.raises(KeyboardInterrupt):
        follow(open_source(str(path)), stop_after(runtime, 3), tmp_path, {"source": str(path)})
    assert len(read_video(tmp_path / "depth.mp4")[0]) == 3


def test_what_is_on_the_disk_plays_before_the_video_is_closed(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with Video(tmp_path / "depth.mp4", Fraction(10)) as video:
        for index in range(150):
            rgb = np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            video.add(Prediction(Frame("", rgb, Fraction(index, 10)), rgb[..., 0].astype(np.float32), 0, 255))
        shutil.copy(tmp_path / "depth.mp4", tmp_path / "killed.mp4")  # what a process leaves that is killed now
    assert len(read_video(tmp_path / "depth.mp4")[0]) == 150
    assert 50 <= len(read_video(tmp_path / "killed.mp4")[0]) < 150


def test_frames_whose_times_repeat_or_step_back_follow_one_another(tmp_path: Path) -> None:
    pytest.importorskip("av")
    seconds = [Fraction(0), Fraction(1, 10), Fraction(1, 10), Fraction(1, 20), Fraction(1, 5)]
    with Video(tmp_path / "depth.mp4", Fraction(10)) as video:
        for index, time in enumerate(seconds):
            rgb = photo(index, 32, 32)
            video.add(Prediction(Frame("", rgb, time), rgb[..., 0].astype(np.float32), 0, 255))
    _, times = read_video(tmp_path / "depth.mp4")
    assert len(times) == 5
    assert all(before < after for before, after in itertools.pairwise(times))
    assert [times[0], times[1], times[4]] == [seconds[0], seconds[1], seconds[4]]


def test_colours_of_a_video_do_not_flicker_and_follow_a_new_scene() -> None:
    limits = ColourRange(Fraction(25))
    scene = np.linspace(1, 3, 64 * 64, dtype=np.float32).reshape(64, 64)
    low, high = limits(scene)
    assert (low, high) == pytest.approx(np.quantile(scene, (0.02, 0.98)), abs=1e-3)
    outlier = limits(3 * scene)  # the network's scale jumps in one frame
    assert outlier == pytest.approx((low, high), rel=0.1)
    for _ in range(75):  # three seconds of another scene
        found = limits(3 * scene)
    assert found == pytest.approx((3 * low, 3 * high), rel=0.1)
    single = ColourRange(None)
    single(scene)
    assert single(3 * scene) == pytest.approx((3 * low, 3 * high), rel=1e-5)


def test_a_flat_prediction_is_written(tmp_path: Path) -> None:
    with Pictures(tmp_path) as pictures:
        inverse = np.full((5, 7), 2.0, np.float32)
        pictures.add(Prediction(Frame("wall", photo(0, 5, 7)), inverse, *ColourRange(None)(inverse)))
    assert (raw(tmp_path / "inverse_depth/wall.png") == 2).all()


def test_a_large_photo_is_shrunk_to_look_at_and_kept_whole_raw(tmp_path: Path) -> None:
    inverse = np.linspace(0, 1, 640 * 2560, dtype=np.float32).reshape(640, 2560)
    with Pictures(tmp_path) as pictures:
        pictures.add(Prediction(Frame("wide", photo(0, 640, 2560)), inverse, 0.0, 1.0))
    assert Image.open(tmp_path / "depth/wide.png").size == (2560, 320)
    assert np.abs(raw(tmp_path / "inverse_depth/wide.png") - inverse).max() < 1e-5


def test_odd_sizes_make_a_video(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with Video(tmp_path / "depth.mp4", Fraction(10)) as video:
        for index in range(3):
            frame = Frame("", photo(index, 49, 71), Fraction(index, 10))
            video.add(Prediction(frame, frame.rgb[..., 0].astype(np.float32), 0, 255))
    frames, _ = read_video(tmp_path / "depth.mp4")
    assert [frame.shape for frame in frames] == [(48, 142, 3)] * 3


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("missing.jpg", "no such file; give a picture, a folder, a video, or the number of a camera"),
        ("empty", "no picture directly in it"),
        ("notes.txt", "neither a picture .* nor a video"),
        ("broken.mp4", "cannot be opened as a video"),
        ("sound.mp4", "no picture in it"),
        ("7", "no camera at /dev/video7"),
    ],
)
def test_what_is_no_source_is_one_line(source: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("notes.txt", "broken.mp4"):
        Path(name).write_text("nothing to see")
    if source.endswith("mp4"):
        av = pytest.importorskip("av")
        with av.open("sound.mp4", "w") as container:
            stream = container.add_stream("aac", rate=16000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.sample_rate = 16000
            container.mux([*stream.encode(silence), *stream.encode()])
    with pytest.raises(MdeError, match=line) as caught:
        open_source(source)
    assert "\n" not in str(caught.value)


def test_without_its_package_a_video_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MdeError, match=r"need PyAV; pip install -e '\.\[video\]'"):
        open_source(str(tmp_path / "film.mp4"))


def test_without_the_viewer_the_missing_recording_is_said(
    quiet: None, runtime: Runtime, tmp_path: Path, capsys
) -> None:
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    run(str(tmp_path / "photo.png"), runtime, tmp_path)
    assert "pip install -e '.[viewer]'" in capsys.readouterr().out
    assert not (tmp_path / "depth.rrd").exists()


def test_a_file_that_computes_something_else_than_pytorch_stops(checkpoint: Path, runtime: Runtime) -> None:
    network = load_runtime(checkpoint, threads=1)
    wrong = Runtime(Path("m.onnx"), runtime.description, lambda image: runtime.infer(image) ** 2)
    with pytest.raises(MdeError, match=r"differs from PyTorch by .* on frame 0"):
        CheckedRuntime(wrong, network, 2)(photo())
    broken = Runtime(Path("m.onnx"), runtime.description, lambda image: runtime.infer(image) * np.float32(np.nan))
    with pytest.raises(MdeError, match="NaN"):
        CheckedRuntime(broken)(photo())
    right = CheckedRuntime(runtime, network, 2)
    for seed in range(3):
        right(photo(seed))
    assert isinstance(parity := right.parity(), Parity)
    assert (parity.frames, parity.engine) == (2, "onnxruntime")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["checkpoint=midas", "bundle=true"], "bundle: means nothing to source=; leave it out"),
        (["checkpoint=midas", "evaluate=[rooms]"], "evaluate: means nothing to source="),
        (["checkpoint=midas", "device.profile=missing.json"], r"device\.profile: means nothing to source="),
        (["checkpoint=model.onnx", "target=openvino"], "target: means nothing to source= with a deployed file"),
        (["checkpoint=model.onnx", "quantize=int8"], "quantize: means nothing to source= with a deployed file"),
        (["checkpoint=model.xml", "size=[64,64]"], "size: means nothing to source= with a deployed file"),
        (["checkpoint=midas", "hydra.mode=MULTIRUN"], "source=: is one run, no job of a sweep; leave out -m"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    overrides: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = called(monkeypatch, "source=photo.jpg", *overrides)
    with pytest.raises(MdeError, match=line):
        check_options(config)


@pytest.mark.parametrize(
    "overrides",
    [
        ["checkpoint=model.onnx", "threads=1"],
        [
            "checkpoint=midas",
            "model.encoder=lite0",
            "target=openvino",
            "quantize=int8",
            "quantize.frames=8",
            "size=[64,64]",
        ],
        ["checkpoint=midas", "data=folder", "data.root=rooms", "parity_frames=4", "threads=1", "seed=1"],
    ],
)
def test_options_that_mean_something_are_taken(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    check_options(called(monkeypatch, "source=photo.jpg", *overrides))


def test_a_file_trained_for_int8_is_compared_with_the_fake_quantized_network(checkpoint: Path, tmp_path: Path) -> None:
    model = load_model(checkpoint)
    network = deployable(model)
    image = torch.from_numpy(photo(0, 64, 64)).permute(2, 0, 1)
    scales = activation_scales(network, [normalise(image[None] / 255, model.mean, model.std)])
    trained = tmp_path / "qat.safetensors"
    save_model(model, trained, input=[64, 64], **{SCALES: scales})
    overrides = (f"checkpoint={trained}", "source=photo.png", "quantize=qat", "threads=1")
    record: dict[str, Any] = {"prediction": {}}
    (tmp_path / "run").mkdir()
    predictor = export(composed(*overrides, script="deploy"), tmp_path / "run", tmp_path, record)
    graph = ImageGraph(deployable(load_fake_quantized(trained)), model.mean, model.std)
    with torch.no_grad():
        expected = graph(torch.from_numpy(photo(0, 64, 64))[None]).numpy()
    assert predictor.network is not None
    exact, found = (
        each.infer(photo(0, 64, 64)[None]) for each in (load_runtime(checkpoint, threads=1), predictor.network)
    )
    assert np.abs(found - expected).max() < 1e-5 * np.ptp(expected)
    assert np.abs(exact - expected).max() > 1e-3 * np.ptp(expected)
    predictor(photo())
    assert predictor.parity() is not None
    assert record["prediction"]["compared_with"] == "PyTorch, where it is fake-quantized"


def called(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> DictConfig:
    """What deploy.py composes of its command line, which Hydra also remembers."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("deploy", list(overrides), return_hydra_config=True)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    return config


def test_a_recording_holds_image_depth_and_points_that_project_onto_their_pixels(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    rgb, inverse = photo(), np.linspace(1, 3, 50 * 70, dtype=np.float32).reshape(50, 70)
    with Recording(tmp_path / "depth.rrd", None) as recording:
        for time in (None, Fraction(0), Fraction(1, 10), Fraction(1, 4)):  # the third comes too soon
            recording.add(Prediction(Frame("x", rgb, time), inverse, 1.0, 3.0))
    assert recording.frames == 3
    columns = recorded_columns(tmp_path / "depth.rrd")
    points = np.array(columns["/points:Points3D:positions"])
    assert points.shape == (3, 50 * 70, 3)
    z = points[0, :, 2].reshape(50, 70)
    assert (z[0, 0], z[-1, -1]) == pytest.approx((10, 1))
    assert 1 / z == pytest.approx((inverse - 1) / 2 * 0.9 + 0.1, rel=1e-4)
    focal = 35 / np.tan(np.radians(65 / 2))
    pixels = focal * points[0, :, :2] / points[0, :, 2:]
    assert pixels.reshape(50, 70, 2)[10, 20] == pytest.approx((20 - 34.5, 10 - 24.5), abs=1e-3)
    assert {"/camera/image:EncodedImage:blob", "/camera/depth:DepthImage:buffer"} <= set(columns)


def test_a_recording_keeps_every_frame_of_a_video_of_five_a_second(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    rgb = photo(0, 8, 8)
    with Recording(tmp_path / "depth.rrd", None) as recording:
        for index in range(20):
            recording.add(Prediction(Frame("x", rgb, Fraction(index, 5)), np.ones((8, 8), np.float32), 1.0, 3.0))
    assert recording.frames == 20


def test_a_recording_that_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("rerun")
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (path := tmp_path / "depth.rrd").symlink_to("/dev/full")
    refused = pytest.raises(MdeError, match=r"depth\.rrd: not written \(.*free disk space")
    with refused, Recording(path, None) as recording:
        for _ in range(20):
            recording.add(Prediction(Frame("x", photo(0, 64, 64), None), np.ones((64, 64), np.float32), 1.0, 3.0))


def recorded_columns(path: Path) -> dict[str, Any]:
    """Every column of a recording, its rows concatenated: entity:component -> values."""
    from rerun.chunk import RrdReader

    columns: dict[str, list[Any]] = {}
    for chunk in RrdReader(path).stream():
        batch = chunk.to_record_batch()
        for name in (name for name in batch.schema.names if ":" in name):  # the others are times and row numbers
            columns.setdefault(f"{chunk.entity_path}:{name}", []).extend(batch.column(name).to_pylist())
    return columns
