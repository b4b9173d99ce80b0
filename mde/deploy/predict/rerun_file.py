"""A recording for the viewer rerun: image, depth and 3-D points."""

import math
import threading
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image

from mde.deploy.predict.results import Prediction
from mde.engines.description import Calibration
from mde.errors import MdeError
from mde.geometry import unproject
from mde.refused import ELSEWHERE, FREE
from mde.report.pictures import shrunk

GRID = 256  # points along the longer side: about what the network itself resolves
FIELD_OF_VIEW = 65.0  # degrees along the longer side, assumed: a telephone's main camera
FARTHEST = 10.0  # times the nearest, assumed where nothing was calibrated
# Seconds between recorded frames of a video, whose points take most of a megabyte; a fraction, as its times are: in
# floats 0.6 comes before 0.4 + 0.2.
INTERVAL = Fraction(1, 5)
PATIENCE = 60.0  # seconds, for the last frames to be written


def viewer_installed() -> bool:
    return find_spec("rerun") is not None


class Recording:
    """depth.rrd; a video's frames at most every INTERVAL seconds, written as they come."""

    def __init__(self, path: Path, calibration: Calibration | None):
        self.path, self.calibration = path, calibration
        self._last, self.frames = -INTERVAL, 0

    def __enter__(self) -> Self:
        import rerun

        self._rerun: Any = rerun
        blueprint = self._rerun.blueprint
        self._stream = self._rerun.RecordingStream("mde")
        try:
            self._stream.save(self.path)
        except RuntimeError as error:
            raise self._refused(error) from error
        self._stream.send_recording_name(self.label)
        self._stream.log("/", self._rerun.ViewCoordinates.RDF, static=True)
        scene = blueprint.Spatial3DView(name=self.label, contents=["$origin/**", "- /camera/depth"])
        image = blueprint.Spatial2DView(origin="/camera/image", name="image")
        depth = blueprint.Spatial2DView(origin="/camera/depth", name="depth, bright is far")
        beside = blueprint.Vertical(image, depth)
        self._stream.send_blueprint(blueprint.Horizontal(scene, beside, column_shares=[2, 1]))
        return self

    def __exit__(self, *error: object) -> None:
        """MdeError where rerun's own thread could not write, unless another error is on its way."""
        try:
            self._stream.flush(timeout_sec=1 if any(error) else PATIENCE)
        except (RuntimeError, ValueError, OSError) as reason:
            # That thread has ended, or waits for ever: on a full disk it does either. So would whoever disconnects.
            self._rerun.unregister_shutdown()
            threading.Thread(target=self._stream.disconnect, daemon=True).start()
            if not any(error):
                raise self._refused(reason) from reason
        else:
            self._stream.disconnect()

    def _refused(self, reason: Exception) -> MdeError:
        return MdeError(f"{self.path}: not written ({str(reason).splitlines()[0]}); {FREE} or {ELSEWHERE}")

    @property
    def label(self) -> str:
        """What the distances are."""
        if self.calibration is not None:
            return f"metres; a view of {FIELD_OF_VIEW:.0f} degrees is assumed"
        return f"no metres: depth 1 to {FARTHEST:.0f} and a view of {FIELD_OF_VIEW:.0f} degrees are assumed"

    def add(self, prediction: Prediction) -> None:
        rerun, stream, frame = self._rerun, self._stream, prediction.frame
        if frame.time is not None and frame.time < self._last + INTERVAL:
            return
        if frame.time is None:
            stream.set_time("picture", sequence=self.frames)
        else:
            self._last = frame.time
            stream.set_time("time", duration=float(frame.time))
        self.frames += 1
        image, depth = self.grid(prediction)
        points, focal = unprojected(depth)
        height, width = depth.shape
        stream.log("camera", rerun.Pinhole(focal_length=focal, width=width, height=height, image_plane_distance=0.5))
        stream.log("camera/image", rerun.Image(image).compress(90))
        stream.log("camera/depth", rerun.DepthImage(depth, meter=1.0, colormap="inferno"))
        radii = 0.6 * points[:, 2] / focal  # of a pixel, so that a surface has no holes
        stream.log("points", rerun.Points3D(points, colors=image.reshape(-1, 3), radii=radii))

    def grid(self, prediction: Prediction) -> tuple[np.ndarray, np.ndarray]:
        """uint8 (h, w, 3) and depth, float32 (h, w), on the grid of points."""
        rgb = prediction.frame.rgb
        size = shrunk((rgb.shape[1], rgb.shape[0]), GRID)
        image = np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.BOX))
        inverse = np.asarray(Image.fromarray(prediction.inverse_depth).resize(size, Image.Resampling.BOX))
        if self.calibration is not None:
            return image, self.calibration.metres(inverse)
        near = np.clip((inverse - prediction.low) / ((prediction.high - prediction.low) or 1), 0, 1)
        return image, 1 / (near + (1 - near) / np.float32(FARTHEST))


def unprojected(depth: np.ndarray) -> tuple[np.ndarray, float]:
    """Points (h w, 3), x right, y down, z forward, of depth (h, w) along the axis, and the focal length in pixels."""
    height, width = depth.shape
    focal = max(height, width) / 2 / math.tan(math.radians(FIELD_OF_VIEW) / 2)
    intrinsics = torch.tensor([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    points = unproject(torch.from_numpy(depth)[None, None], intrinsics[None])
    return points[0].permute(1, 2, 0).reshape(-1, 3).numpy(), focal
