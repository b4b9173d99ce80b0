"""One interface to every deployed file."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mde.data.sample import Sample
from mde.data.transforms import resize_image
from mde.engines import ENGINES, OpenFile, Run, open_engine
from mde.engines.description import Description, read_description
from mde.engines.pytorch import PYTORCH
from mde.errors import MdeError
from mde.evaluation.quality import Predictor
from mde.metrics import resize_prediction
from mde.models import read_metadata, trained_size


class Runtime:
    """A network in the engine that runs it: images of any size in, inverse depth at their size out.

    name         what it is and runs in, for tables
    description  what its file says
    """

    def __init__(self, path: Path, description: Description, engine: Run):
        self.name = f"{path.name} in {description.engine}, {description.precision}"
        self.description = description
        self._engine: Run | None = engine

    def preprocess(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> the image as the graph takes it, stretched to its input, antialiased.

        MdeError for another shape or type of image.
        """
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or not rgb.size:
            raise MdeError(
                f"an image of {rgb.dtype} {rgb.shape}: uint8 (height, width, 3) is wanted; drop an alpha channel, "
                "scale 16 bits down to 8, and give RGB"
            )
        planes = torch.from_numpy(np.array(rgb, order="C")).permute(2, 0, 1)  # a copy: camera frames are read-only
        stretched = resize_image(planes, self.description.input) * 255
        # Rounded also where the graph takes floats: every engine then sees the same image.
        whole = stretched.round().to(torch.uint8)[None].numpy()
        laid_out = whole.transpose(0, 2, 3, 1) if self.description.layout == "nhwc" else whole
        return np.ascontiguousarray(laid_out, dtype=self.description.dtype)

    def infer(self, image: np.ndarray) -> np.ndarray:
        """The engine alone: what `preprocess` returned -> float32 (1, 1, h, w) at the network's own size."""
        if self._engine is None:
            raise MdeError(f"{self.name}: closed; load it again")
        output = self._engine(image)
        return output if self.description.output == "inverse_depth" else _inverse(output)

    def postprocess(self, output: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """float32 (1, 1, h, w) -> float32 (H, W) at `size`."""
        return resize_prediction(torch.from_numpy(np.asarray(output, dtype=np.float32)), size)[0, 0].numpy()

    def predict(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> float32 (H, W), inverse depth up to scale and shift. MdeError: see `preprocess`."""
        return self.postprocess(self.infer(self.preprocess(rgb)), (rgb.shape[0], rgb.shape[1]))

    def depth(self, rgb: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) -> float32 (H, W), metres. MdeError when the file holds no calibration."""
        calibration = self.description.calibration
        if calibration is None:
            raise MdeError(f"{self.name}: predicts no metres, its description holds no calibration (scale, shift, cap)")
        return calibration.metres(self.predict(rgb))

    def close(self) -> None:
        """Lets the engine go; using the runtime afterwards is an error."""
        self._engine = None


def load_runtime(path: str | os.PathLike[str], *, threads: int | None = None, engine: str | None = None) -> Runtime:
    """The network in a .safetensors, .onnx, .xml, .tflite or .engine file, or an official .pt, ready to predict.

    threads  None: as many as the machine has cores
    engine   None: the one that the file is for; else another that reads such files

    MdeError for an unknown kind of file, a missing or foreign description, a network that takes or gives something else
    than its description says, and what `open_engine` refuses.
    """
    path, threads = Path(path), threads or os.cpu_count() or 1
    if not any(path.suffix in engine.reads for engine in ENGINES.values()):
        known = ", ".join(sorted({suffix for engine in ENGINES.values() for suffix in engine.reads}))
        raise MdeError(f"{path}: not a network that can be run; choose one of {known}")
    if not path.is_file():
        raise MdeError(f"{path}: no such file; deploy the network first")
    own = path.suffix in PYTORCH.reads
    description = _own_description(path) if own else read_description(path)
    if engine is not None:
        description = replace(description, engine=engine)
    opened = open_engine(description.engine, path, threads)
    if not own:
        check_fits(opened, description)
    return Runtime(path, description, opened)


def check_fits(engine: OpenFile, description: Description) -> None:
    """MdeError unless the file takes the image that its description says, alone, and makes one map of it: the first
    run is here, on a black image.
    """
    height, width = description.input
    shape = (1, height, width, 3) if description.layout == "nhwc" else (1, 3, height, width)
    described = f"its description says {' x '.join(map(str, shape))} of {description.dtype}"
    remedy = "describe it anew by mde.deploy.description.write_description, or export the network again"
    inputs = engine.inputs
    if inputs is not None and not (len(inputs) == 1 and inputs[0].takes(shape, description.dtype)):
        taken = " and ".join(map(str, inputs)) or "nothing"
        raise MdeError(f"{engine.path}: takes {taken}, {described}; {remedy}")
    output = engine(np.zeros(shape, description.dtype))
    aspect = output.shape[-1] * height / max(1, output.shape[-2] * width) if output.shape[:-2] == (1, 1) else 0
    if not 0.8 < aspect < 1.25:  # a network may round its map's sides
        raise MdeError(f"{engine.path}: gives {list(output.shape)}, no map of inverse depth, 1 x 1 x H x W; {remedy}")


def runtime_predictor(runtime: Runtime) -> Predictor:
    """The runtime as `evaluate` takes it."""

    def predict(sample: Sample) -> torch.Tensor:
        image = runtime.preprocess(sample.image.permute(1, 2, 0).numpy())
        return torch.from_numpy(np.asarray(runtime.infer(image), dtype=np.float32))

    return predict


def _inverse(depth: np.ndarray) -> np.ndarray:
    """1 / depth; where depth is 0, that of the least depth above."""
    least = depth[depth > 0].min(initial=np.inf)
    return 1 / np.maximum(depth, least)


def _own_description(path: Path) -> Description:
    about = read_metadata(path)
    return Description(about["network"], PYTORCH.name, "fp32", trained_size(path), licence=about.get("licence"))
