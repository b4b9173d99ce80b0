"""Makes tests/data/tiny.bag with librealsense 2.54, the last on PyPI to write a .bag; later ones write a .db3.

    PYTHONPATH=.venv/librealsense-2.54:. .venv/bin/python tests/data/make_bag.py

The tests compare what is played with `frames()`, and make a .db3 with `record` and the present librealsense.
"""

from pathlib import Path

import numpy as np

from mde.renderer.depth_sensor import L515_UNIT
from mde.sensors.emulator import Emulated, SoftwareL515, start_recorder, stop_recorder

HEIGHT, WIDTH = 48, 64
UNIT = L515_UNIT
BASELINE = 0.05  # metres, from depth to colour


def frames(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Depth, uint16 (count, 48, 64) in units of 0.25 mm, and colour, uint8 (count, 48, 64, 3): a slope that recedes."""
    n, y, x = np.ogrid[:count, :HEIGHT, :WIDTH]
    depth = 4000 + 40 * n + 8 * (y // 8) + x // 4
    return depth.astype(np.uint16), np.stack([depth // 20, depth // 4 % 256, 3 * x + y + n], -1).astype(np.uint8)


def record(path: Path, depth: np.ndarray, color: np.ndarray) -> None:
    """Records the emulated L515; frame n (from 1) has the time stamp (n - 1) / 30 s."""
    height, width = depth.shape[1:]
    K = np.array([[width, 0, (width - 1) / 2], [0, width, (height - 1) / 2], [0, 0, 1]], dtype=float)
    shown = [Emulated(rgb, counts, counts * np.float32(UNIT), (K, K)) for counts, rgb in zip(depth, color, strict=True)]
    device = SoftwareL515(shown[0], BASELINE)
    recorder = start_recorder(device, path)
    for number, frame in enumerate(shown, start=1):
        device.show(frame, number)
    stop_recorder(recorder)


if __name__ == "__main__":
    target = Path(__file__).with_name("tiny.bag")
    target.unlink(missing_ok=True)
    record(target, *frames())
    print(f"{target}: {target.stat().st_size} bytes")
