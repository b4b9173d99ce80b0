"""A RealSense camera, or a recording of one, through librealsense's pipeline."""

import contextlib
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from mde.errors import MdeError
from mde.renderer.depth_sensor import depth_edges
from mde.sensors.frame import Account, SensorFrame
from mde.sensors.library import no_camera, realsense_version, require_realsense
from mde.sensors.opening import opens
from mde.sensors.salvage import recorded_images, salvage

RECORDINGS = (".bag", ".db3")
LIVE = "live"
WARMUP = 30  # frames of a live camera: a second, in which exposure and white balance settle
WAIT = 200  # ms between two looks at whether the source is still there
# From here on librealsense throws away what a recording plays before start() returns; before, resume() keeps Python's
# own lock.
DROPS_AT_START = (2, 55)
WRITES_DB3 = (2, 55)  # and no .bag any more, which it still reads; those before read no .db3
TAIL = 2  # images at a recording's end that may find no partner
SILENCE = 5.0  # seconds without a frame after which a camera counts as lost


@dataclass(frozen=True)
class Settings:
    """How a camera is read: the options of `data=l515`, explained there. MdeError for values out of range."""

    resolution: tuple[int, int] = (480, 640)
    rate: int = 30
    preset: str | None = None
    min_depth: float = 0.25
    max_depth: float = 9.0
    warmup: int | None = None
    drop_edges: bool = False
    confidence: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_depth < self.max_depth:
            raise MdeError(f"data.min_depth={self.min_depth:g}: must be less than data.max_depth={self.max_depth:g}")
        if len(self.resolution) != 2:
            raise MdeError(f"data.resolution={list(self.resolution)}: give height and width, as [480,640]")
        if (self.warmup or 0) < 0:
            raise MdeError(f"data.warmup={self.warmup}: must be at least 0")
        if not 0 <= self.confidence <= 15:
            raise MdeError(f"data.confidence={self.confidence}: must be from 0 to 15")


class RealSense:
    """The frames of a live camera (an L515 where there is one) or of a .bag or .db3 recording.

    A recording waits for its reader: nothing of it is dropped. One that breaks off is salvaged as far as it can be read
    (`account.notes`). A camera that goes away ends the stream, and `account.problem` says so.

    record   a .bag or .db3 to which librealsense writes what a live camera sends
    context  librealsense's own, where cameras are looked for

    MdeError for what is missing, damaged beyond use, or without colour or depth.
    """

    count: int | None = None

    def __init__(self, source: str, settings: Settings, record: Path | None = None, context: Any = None):
        self.live = source == LIVE
        self.name = "l515" if self.live else Path(source).stem
        self.cap, self.settings, self._record, self._context = settings.max_depth, settings, record, context
        self.account = Account(
            source, library=f"librealsense {'.'.join(map(str, realsense_version()))}", live=self.live
        )
        if record is not None:
            check_record(record)
        if not self.live and settings.preset:
            raise MdeError(f"data.preset={settings.preset}: is set on a live camera, not on a recording; leave it out")

    def __enter__(self) -> Self:
        self._rs = require_realsense()
        with contextlib.ExitStack() as stack:
            self._context = self._context or self._rs.context()
            self._pipeline = self._rs.pipeline(self._context)
            stack.callback(self._stop)
            try:
                profile = self._start_camera() if self.live else self._start_recording(stack)
                self._describe(profile)
            except (
                RuntimeError,
                UnicodeDecodeError,
            ) as error:  # no permission, unplugged, damaged names
                hint = "; do its udev rules let you use it?" if self.live else ""
                raise MdeError(f"data.source={self.account.source}: librealsense refuses ({error}){hint}") from error
            self._leave = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._leave.close()

    def __iter__(self) -> Iterator[SensorFrame]:
        left_out = self.settings.warmup if self.settings.warmup is not None else WARMUP * self.live
        start = time.perf_counter()
        for frameset in self._framesets():
            if self.account.warmup < left_out:
                self.account.warmup += 1
                start = time.perf_counter()
                continue
            frame = self._read(frameset, start)
            del frameset
            self.account.arrived(frame.number)
            yield frame
            start = time.perf_counter()

    # Opening

    def _start_camera(self) -> Any:
        rs, settings = self._rs, self.settings
        cameras = [device for device in self._context.query_devices() if _is_camera(device)]
        if not cameras:
            raise no_camera()
        device = min(cameras, key=lambda camera: "L515" not in camera.get_info(rs.camera_info.name))
        config = rs.config()
        if len(cameras) > 1:  # by its number, librealsense 2.54 does not find a software device
            config.enable_device(device.get_info(rs.camera_info.serial_number))
        height, width = settings.resolution
        config.enable_stream(rs.stream.depth, width, height, rs.format.z16, settings.rate)
        config.enable_stream(rs.stream.color, width, height, rs.format.rgb8, settings.rate)
        if settings.confidence:
            config.enable_stream(rs.stream.confidence, width, height, rs.format.raw8, settings.rate)
        if self._record is not None:
            config.enable_record_to_file(str(self._record))
        if settings.preset:
            set_preset(rs, device.first_depth_sensor(), settings.preset)
        try:
            return self._pipeline.start(config)
        except RuntimeError as error:
            raise MdeError(
                f"data.source=live: the camera refuses {height} x {width}, {settings.rate} frames a second ({error}); "
                "choose data.resolution and data.rate as rs-enumerate-devices lists them"
            ) from error

    def _start_recording(self, stack: contextlib.ExitStack) -> Any:
        path = Path(self.account.source)
        if path.suffix == ".db3" and realsense_version() < WRITES_DB3:
            raise MdeError(f"{path}: this librealsense reads no .db3; use a newer one, or record a .bag")
        self._recorded = recorded_images(path)
        config = self._config_of(path) if self._recorded else None  # librealsense searches a damaged .bag for ever
        if config is None:
            salvaged = salvage(path, Path(stack.enter_context(tempfile.TemporaryDirectory())))
            self.account.notes.append(salvaged.report)
            self._recorded = recorded_images(salvaged.path)
            config = self._config_of(salvaged.path)
        if config is None:
            raise MdeError(f"{path}: librealsense does not open it; record or copy it again")
        device = config.resolve(self._rs.pipeline_wrapper(self._pipeline)).get_device()
        _check_streams(self._rs, device, path)
        playback = device.as_playback()
        playback.set_real_time(False)
        if realsense_version() < DROPS_AT_START:
            return self._pipeline.start(config)
        playback.pause()
        profile = self._pipeline.start(config)
        # resume() waits, for up to ten seconds, until what is read first has been taken: by us, who must not wait.
        resume = threading.Thread(target=playback.resume, name="resume")
        resume.start()
        stack.callback(resume.join)
        return profile

    def _config_of(self, path: Path) -> Any:
        """None where librealsense cannot open it. MdeError where it would search in it for ever."""
        if not opens(path):
            return None
        config = self._rs.config()
        try:
            config.enable_device_from_file(str(path), repeat_playback=False)
            config.resolve(self._rs.pipeline_wrapper(self._pipeline))
        except RuntimeError:
            return None
        return config

    def _describe(self, profile: Any) -> None:
        rs, account = self._rs, self.account
        device = self._device = profile.get_device()
        info = rs.camera_info
        for key, name in (("device", info.name), ("serial", info.serial_number), ("firmware", info.firmware_version)):
            if device.supports(name):
                setattr(account, key, device.get_info(name).splitlines()[-1])  # 2.54 puts its own name first
        # Asked as an option: while it is being recorded, a software device's sensor is no depth_sensor.
        units = [sensor for sensor in device.query_sensors() if sensor.supports(rs.option.depth_units)]
        if not units:
            raise MdeError(f"data.source={account.source}: does not say its unit of depth; record it with librealsense")
        account.unit = float(units[0].get_option(rs.option.depth_units))
        color = profile.get_stream(rs.stream.color).as_video_stream_profile()
        depth = profile.get_stream(rs.stream.depth).as_video_stream_profile()
        account.size = (color.height(), color.width())
        kinds = [stream.stream_type() for stream in profile.get_streams()]
        if self.settings.confidence and rs.stream.confidence not in kinds:
            account.notes.append("data.confidence: there is no such stream, nothing is hidden by it")
        # Of one geometry, depth is aligned already, and rs.align of 2.59 would move some pixels by one.
        self._align = None if _same_geometry(depth, color) else rs.align(rs.stream.color)

    def _stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # it never started, or its camera is gone
            self._pipeline.stop()
        self._pipeline = self._device = None  # the last reference to its recorder, which then finishes the file

    # Reading

    def _framesets(self) -> Iterator[Any]:
        """Sets of a new colour and a new depth, until the recording ends or the camera goes.

        librealsense repeats the last image of a stream that did not deliver: such a set is left out, and its new image
        missing, as if it had not arrived.
        """
        heard, before, images = time.monotonic(), (None, None), [0, 0]
        while True:
            try:
                arrived, frameset = self._pipeline.try_wait_for_frames(WAIT)
            except RuntimeError as error:
                self.account.problem = f"librealsense stopped: {error}"
                return
            if arrived:
                heard = time.monotonic()
                depth, color = frameset.get_depth_frame(), frameset.get_color_frame()
                numbers = (depth.get_frame_number(), color.get_frame_number()) if depth and color else before
                fresh = [new != old for new, old in zip(numbers, before, strict=True)]
                images = [count + new for count, new in zip(images, fresh, strict=True)]
                if all(fresh):
                    yield frameset
                    before = numbers
                del frameset, depth, color  # librealsense has only so many buffers
            elif self._ended(time.monotonic() - heard):
                if not self.live:
                    self._check_end(*images)
                return

    def _check_end(self, depth: int, color: int) -> None:
        """Where a recording is damaged, librealsense stops without a word. Of two rates, one stream may stay behind."""
        recorded = [self._recorded["Depth_0"], self._recorded["Color_0"]]
        missing = min(there - seen for there, seen in zip(recorded, (depth, color), strict=True))
        if missing > TAIL:
            self.account.notes.append(
                f"{Path(self.account.source).name}: librealsense stopped after {depth} of {recorded[0]} images of "
                f"depth and {color} of {recorded[1]} of colour; the file is damaged there"
            )

    def _ended(self, silence: float) -> bool:
        rs, account = self._rs, self.account
        if not self.live:
            return self._device.as_playback().current_status() == rs.playback_status.stopped
        try:
            listed = [device.get_info(rs.camera_info.serial_number) for device in self._context.query_devices()]
        except RuntimeError:  # it goes while it is asked
            listed = []
        if account.serial not in listed:
            account.problem = "the camera was unplugged, or lost its power"
        elif silence > SILENCE:
            account.problem = f"the camera sent nothing for {SILENCE:.0f} seconds; is it still connected, and to USB 3?"
        return account.problem is not None

    def _read(self, frameset: Any, start: float) -> SensorFrame:
        rs, settings = self._rs, self.settings
        color, confidence = frameset.get_color_frame(), frameset.first_or_default(rs.stream.confidence)
        rgb = _rgb(rs, color)
        captured = time.perf_counter()
        graded = np.array(confidence.get_data()) if confidence else None
        self._hide(np.asanyarray(frameset.get_depth_frame().get_data()), graded)
        aligned = self._align.process(frameset) if self._align else frameset
        depth = np.asanyarray(aligned.get_depth_frame().get_data()) * np.float32(self.account.unit)
        depth[(depth < settings.min_depth) | (depth > settings.max_depth)] = 0
        intrinsics = color.profile.as_video_stream_profile().intrinsics
        return SensorFrame(
            color.get_frame_number(),
            color.get_timestamp() / 1000,
            rgb,
            depth,
            np.array([[intrinsics.fx, 0, intrinsics.ppx], [0, intrinsics.fy, intrinsics.ppy], [0, 0, 1]]),
            self.account.unit,
            graded,
            capture_ms=1000 * (captured - start),
            align_ms=1000 * (time.perf_counter() - captured),
        )

    def _hide(self, counts: np.ndarray, confidence: np.ndarray | None) -> None:
        """Zeroes, in librealsense's own buffer and so before alignment, the depth that the settings distrust."""
        if self.settings.drop_edges:
            counts[depth_edges(torch.from_numpy(counts.astype(np.float32))[None])[0][0].numpy()] = 0
        if self.settings.confidence and confidence is not None:
            counts[(confidence >> 4) < self.settings.confidence] = 0  # librealsense keeps its 4 bits in the upper half


def check_record(path: Path) -> None:
    """MdeError where librealsense would write over a file, into no folder, or in a format that it does not write."""
    written = ".bag" if realsense_version() < WRITES_DB3 else ".db3"
    if path.suffix != written:
        raise MdeError(f"record={path}: this librealsense writes {written}; give that name, or a folder")
    if path.exists():
        raise MdeError(f"record={path}: exists already; give a new name")
    path.parent.mkdir(parents=True, exist_ok=True)


def set_preset(rs: Any, sensor: Any, preset: str) -> None:
    """Chooses a depth sensor's visual preset by its name or how that begins: no_ambient is No Ambient Light.

    MdeError for one that it does not have.
    """
    known = {}
    if sensor.supports(rs.option.visual_preset):
        limits = sensor.get_option_range(rs.option.visual_preset)
        for value in range(int(limits.min), int(limits.max) + 1):
            text = sensor.get_option_value_description(rs.option.visual_preset, value)
            known[str(text).lower().replace(" ", "_")] = value
    meant = [preset] if preset in known else [name for name in known if name.startswith(preset)]
    if len(meant) != 1:
        raise MdeError(f"data.preset={preset}: the camera does not have it; choose of {', '.join(known) or 'none'}")
    sensor.set_option(rs.option.visual_preset, known[meant[0]])


def _is_camera(device: Any) -> bool:
    """Whether it has a depth sensor: a tracking camera has none."""
    return any(sensor.is_depth_sensor() for sensor in device.query_sensors())


def _check_streams(rs: Any, device: Any, path: Path) -> None:
    kinds = {profile.stream_type() for sensor in device.query_sensors() for profile in sensor.get_stream_profiles()}
    for kind, name in ((rs.stream.depth, "depth"), (rs.stream.color, "colour")):
        if kind not in kinds:
            raise MdeError(f"{path}: holds no {name}; record both streams")


def _same_geometry(depth: Any, color: Any) -> bool:
    one, other, between = depth.intrinsics, color.intrinsics, depth.get_extrinsics_to(color)
    values = ("width", "height", "fx", "fy", "ppx", "ppy", "model", "coeffs")
    moved = any(between.translation) or list(between.rotation) != [1, 0, 0, 0, 1, 0, 0, 0, 1]
    return not moved and all(getattr(one, name) == getattr(other, name) for name in values)


def _rgb(rs: Any, frame: Any) -> np.ndarray:
    """A colour frame as uint8 (H, W, 3), a copy. MdeError for a format that is not handled."""
    kind = frame.profile.format()
    if kind == rs.format.yuyv:
        frame = rs.yuy_decoder().process(frame)
        kind = rs.format.rgb8
    pixels = np.asanyarray(frame.get_data())
    if kind in (rs.format.rgb8, rs.format.rgba8):
        return np.array(pixels[..., :3], order="C")
    if kind in (rs.format.bgr8, rs.format.bgra8):
        return np.array(pixels[..., 2::-1], order="C")
    raise MdeError(f"colour is recorded as {kind}; record it as rgb8")
