"""The ROS 2 example against stand-ins for ROS's modules, which no package index has."""

import array
import importlib.util
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mde.engines.description import Calibration, Description
from mde.engines.runtime import Runtime
from tests.conftest import ROOT


class FakeNode:
    def __init__(self, name):
        self.sent, self.topics, self.errors, self.qos = [], {}, [], {}

    def create_publisher(self, kind, topic, qos):
        self.topic, self.qos["published"] = topic, qos
        return SimpleNamespace(publish=self.sent.append)

    def create_subscription(self, kind, topic, callback, qos):
        self.topics[topic], self.qos["subscribed"] = callback, qos

    def get_logger(self):
        return SimpleNamespace(error=lambda text, **_: self.errors.append(text))


@pytest.fixture
def example(monkeypatch):
    modules = {
        name: ModuleType(name)
        for name in ("rclpy", "rclpy.node", "rclpy.qos", "rclpy.utilities", "sensor_msgs", "sensor_msgs.msg")
    }
    modules["rclpy"].init, modules["rclpy"].utilities = lambda args: None, modules["rclpy.utilities"]
    modules["rclpy.utilities"].remove_ros_args = lambda args: args[: args.index("--ros-args")]
    modules["rclpy.node"].Node = FakeNode
    modules["rclpy.qos"].QoSProfile = SimpleNamespace
    modules["rclpy.qos"].ReliabilityPolicy = SimpleNamespace(BEST_EFFORT="best effort")
    modules["sensor_msgs.msg"].Image = SimpleNamespace
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("ros2_depth", ROOT / "docs/examples/ros2_depth.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def message(rgb, encoding, padding):
    pixels = rgb if encoding == "rgb8" else rgb[:, :, ::-1]
    rows = np.pad(pixels.reshape(len(rgb), -1), ((0, 0), (0, padding)), constant_values=255)
    height, width = rgb.shape[:2]
    return SimpleNamespace(
        header="now", height=height, width=width, step=rows.shape[1], encoding=encoding, data=rows.tobytes()
    )


def runtime(calibration=None):
    description = Description("midas_small", "onnxruntime", "fp32", (32, 32), calibration=calibration)
    answer = np.linspace(1, 2, 32 * 32, dtype=np.float32).reshape(1, 1, 32, 32)
    return Runtime(ROOT / "model.onnx", description, lambda image: answer * image.mean())


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8"])
def test_every_image_is_answered_with_the_runtimes_inverse_depth(example, encoding):
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    node = example.DepthNode(runtime())
    assert node.topic == "inverse_depth"
    node.topics["image"](message(rgb, encoding, padding=6))
    (sent,) = node.sent
    assert (sent.header, sent.encoding, sent.height, sent.width, sent.step) == ("now", "32FC1", 20, 30, 120)
    assert isinstance(sent.data, array.array)  # which ROS takes without looking at each byte
    assert sent.data.typecode == "B"
    depth = np.frombuffer(sent.data, np.float32).reshape(20, 30)
    np.testing.assert_array_equal(depth, runtime().predict(rgb))


def test_a_calibrated_network_publishes_metres(example):
    calibrated = runtime(Calibration(scale=0.001, shift=0.02, cap=10.0))
    node = example.DepthNode(calibrated)
    assert node.topic == "depth"
    rgb = np.full((20, 30, 3), 90, np.uint8)
    node.topics["image"](message(rgb, "rgb8", padding=0))
    np.testing.assert_array_equal(np.frombuffer(node.sent[0].data, np.float32).reshape(20, 30), calibrated.depth(rgb))


def test_another_encoding_is_named_and_not_guessed(example):
    node = example.DepthNode(runtime())
    node.on_image(message(np.zeros((4, 4, 3), np.uint8), "rgb8", 0).__class__(encoding="mono16"))
    assert node.sent == []
    assert "mono16" in node.errors[0]


def test_no_image_waits_but_the_newest_and_every_subscriber_is_served(example):
    node = example.DepthNode(runtime())
    assert (node.qos["subscribed"].depth, node.qos["subscribed"].reliability) == (1, "best effort")
    assert node.qos["published"] == 1  # a depth: the rest as ROS has it, which is reliable


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "usage: python ros2_depth.py MODEL"),
        (["a.onnx", "b.onnx"], "usage: python ros2_depth.py MODEL"),
        (["missing.onnx"], "error: missing.onnx: no such file"),
    ],
)
def test_a_mistaken_call_is_one_line(example, monkeypatch, arguments, line):
    monkeypatch.setattr(sys, "argv", ["ros2_depth.py", *arguments, "--ros-args", "-r", "image:=/camera"])
    with pytest.raises(SystemExit) as caught:
        example.main()
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)
