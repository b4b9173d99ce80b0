"""A ROS 2 node: colour images in, depth or inverse depth out. Not tried on a robot yet.

    python docs/examples/ros2_depth.py outputs/deploy/.../model.onnx --ros-args -r image:=/camera/color/image_raw

Subscribes to `image` (sensor_msgs/Image, rgb8 or bgr8) and publishes, with the same header, 32FC1 images: `depth` in
metres when the network's description holds a calibration, else `inverse_depth`, known up to scale and shift. A frame
that comes while the network is busy replaces the one that waits: depth of an old image is of no use to a robot.
"""

import array
import sys

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from mde.deploy import Runtime, load_runtime
from mde.errors import MdeError

# Of the images only the newest waits: ROS's own profile for sensors keeps five, and a slow network would always be five
# images late.
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


class DepthNode(Node):
    def __init__(self, runtime: Runtime):
        super().__init__("mde")
        metric = runtime.description.calibration is not None
        self.predict = runtime.depth if metric else runtime.predict
        # A depth alone means reliable: subscribers that ask for that, as RViz does, get nothing of best effort.
        self.publisher = self.create_publisher(Image, "depth" if metric else "inverse_depth", 1)
        self.create_subscription(Image, "image", self.on_image, NEWEST)

    def on_image(self, message: Image) -> None:
        if message.encoding not in ("rgb8", "bgr8"):
            self.get_logger().error(f"{message.encoding} images: publish rgb8 or bgr8", throttle_duration_sec=5)
            return
        self.publisher.publish(depth_message(message, self.predict(rgb_of(message))))


def rgb_of(message: Image) -> np.ndarray:
    """uint8 (H, W, 3); rows may be padded."""
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
    return pixels if message.encoding == "rgb8" else pixels[:, :, ::-1]


def depth_message(source: Image, depth: np.ndarray) -> Image:
    """`depth`, float32 (H, W), with the header of the image that it was made from."""
    message = Image()
    message.header = source.header
    message.height, message.width = depth.shape
    message.encoding, message.is_bigendian, message.step = "32FC1", sys.byteorder == "big", 4 * depth.shape[1]
    # Of anything but an array the message checks byte after byte, up to ROS 2 Humble.
    message.data = array.array("B", depth.astype(np.float32).tobytes())
    return message


def main() -> None:
    rclpy.init(args=sys.argv)
    arguments = rclpy.utilities.remove_ros_args(sys.argv)[1:]
    if len(arguments) != 1:
        sys.exit("usage: python ros2_depth.py MODEL [--ros-args -r image:=TOPIC]")
    try:
        runtime = load_runtime(arguments[0])
    except MdeError as error:
        sys.exit(f"error: {error}")
    rclpy.spin(DepthNode(runtime))


if __name__ == "__main__":
    main()
