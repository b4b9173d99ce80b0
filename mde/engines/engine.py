"""What an engine is: it reads and writes networks' files, and runs them.

Whatever a library raises, when it opens a file or when it runs it, becomes one line that names the file. Each library
is imported by what needs it: a process that runs one engine, whose memory `mde.speed.memory` measures, holds no other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mde.errors import MdeError

if TYPE_CHECKING:
    from mde.engines.request import Request
    from mde.export import ImageGraph

Run = Callable[[np.ndarray], np.ndarray]  # one image -> inverse depth
PROFILER_WARMUP = 3


@dataclass(frozen=True)
class Input:
    """shape  a side is None where any length will do
    dtype  as NumPy calls it, or the engine where NumPy has none
    """

    shape: tuple[int | None, ...]
    dtype: str

    def takes(self, shape: tuple[int, ...], dtype: str) -> bool:
        """Whether it takes an image of this shape and type."""
        sides = zip(self.shape, shape, strict=False)
        return dtype == self.dtype and len(shape) == len(self.shape) and all(a in (None, b) for a, b in sides)

    def __str__(self) -> str:
        return f"[{','.join('?' if side is None else str(side) for side in self.shape)}] of {self.dtype}"


@dataclass(frozen=True)
class OpenFile:
    """An opened file.

    name    of what runs it
    inputs  of the file; None in PyTorch, which finds out when it runs
    """

    path: Path
    name: str
    run: Run
    inputs: list[Input] | None = None

    def __call__(self, image: np.ndarray) -> np.ndarray:
        try:
            output = self.run(image)
        except Exception as error:  # the engines' errors have no class in common
            raise MdeError(
                f"{self.path}: {self.name} cannot run it on {image.dtype} {list(image.shape)} ({_reason(error)}); does "
                "its description say what it takes? Else export the network again"
            ) from error
        return as_map(np.asarray(output, np.float32))


class LayerTime(NamedTuple):
    """name      as the file calls it, of what the engine made of it: it may have fused several
    operator  as the engine calls it; "" where it does not say
    ms        mean of one call of the network
    """

    name: str
    operator: str
    ms: float


Opened = tuple[Run, list[Input] | None]
Writer = Callable[["Request", Path], None]
Profiler = Callable[[Path, np.ndarray, int, int], list[LayerTime]]


@dataclass(frozen=True)
class Engine:
    """One engine. All but the first four says in what it differs from others.

    name           as `target=` calls it
    reads          the suffixes of its files; the first one's it writes
    package        whose version is the engine's
    opener         opens a file on so many threads
    writers        precision -> what writes a file that is computed in it; none: it only reads what another one writes
    profiler       the times of a file's layers, means over so many calls, on so many threads
    no_profile     why there are none
    takes_trained_scales  whether it writes files of networks that were trained for INT8 (quantize=qat)
    describes      whether what it writes is described already
    run_graph      runs a graph that is in no file, on so many threads
    runs_here      whether this machine can run its files
    stand_in       where its file does not run here: opens, on so many threads, the ONNX graph that it is made of
    library        of a file: the library that runs it, and its version
    library_note   what else has to be said of that library
    by_default     the engine that computes FP32 files of this one in what the library chooses by itself
    computes       what FP32 files are computed in, where that is the library's choice
    """

    name: str
    reads: tuple[str, ...]
    package: str
    opener: Callable[[Path, int], Opened]
    writers: Mapping[str, Writer] = field(default_factory=dict)
    profiler: Profiler | None = None
    no_profile: str = ""
    takes_trained_scales: bool = True
    describes: bool = False
    run_graph: Callable[["ImageGraph", int], Run] | None = None
    runs_here: Callable[[], bool] = lambda: True
    stand_in: Callable[[Path, int], OpenFile] | None = None
    library: Callable[[Path], tuple[str, str]] | None = None
    library_note: Callable[[str], str] = lambda library: ""
    by_default: str | None = None
    computes: Callable[[], str] = lambda: "fp32"

    @property
    def suffix(self) -> str:
        return self.reads[0]

    @property
    def version(self) -> str:
        return version(self.package)

    @property
    def installed(self) -> bool:
        return find_spec(self.package.replace("-", "_")) is not None

    def open(self, path: Path, threads: int) -> OpenFile:
        """A function that runs the file on `threads` CPU threads: an image as the file takes it -> float32
        (1, 1, H, W).

        Computes in the file's own precision, where `computes` says nothing else. MdeError for another suffix, a package
        that is not installed, and a file that is missing or that the engine refuses; from the function, for an image
        that it refuses.
        """
        if path.suffix not in self.reads:
            raise MdeError(f"{path}: {self.name} reads {' or '.join(self.reads)}; export the network again")
        if not path.is_file():
            raise MdeError(f"{path}: no such file; export the network first")
        try:
            return OpenFile(path, self.name, *self.opener(path, threads))
        except MdeError:
            raise
        except ImportError as error:
            reason = f"is not installed ({_reason(error)}); pip install {self.package}"
            raise MdeError(f"engine {self.name}: {reason}") from error
        except Exception as error:
            raise MdeError(
                f"{path}: {self.name} cannot open it ({_reason(error)}); export the network again"
            ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def as_map(output: np.ndarray) -> np.ndarray:
    """One map as (1, 1, H, W), wherever its axes of length 1 are: channels first, last, or none. What is no single map
    stays as it is.
    """
    sides = [side for side in output.shape if side != 1]
    return output.reshape(1, 1, *sides) if len(sides) == 2 else output
