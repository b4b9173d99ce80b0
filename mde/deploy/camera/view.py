"""What a person watches while a sensor is looked at: RGB | L515 | prediction | error, with running figures.

In a window, as a video, or as a recording for rerun with both point clouds.
"""

import time
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from PIL import Image, ImageDraw

from mde.deploy.predict.rerun_file import viewer_installed
from mde.deploy.predict.results import ColourRange, Video
from mde.errors import MdeError
from mde.geometry import unproject
from mde.report.pictures import ERROR, colour, shrunk
from mde.sensors.frame import SensorFrame, SensorStream

WINDOW = "window"
TILE = 480  # pixels of a picture's longer side
BAND = 22  # pixels of the line of text
FACTOR = 0.446  # |ln(prediction / truth)| that is fully bright: a factor 1.25 is half, as in the report
SMOOTHING = 0.1  # weight of the newest frame in the running figures
SHOWN = {"delta1": "delta1", "RMSE m": "rmse", "AbsRel": "abs_rel", "network ms": "infer_ms"}  # of a frame's row
POINTS = 160  # points along the longer side of rerun's clouds


class View(Protocol):
    """Shows frames one by one, inside its context."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, frame: SensorFrame, predicted: np.ndarray | None, figures: dict[str, Any]) -> None:
        """predicted: metres, float32 (h, w), at the size of the frame's depth; None where no depth tells its scale.
        figures: the frame's row; empty where no network looks.
        """


def new_view(view: str, stream: SensorStream) -> View:
    """The view of `view=`: window, or a new .mp4 or .rrd file. MdeError for another, or where a package is missing."""
    suffix = Path(view).suffix
    if view == WINDOW:
        return Window(stream.name)
    if suffix == ".mp4":
        return VideoFile(Path(view))
    if suffix == ".rrd":
        return Clouds(Path(view), stream.name)
    raise MdeError(f"view={view}: give {WINDOW}, a video FILE.mp4, or FILE.rrd for rerun")


class Panel:
    """Composes the picture: tiles side by side and a line of running figures below."""

    def __init__(self) -> None:
        self._colours = ColourRange(Fraction(30))
        self._running: dict[str, float] = {}
        self._last: float | None = None
        self._limits = (0.0, 1.0)  # of inverse depth, until some is known

    def __call__(self, frame: SensorFrame, predicted: np.ndarray | None, figures: dict[str, Any]) -> np.ndarray:
        """uint8 (h, w, 3)."""
        known = frame.depth > 0
        truth = np.divide(1, frame.depth, out=np.full_like(frame.depth, np.nan), where=known)
        answer = truth if predicted is None else 1 / predicted
        if (answer > 0).any():
            self._limits = self._colours(answer[answer > 0])
        tiles = [frame.rgb, colour(truth, *self._limits)]
        if figures:
            error = np.where(known, np.abs(np.log(answer * np.where(known, frame.depth, 1))), 0)
            seen = [colour(answer, *self._limits), colour(error, 0, FACTOR, ERROR)]
            tiles += [np.zeros_like(tiles[1])] * 2 if predicted is None else seen
        size = shrunk((frame.rgb.shape[1], frame.rgb.shape[0]), TILE)
        row = np.concatenate([np.asarray(Image.fromarray(tile).resize(size)) for tile in tiles], axis=1)
        band = Image.new("RGB", (row.shape[1], BAND), "black")
        ImageDraw.Draw(band).text((6, 5), self._text(frame.number, figures), fill="white")
        return np.concatenate([row, np.asarray(band)])

    def _text(self, number: int, figures: dict[str, Any]) -> str:
        now = time.perf_counter()
        if self._last is not None:
            self._follow("frames/s", 1 / max(now - self._last, 1e-6))
        self._last = now
        for name, key in SHOWN.items():
            if key in figures:
                self._follow(name, figures[key])
        values = "   ".join(f"{name} {value:.3g}" for name, value in self._running.items())
        network = f" | {figures['candidate']} | error" if figures else ""
        return f"RGB | L515{network}    frame {number}   {values}"

    def _follow(self, name: str, value: float) -> None:
        before = self._running.get(name, value)
        self._running[name] = before + SMOOTHING * (value - before)


class VideoFile:
    """The panel as H.264, each frame at its own time."""

    def __init__(self, path: Path):
        if path.exists():
            raise MdeError(f"view={path}: exists already; give a new name")
        self._video, self._panel = Video(path, Fraction(30)), Panel()
        self._first: float | None = None

    def __enter__(self) -> Self:
        self._video.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._video.__exit__(*error)

    def show(self, frame: SensorFrame, predicted: np.ndarray | None, figures: dict[str, Any]) -> None:
        self._first = frame.time if self._first is None else self._first
        elapsed = Fraction(frame.time - self._first).limit_denominator(100_000)
        self._video.write(self._panel(frame, predicted, figures), elapsed)


class Window:
    """The panel in a window of its own; closing it ends the run as Ctrl-C does."""

    def __init__(self, title: str):
        self._title, self._panel = title, Panel()

    def __enter__(self) -> Self:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise MdeError("view=window: needs tkinter (Debian: python3-tk); or view=FILE.mp4") from error
        try:
            self._root = tkinter.Tk()
        except tkinter.TclError as error:
            raise MdeError(f"view=window: no display here ({error}); view=FILE.mp4 needs none") from error
        self._photo = ImageTk.PhotoImage
        self._root.title(f"mde: {self._title}")
        self._label = tkinter.Label(self._root)
        self._label.pack()
        self._closed = False
        self._root.protocol("WM_DELETE_WINDOW", self._close)
        return self

    def __exit__(self, *error: object) -> None:
        self._root.destroy()

    def show(self, frame: SensorFrame, predicted: np.ndarray | None, figures: dict[str, Any]) -> None:
        self._picture = self._photo(Image.fromarray(self._panel(frame, predicted, figures)))  # Tk keeps no reference
        self._label.configure(image=self._picture)
        self._root.update()
        if self._closed:
            raise KeyboardInterrupt

    def _close(self) -> None:
        self._closed = True


class Clouds:
    """For `rerun FILE.rrd`: the image, and the points that sensor and network see, in the image's colours."""

    def __init__(self, path: Path, name: str):
        if not viewer_installed():
            raise MdeError("view=FILE.rrd: needs rerun; pip install -e '.[viewer]'")
        if path.exists():
            raise MdeError(f"view={path}: exists already; give a new name")
        self.path, self._name = path, name

    def __enter__(self) -> Self:
        import rerun

        self._rerun: Any = rerun
        self._stream = rerun.RecordingStream(f"mde {self._name}")
        self._stream.save(self.path)
        self._stream.log("/", rerun.ViewCoordinates.RDF, static=True)
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.disconnect()  # waits until all is written

    def show(self, frame: SensorFrame, predicted: np.ndarray | None, figures: dict[str, Any]) -> None:
        rerun, stream = self._rerun, self._stream
        stream.set_time("time", duration=frame.time)
        stream.log("image", rerun.Image(frame.rgb).compress(80))
        for name in ("delta1", "rmse", "infer_ms"):
            if name in figures:
                stream.log(name, rerun.Scalars(figures[name]))
        for name, depth in (("L515", frame.depth), ("prediction", predicted)):
            if depth is None:
                continue
            points, colours = cloud(frame, depth)
            stream.log(f"points/{name}", rerun.Points3D(points, colors=colours))


def cloud(frame: SensorFrame, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 3) in metres, x right, y down, z forward, and their colours (N, 3), of every few pixels."""
    if frame.intrinsics is None:
        raise MdeError("view=FILE.rrd: the recording does not say the camera's intrinsics; view=FILE.mp4 needs none")
    height, width = depth.shape
    step = max(1, max(height, width) // POINTS)
    K = torch.from_numpy(frame.intrinsics).float().clone()
    K[0] *= width / frame.rgb.shape[1]
    K[1] *= height / frame.rgb.shape[0]
    points = unproject(torch.from_numpy(depth)[None, None].float(), K[None])[0].permute(1, 2, 0).numpy()
    rgb = np.asarray(Image.fromarray(frame.rgb).resize((width, height)))
    known = depth[::step, ::step] > 0
    return points[::step, ::step][known], rgb[::step, ::step][known]
