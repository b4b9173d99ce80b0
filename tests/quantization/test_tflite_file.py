import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from mde.engines.litert import export_tflite
from mde.errors import MdeError
from mde.export.layer_names import is_tflite_layer
from mde.quantization.tflite_file import CONVOLUTIONS, half_tflite, quantize_tflite
from tests.quantization.small_network import SIZE, calibration_frames, dead_graph, difference, small_graph

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
pytest.importorskip("ai_edge_quantizer")
pytest.importorskip("litert_torch")

EXCLUDED = ["refine.conv1", "block.0"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tflite")
    export_tflite(small_graph(), folder / "float.tflite", SIZE)
    quantize_tflite(folder / "float.tflite", folder / "int8.tflite", calibration_frames())
    quantize_tflite(folder / "float.tflite", folder / "partly.tflite", calibration_frames(), exclude=EXCLUDED)
    half_tflite(folder / "float.tflite", folder / "half.tflite")
    return folder


def opened(path):
    engine = interpreter.Interpreter(str(path), num_threads=1)
    engine.allocate_tensors()
    return engine


@pytest.mark.parametrize(("name", "allowed"), [("int8", 0.02), ("partly", 0.02), ("half", 0.002)])
def test_quantized_output_is_near_and_not_equal_to_the_float_output(files, name, allowed):
    engine = opened(files / f"{name}.tflite")
    image, output = engine.get_input_details()[0], engine.get_output_details()[0]
    assert (image["dtype"], output["dtype"]) == (np.uint8, np.float32)
    for frame in calibration_frames(2):
        expected = small_graph()(torch.from_numpy(frame)).numpy()
        engine.set_tensor(image["index"], frame)
        engine.invoke()
        assert 0 < difference(engine.get_tensor(output["index"]), expected) < allowed


def test_with_every_layer_in_float_nothing_is_rounded(files, tmp_path):
    names = [name for name, module in small_graph().network.named_modules() if isinstance(module, nn.Conv2d)]
    quantize_tflite(files / "float.tflite", tmp_path / "all.tflite", calibration_frames(), exclude=names)
    frame, outputs = calibration_frames(1)[0], []
    for path in (tmp_path / "all.tflite", files / "float.tflite"):
        engine = opened(path)
        engine.set_tensor(engine.get_input_details()[0]["index"], frame)
        engine.invoke()
        outputs.append(engine.get_tensor(engine.get_output_details()[0]["index"]))
    np.testing.assert_allclose(*outputs, rtol=1e-5)


def integer_layers(path):
    """The layers whose convolution has an INT8 output in the file."""
    engine = opened(path)
    tensors = {tensor["index"]: tensor for tensor in engine.get_tensor_details()}
    outputs = [
        tensors[operator["outputs"][0]] for operator in engine._get_ops_details() if operator["op_name"] in CONVOLUTIONS
    ]
    integer = [output["name"] for output in outputs if output["dtype"] == np.int8]
    layers = [name for name, module in small_graph().network.named_modules() if isinstance(module, nn.Conv2d)]
    return {layer for layer in layers if any(is_tflite_layer(name, layer) for name in integer)}


def test_excluded_convolutions_are_float(files):
    every = {name for name, module in small_graph().network.named_modules() if isinstance(module, nn.Conv2d)}
    assert integer_layers(files / "float.tflite") == set()
    assert integer_layers(files / "int8.tflite") == every
    assert integer_layers(files / "partly.tflite") == every - set(EXCLUDED)


def test_one_delegate_runs_the_whole_graph(files):
    """XNNPACK takes everything; what it leaves out runs in slow kernels between its parts."""
    operators = [operator["op_name"] for operator in opened(files / "int8.tflite")._get_ops_details()]
    assert operators.count("DELEGATE") == 1


@pytest.mark.parametrize("whole_layer", [False, True])
def test_what_is_dead_after_pruning_opens_and_keeps_its_bias(tmp_path, whole_layer):
    """LiteRT ends the process for steps that are too fine."""
    graph = dead_graph()
    if whole_layer:  # zeros go into the next one
        graph.network.block[2].weight.zero_()
        graph.network.block[2].bias.fill_(-0.1)
    export_tflite(graph, tmp_path / "float.tflite", SIZE)
    quantize_tflite(tmp_path / "float.tflite", tmp_path / "int8.tflite", calibration_frames())
    load = (
        f"import ai_edge_litert.interpreter as i; i.Interpreter({str(tmp_path / 'int8.tflite')!r}).allocate_tensors()"
    )
    subprocess.run([sys.executable, "-c", load], check=True)  # a death there would be one of all tests here
    engine, frame = opened(tmp_path / "int8.tflite"), calibration_frames(1)[0]
    engine.set_tensor(engine.get_input_details()[0]["index"], frame)
    engine.invoke()
    output = engine.get_tensor(engine.get_output_details()[0]["index"])
    assert 0 < difference(output, graph(torch.from_numpy(frame)).numpy()) < 0.02


def test_what_lives_is_quantized_as_calibrated(files, tmp_path, monkeypatch):
    as_it_is = "mde.quantization.tflite_file._with_safe_steps"
    monkeypatch.setattr(as_it_is, lambda edge, source, ranges: source.read_bytes())
    quantize_tflite(files / "float.tflite", tmp_path / "int8.tflite", calibration_frames())
    assert (tmp_path / "int8.tflite").read_bytes() == (files / "int8.tflite").read_bytes()


def test_weights_shrink(files):
    sizes = {name: (files / f"{name}.tflite").stat().st_size for name in ("float", "half")}
    assert sizes["half"] < sizes["float"]


def test_what_cannot_be_quantized_is_refused(files, tmp_path, monkeypatch):
    source, out = files / "float.tflite", tmp_path / "out.tflite"
    with pytest.raises(MdeError, match=r"0 convolutions are called head\.conv9"):
        quantize_tflite(source, out, calibration_frames(), exclude=["head.conv9"])
    with pytest.raises(MdeError, match="no calibration frames"):
        quantize_tflite(source, out, [])
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(source.read_bytes()[:100])
    with pytest.raises(MdeError, match=r"broken\.tflite: LiteRT cannot read it"):
        quantize_tflite(broken, out, calibration_frames())
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(MdeError, match=r"pip install -e '\.\[tflite\]'"):
        half_tflite(source, out)
    assert not out.exists()
