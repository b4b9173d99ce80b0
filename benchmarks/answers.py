"""What networks' files answer of images, for benchmarks/arm.py to compare; needs numpy and the files' engines alone.

    python -m benchmarks.answers IMAGES.npz ANSWERS.npz weights/midas_small_tenth_int8.onnx ...

IMAGES holds arrays uint8 (H, W, 3). ANSWERS gets, for each file and image, `<file>:<image>:taken`, the image as the
file takes it, and `<file>:<image>`, float32 (height, width), its inverse depth of that.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mde.engines import open_engine
from mde.jetson.depth import prepare
from mde.jetson.runner import load_description

ENGINES = {".onnx": "onnxruntime", ".tflite": "litert", ".xml": "openvino"}


def answers(images: Mapping[str, np.ndarray], paths: Sequence[Path]) -> dict[str, np.ndarray]:
    """As ANSWERS above, computed on one thread: then the processor alone decides the order of sums."""
    found: dict[str, np.ndarray] = {}
    for path in paths:
        about, run = load_description(str(path)), open_engine(ENGINES[path.suffix], path, 1)
        for name, rgb in images.items():
            taken = prepare(rgb, about)
            found |= {f"{path.name}:{name}:taken": taken, f"{path.name}:{name}": run(taken)[0, 0]}
    return found


def main() -> None:
    images, target, *paths = map(Path, sys.argv[1:])
    np.savez(target, **answers(np.load(images), paths))


if __name__ == "__main__":
    main()
