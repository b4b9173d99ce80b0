"""OpenVINO's intermediate representation (IR)."""

import shutil
import tempfile
from pathlib import Path

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.openvino_core import openvino


def export_openvino(onnx_path: Path, path: Path, float16: bool = False) -> None:
    """Converts an ONNX file, in FP32 or quantized, to `path` (.xml) and its weights beside it (.bin). Names and shapes
    stay.

    float16  weights are stored in half precision: half the file. What is computed in is the device's choice when the
             file is opened: a CPU computes in FP32.

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
        openvino.save_model(model, f"{folder}/model.xml", compress_to_fp16=float16)
        for suffix in (".bin", ".xml"):
            with open(f"{folder}/model{suffix}", "rb") as source, atomic_file(path.with_suffix(suffix)) as file:
                shutil.copyfileobj(source, file)
