"""An L515 that is not there: librealsense's software device plays scenes whose exact depth is known.

    python -m mde.sensors.emulator room.db3                      # rendered rooms, seen with noise from 14 mm beside
    python -m mde.sensors.emulator desk.db3 --folder PATH        # real RGB-D frames, as if an L515 had seen them
    python -m mde.sensors.emulator exact.db3 --ideal             # no noise, no baseline, one geometry

librealsense writes .db3 (2.55 and later) or .bag (before). Beside the recording, <name>.exact.npz keeps exact depth.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from mde.data.folder import FolderFrames
from mde.data.sample import Sample
from mde.data.synthetic import SyntheticFrames
from mde.errors import MdeError
from mde.progress import track
from mde.renderer import render
from mde.renderer.depth_sensor import L515_UNIT, l515
from mde.renderer.photo import expose
from mde.renderer.scene import Camera
from mde.sensors.library import require_realsense
from mde.sensors.realsense import RealSense, Settings

RATE = 30
PAUSE = 0.002  # seconds after each frame: a recorder writes in a thread of its own, and drops what comes too fast
STILL = 10  # frames that each scene is looked at: noise flickers, the scene does not
FOCAL = 0.95  # of colour, in widths of the image: about the L515's
BASELINE = 0.014  # metres from colour to depth, to the right: about the distance of the L515's two lenses
NAMES = {  # what the device says of itself
    "name": "Intel RealSense L515",
    "serial_number": "f0000001",
    "firmware_version": "01.05.08.01",
    "firmware_update_id": "f0000001",
    "product_id": "0B64",
    "product_line": "L500",
}


@dataclass(frozen=True)
class Rig:
    """Two pinhole cameras that look the same way, depth `baseline` metres to the right of colour.

    size         height, width of both images
    focal_ratio  the depth camera's focal length over colour's: below 1 it sees more
    noise        whether depth is what an L515 would measure, or exact to its counts
    """

    size: tuple[int, int] = (480, 640)
    focal_ratio: float = 0.9
    baseline: float = BASELINE
    noise: bool = True


IDEAL = Rig(focal_ratio=1.0, baseline=0.0, noise=False)


@dataclass(frozen=True)
class Emulated:
    """rgb     uint8 (H, W, 3)
    counts  uint16 (H, W), what the depth camera reports, in its own view
    exact   float32 (H, W), metres, in colour's view; +inf at the sky
    K       of colour and of depth, float64 (3, 3)
    """

    rgb: np.ndarray
    counts: np.ndarray
    exact: np.ndarray
    K: tuple[np.ndarray, np.ndarray]


def rendered(count: int, rig: Rig, seed: int = 0) -> Iterator[Emulated]:
    """Rooms of our own renderer, each for STILL frames; both cameras see the same scene from their own places."""
    frames = SyntheticFrames(-(-count // STILL), rig.size, seed, world="rooms")
    for number in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        if number % STILL == 0:
            scene = frames.scene(number // STILL)
            color = lens(scene.camera)
            depth = moved(color, rig)
            radiance, hits = render.render(replace(scene, camera=color))
            image, exact = expose(radiance, generator), 1 / hits.inverse_depth
            beside, hits = render.render(replace(scene, camera=depth))
            seen, shown = 1 / hits.inverse_depth, expose(beside, generator)
        counts = measured(seen[None], shown, depth, rig, generator)
        rgb = image.permute(1, 2, 0).contiguous().numpy()
        yield Emulated(rgb, counts, exact.numpy(), (intrinsics(color).numpy(), intrinsics(depth).numpy()))


def replayed(root: str, count: int, rig: Rig, seed: int = 0) -> Iterator[Emulated]:
    """Real RGB-D frames of a folder, their depth carried over into the depth camera's view, nearest surface first."""
    frames = FolderFrames(root)
    for number in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        sample = fitted(frames[number % len(frames)], rig.size)
        color = camera_of(sample)
        depth = moved(color, rig)
        seen = carried(sample.depth, color, depth)
        counts = measured(seen, sample.image, depth, rig, generator)
        rgb = sample.image.permute(1, 2, 0).contiguous().numpy()
        exact = sample.depth[0].numpy()
        yield Emulated(rgb, counts, exact, (intrinsics(color).numpy(), intrinsics(depth).numpy()))


def measured(depth: torch.Tensor, image: torch.Tensor, camera: Camera, rig: Rig, generator: Any) -> np.ndarray:
    """Counts of exact depth (1, H, W): rounded, or through the L515's noise model."""
    if rig.noise:
        depth = l515(depth, image, intrinsics(camera).float(), generator)
    counts = torch.where(torch.isfinite(depth), depth / L515_UNIT, 0).round()
    return torch.where(counts <= 65535, counts, 0)[0].numpy().astype(np.uint16)


def lens(camera: Camera) -> Camera:
    """The camera with the lens of the rig, the same in every scene."""
    height, width = camera.size
    return replace(camera, fx=FOCAL * width, fy=FOCAL * width, cx=(width - 1) / 2, cy=(height - 1) / 2)


def moved(color: Camera, rig: Rig) -> Camera:
    """The depth camera beside `color`."""
    right = color.rotation[0]
    fx, fy = rig.focal_ratio * color.fx, rig.focal_ratio * color.fy
    return replace(color, position=color.position + rig.baseline * right, fx=fx, fy=fy)


def intrinsics(camera: Camera) -> torch.Tensor:
    return torch.tensor([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1]], dtype=torch.float64)


def fitted(sample: Sample, size: tuple[int, int]) -> Sample:
    """Image and depth stretched to the rig's size, intrinsics with them; depth by its nearest pixel."""
    height, width = sample.image.shape[-2:]
    image = F.interpolate(sample.image[None].float(), size, mode="area")[0].round().to(torch.uint8)
    depth = F.interpolate(sample.depth[None], size, mode="nearest-exact")[0]
    K = sample.intrinsics
    if K is None:
        focal = FOCAL * width  # where a folder does not say
        K = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    x, y = size[1] / width, size[0] / height
    scale = torch.tensor([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return replace(sample, image=image, depth=depth, mask=depth > 0, intrinsics=scale @ K)


def camera_of(sample: Sample) -> Camera:
    K = sample.intrinsics
    assert K is not None, "fitted() gives every sample intrinsics"
    fx, fy, cx, cy = (float(K[i]) for i in ((0, 0), (1, 1), (0, 2), (1, 2)))
    size = (sample.depth.shape[-2], sample.depth.shape[-1])
    return Camera(torch.zeros(3), torch.eye(3), fx, fy, cx, cy, size)


def carried(depth: torch.Tensor, color: Camera, other: Camera) -> torch.Tensor:
    """Depth (1, H, W) of one camera as another that looks the same way sees it; 0 where nothing lands."""
    height, width = depth.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    z = depth[0]
    offset = other.position - color.position
    right, down = color.rotation[0] @ offset, color.rotation[1] @ offset
    column = ((x - color.cx) / color.fx * z - right) / z * other.fx + other.cx
    row = ((y - color.cy) / color.fy * z - down) / z * other.fy + other.cy
    known = (z > 0) & torch.isfinite(z)
    column, row = column[known].round().long(), row[known].round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    nearest = torch.full((height * width,), torch.inf)
    nearest.scatter_reduce_(0, (row * width + column)[inside], z[known][inside], "amin")
    return torch.where(torch.isfinite(nearest), nearest, 0).view(1, height, width)


class SoftwareL515:
    """librealsense's software device, with the L515's names and the geometry of the first frame."""

    def __init__(self, first: Emulated, baseline: float, streams: tuple[str, ...] = ("depth", "colour")):
        rs = self.rs = require_realsense()
        self.device = rs.software_device()
        for key, value in NAMES.items():
            self.device.register_info(getattr(rs.camera_info, key), value)
        kinds = {
            "depth": ("L500 Depth Sensor", rs.stream.depth, rs.format.z16, 2, first.K[1]),
            "colour": ("RGB Camera", rs.stream.color, rs.format.rgb8, 3, first.K[0]),
        }
        self.views = {}
        for number, name in enumerate(streams, start=1):
            called, kind, pixel, bytes_, K = kinds[name]
            sensor = self.device.add_sensor(called)
            profile = sensor.add_video_stream(_stream(rs, number, kind, pixel, bytes_, first.counts.shape, K))
            self.views[name] = (sensor, profile.as_video_stream_profile())
        if "depth" in streams:
            self.views["depth"][0].add_read_only_option(rs.option.depth_units, L515_UNIT)
        if len(streams) == 2:
            self._place(baseline)

    def _place(self, baseline: float) -> None:
        """A point in the depth camera's frame lies `baseline` further right in colour's."""
        depth, color = self.views["depth"][1], self.views["colour"][1]
        for one, other, shift in ((depth, color, baseline), (color, depth, -baseline)):
            between = self.rs.extrinsics()
            between.rotation, between.translation = [1, 0, 0, 0, 1, 0, 0, 0, 1], [shift, 0, 0]
            one.register_extrinsics_to(other, between)

    def show(self, frame: Emulated, number: int) -> None:
        """Sends both images, as the camera's frame `number`, from 1."""
        rs = self.rs
        for name, (sensor, profile) in self.views.items():
            pixels = frame.counts if name == "depth" else frame.rgb
            image = rs.software_video_frame()
            image.pixels = pixels
            image.bpp = pixels.itemsize * (1 if pixels.ndim == 2 else pixels.shape[2])
            image.stride = image.bpp * pixels.shape[1]
            image.timestamp, image.domain = 1000 * (number - 1) / RATE, rs.timestamp_domain.hardware_clock
            image.frame_number, image.profile = number, profile
            sensor.on_video_frame(image)
        time.sleep(PAUSE)


def _stream(rs: Any, number: int, kind: Any, pixel: Any, bytes_: int, shape: tuple[int, ...], K: np.ndarray) -> Any:
    geometry = rs.intrinsics()
    geometry.height, geometry.width = shape
    geometry.fx, geometry.fy, geometry.ppx, geometry.ppy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    geometry.model, geometry.coeffs = rs.distortion.none, [0.0] * 5
    stream = rs.video_stream()
    stream.type, stream.index, stream.uid, stream.fmt = kind, 0, number, pixel
    stream.height, stream.width, stream.fps, stream.bpp, stream.intrinsics = *shape, RATE, bytes_, geometry
    return stream


def record(frames: Iterator[Emulated], path: Path, baseline: float) -> None:
    """Plays the frames through the device while librealsense records it, and keeps their exact depth beside.

    The geometry of the first frame is that of all: a device has one. MdeError where the file cannot be written, or the
    recorder could not follow.
    """
    if path.exists():
        raise MdeError(f"{path}: exists already; give a new name")
    path.parent.mkdir(parents=True, exist_ok=True)
    exact = _played(frames, path, baseline)
    np.savez_compressed(path.with_suffix(".exact.npz"), depth=np.stack(exact))
    with RealSense(str(path), Settings()) as stream:
        kept = sum(1 for _ in stream)
    if kept != len(exact):
        raise MdeError(f"{path}: librealsense kept {kept} of {len(exact)} frames; record fewer, or smaller ones")


def _played(frames: Iterator[Emulated], path: Path, baseline: float) -> list[np.ndarray]:
    """Shows and records the frames; returns their exact depth. The file is whole when all that refers to it is gone."""
    device, recorder, exact = None, None, []
    for number, frame in enumerate(frames, start=1):
        if device is None:
            device = SoftwareL515(frame, baseline)
            recorder = start_recorder(device, path)
        device.show(frame, number)
        exact.append(frame.exact)
    if recorder is not None:
        stop_recorder(recorder)
    return exact


def start_recorder(device: SoftwareL515, path: Path) -> Any:
    """librealsense's recorder of all that the device shows from now on, until `stop_recorder`."""
    rs = device.rs
    try:
        recorder = rs.recorder(str(path), device.device)
    except RuntimeError as error:
        raise MdeError(f"{path}: librealsense cannot record there ({error}); 2.55 and later write .db3") from error
    queue = rs.frame_queue(1)
    for sensor in recorder.query_sensors():
        sensor.open(sensor.get_stream_profiles()[0])
        sensor.start(queue)
    return recorder


def stop_recorder(recorder: Any) -> None:
    for sensor in recorder.query_sensors():
        sensor.stop()
        sensor.close()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path, help="a new .db3 (librealsense 2.55 and later) or .bag (before)")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--folder", help="real RGB-D frames to play, instead of rendered rooms")
    parser.add_argument("--ideal", action="store_true", help="no noise, no baseline, one geometry")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.frames < 1:
        parser.error("--frames must be at least 1")
    rig = replace(IDEAL if options.ideal else Rig(), size=tuple(options.size))
    if options.folder:
        frames = replayed(options.folder, options.frames, rig, options.seed)
    else:
        frames = rendered(options.frames, rig, options.seed)
    try:
        record(iter(track(frames, "emulating", options.frames, transient=True)), options.recording, rig.baseline)
    except MdeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"recorded: {options.recording}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
