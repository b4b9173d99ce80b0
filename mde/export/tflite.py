"""TFLite files, for the LiteRT runtime, straight from PyTorch: the detour by ONNX is where such conversions fail."""

import tempfile
from pathlib import Path

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.export.image_graph import ImageGraph
from mde.quiet import quiet


def export_tflite(graph: ImageGraph, path: Path, size: tuple[int, int]) -> None:
    """Writes `graph` to `path` (.tflite), FP32, for one image of `size` (height, width).

    MdeError when litert-torch is not installed or cannot convert the graph.
    """
    with quiet():
        try:
            import litert_torch
        except ImportError as error:
            raise MdeError("target=litert: litert-torch is not installed; pip install -e '.[tflite]'") from error
        try:
            converted = litert_torch.convert(graph.eval(), (graph.example(size),))
            with tempfile.TemporaryDirectory() as folder:
                converted.export(f"{folder}/model.tflite")
                content = Path(folder, "model.tflite").read_bytes()
        except Exception as error:  # the converter runs the network's own code, which can fail in any way
            reason = str(error).strip().partition("\n")[0]
            raise MdeError(f"{path}: cannot be converted to TFLite at {size[0]} x {size[1]} ({reason})") from error
    with atomic_file(path) as file:
        file.write(content)
