"""OpenVINO's intermediate representation (IR)."""

import shutil
import tempfile
from pathlib import Path

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.openvino_core import openvino


def export_openvino(onnx_path: Path, path: Path) -> None:
    """Converts an ONNX file to `path` (.xml) and its weights, FP32, beside it (.bin). Names and shapes stay.

    MdeError when `path` does not end in .xml or the ONNX file cannot be converted.
    """
    if path.suffix != ".xml":
        raise MdeError(f"{path}: OpenVINO finds the weights by the name; let it end in .xml")
    try:
        model = openvino.convert_model(str(onnx_path))
    except Exception as error:  # the converter has no error class of its own
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(f"{onnx_path}: OpenVINO cannot convert it ({reason}); export it again") from error
    with tempfile.TemporaryDirectory() as folder:
        # Without this flag the weights are rounded to float16.
        openvino.save_model(model, f"{folder}/model.xml", compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            with open(f"{folder}/model{suffix}", "rb") as source, atomic_file(path.with_suffix(suffix)) as file:
                shutil.copyfileobj(source, file)
