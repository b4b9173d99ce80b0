"""What becomes of predictions: pictures, raw files, a video, a sheet for the report."""

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mde.atomic_file import writing
from mde.deploy.predict.source import Frame, require_av
from mde.report.dispensable import dispensable
from mde.report.pictures import beside, contact_sheet, save_picture

TICKS = 90_000  # a second, of a video's times: exact for 24, 25, 30 and 29.97 frames a second
ENOUGH = 65536  # values for a quantile
SETTLING = 1.0  # seconds in which the colours of a video follow a new scene
# Without B-frames, for which fragments of MP4 would delay the first frame. A fragment begins with each group.
ENCODER = {"preset": "veryfast", "bf": "0", "g": "50"}
COMPRESSION = 1  # of PNG files: a third of the time of Pillow's own choice, for a quarter to a half more bytes
SHEET = 12  # pictures in the report, at most


@dataclass(frozen=True)
class Prediction:
    """frame          what was predicted from
    inverse_depth  float32 (H, W), up to scale and shift
    low, high      inverse depths where the colours begin and end
    """

    frame: Frame
    inverse_depth: np.ndarray
    low: float
    high: float

    @cached_property
    def picture(self) -> np.ndarray:
        """Image | inverse depth, uint8 (h, 2 w, 3)."""
        return beside(self.frame.rgb, self.inverse_depth, self.low, self.high)


class ColourRange:
    """The inverse depths between which a frame is coloured: its quantiles 0.02 and 0.98.

    In a video (`rate` frames a second) both follow those of the frames with a time constant of SETTLING seconds, so
    that colours do not flicker with the scale of the single prediction.
    """

    def __init__(self, rate: Fraction | None):
        self._weight = 1.0 if rate is None else 1 - math.exp(-1 / (SETTLING * float(rate)))
        self._range: np.ndarray | None = None

    def __call__(self, inverse_depth: np.ndarray) -> tuple[float, float]:
        step = max(1, inverse_depth.size // ENOUGH)
        own = np.quantile(inverse_depth.ravel()[::step], (0.02, 0.98))
        self._range = own if self._range is None else self._range + self._weight * (own - self._range)
        return float(self._range[0]), float(self._range[1])


class Result(Protocol):
    """Takes predictions one by one; leaving its context finishes what it writes, also after an error."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *error: object) -> None: ...
    def add(self, prediction: Prediction) -> None: ...


class Pictures:
    """depth/<name>.png, the picture to look at, and inverse_depth/<name>.png, 16-bit grey at the image's size.

    A count of 16 bits is (high - low) / 65535 from low, the frame's own extremes, which the PNG holds as texts.
    """

    def __init__(self, run_dir: Path):
        self.looks, self.raw = run_dir / "depth", run_dir / "inverse_depth"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def add(self, prediction: Prediction) -> None:
        name = f"{prediction.frame.name}.png"
        save_picture(Image.fromarray(prediction.picture), self.looks / name, compress_level=COMPRESSION)
        inverse = prediction.inverse_depth
        low, high = float(inverse.min()), float(inverse.max())
        counts = ((inverse - low) / ((high - low) or 1) * 65535).round().astype(np.uint16)
        texts = PngInfo()
        texts.add_text("low", repr(low))
        texts.add_text("high", repr(high))
        save_picture(Image.fromarray(counts), self.raw / name, pnginfo=texts, compress_level=COMPRESSION)


class Video:
    """Image | inverse depth as H.264, each frame shown when the source shows it; one whose time repeats or steps back,
    which no file may hold, right after the one before."""

    def __init__(self, path: Path, rate: Fraction):
        self.path, self.rate = path, rate
        self._stream: Any = None
        self._last = -1  # ticks

    def __enter__(self) -> Self:
        # Fragments while it is written, an ordinary file once it is closed: whatever ends the process, what was
        # written until then plays.
        options = {"movflags": "+hybrid_fragmented", "flush_packets": "1"}
        with writing(self.path):
            self._container = require_av().open(str(self.path), "w", options=options)
        return self

    def __exit__(self, *error: object) -> None:
        with writing(self.path), self._container:
            if self._stream is not None:
                self._container.mux(self._stream.encode(None))

    def add(self, prediction: Prediction) -> None:
        self.write(prediction.picture, prediction.frame.time)

    def write(self, picture: np.ndarray, time: Fraction | None) -> None:
        """A picture uint8 (H, W, 3), the same size each time, shown from `time` on, in seconds."""
        av = require_av()
        # H.264 in 4:2:0 counts pixels in pairs.
        height, width = (side - side % 2 for side in picture.shape[:2])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self.rate, options=ENCODER)
            self._stream.width, self._stream.height, self._stream.pix_fmt = max(width, 2), max(height, 2), "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, TICKS)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(self._stream.width, self._stream.height, "yuv420p")
        self._last = max(round((time or 0) * TICKS), self._last + 1)
        frame.time_base, frame.pts = Fraction(1, TICKS), self._last
        with writing(self.path):
            self._container.mux(self._stream.encode(frame))


class Sheet:
    """A few of the pictures, evenly spread over however many come, as one in the report."""

    def __init__(self, path: Path):
        self.path = path
        self._kept: list[tuple[str, np.ndarray]] = []
        self._seen, self._step = 0, 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._kept:
            with dispensable(self.path.name):
                save_picture(contact_sheet(self._kept), self.path)

    def add(self, prediction: Prediction) -> None:
        if self._seen % self._step == 0:
            self._kept.append((prediction.frame.name, prediction.picture))
        self._seen += 1
        if len(self._kept) > SHEET:
            self._kept, self._step = self._kept[::2], self._step * 2
