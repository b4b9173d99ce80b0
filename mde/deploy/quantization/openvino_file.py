"""OpenVINO's IR in INT8 and float16."""

import contextlib
import io
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mde.atomic_file import atomic_file
from mde.deploy.quantization.calibration import check_calibration
from mde.deploy.quantization.layer_names import convolutions_of, is_onnx_layer
from mde.errors import MdeError
from mde.openvino_core import core, openvino


def quantize_openvino(source: Path, path: Path, calibration: Sequence[np.ndarray], exclude: Sequence[str] = ()) -> None:
    """Writes the FP32 graph `source` (.xml or .onnx) to `path` (.xml, weights beside it in .bin) in static INT8.

    calibration  arrays as the graph takes them
    exclude      layers of the network (layer_names) that stay float

    MdeError for calibration frames that are no good, an unknown layer, or a missing NNCF.
    """
    nncf = _import_nncf()
    model = _read(source)
    image = model.inputs[0]
    check_calibration(calibration, tuple(image.shape), image.element_type.to_dtype())
    names = [node.get_friendly_name() for node in model.get_ops() if "Convolution" in node.get_type_name()]
    excluded = convolutions_of(exclude, names, is_onnx_layer, source)
    with _quiet():
        quantized = nncf.quantize(
            model,
            nncf.Dataset(list(calibration)),
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(names=excluded),
            # By itself NNCF takes the mean of the frames' extremes as the range, which clips: twice the error here.
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
            ),
        )
    _save(quantized, path, float16=False)


def half_openvino(source: Path, path: Path) -> None:
    """Writes the FP32 graph `source` (.xml or .onnx) to `path` (.xml) with weights in float16: half the file. What
    precision is computed in is the device's choice when the file is opened: a CPU computes in FP32.
    """
    _save(_read(source), path, float16=True)


def _import_nncf() -> Any:
    try:
        with _quiet():
            import nncf
    except ImportError as error:
        raise MdeError("INT8 for OpenVINO needs NNCF: pip install -e '.[openvino]'") from error
    return nncf


def _read(source: Path) -> Any:
    try:
        return core().read_model(source)
    except Exception as error:  # the reader has no error class of its own
        reason = str(error).strip().partition("\n")[0]
        raise MdeError(f"{source}: OpenVINO cannot read it ({reason}); export the network again") from error


def _save(model: Any, path: Path, float16: bool) -> None:
    if path.suffix != ".xml":
        raise MdeError(f"{path}: OpenVINO finds the weights by the name; let it end in .xml")
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(model, f"{folder}/model.xml", compress_to_fp16=float16)
        for suffix in (".bin", ".xml"):
            with open(f"{folder}/model{suffix}", "rb") as file, atomic_file(path.with_suffix(suffix)) as out:
                shutil.copyfileobj(file, out)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without NNCF's log and its progress bars, which have no switch but write to standard output."""
    loggers = [logging.getLogger(name) for name in ("nncf", "torch.utils.cpp_extension")]  # which looks for CUDA
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
