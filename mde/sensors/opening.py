"""Whether librealsense opens a recording, found out in a process that can be ended.

For something that damage has hidden, a topic's name for one, librealsense 2.59 searches for ever, and keeps Python's
lock: no thread and no signal would get this process out of it.
"""

import subprocess
import sys
from pathlib import Path

from mde.errors import MdeError
from mde.sensors.library import require_realsense

LIMIT = 60.0  # seconds; a whole recording, of whatever length, is open in less than one
ROOT = Path(__file__).resolve().parent.parent.parent


def opens(path: Path) -> bool:
    """MdeError where librealsense comes to no end with it."""
    command = [sys.executable, "-m", "mde.sensors.opening", str(path.resolve())]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=LIMIT, check=False)
    except subprocess.TimeoutExpired as error:
        raise MdeError(
            f"{path}: librealsense searches in it for {LIMIT:g} s and finds no end, its list of what it holds is "
            "damaged; record or copy it again"
        ) from error
    return done.returncode == 0


def _main(path: str) -> int:
    rs = require_realsense()
    config = rs.config()
    try:
        config.enable_device_from_file(path, repeat_playback=False)
        config.resolve(rs.pipeline_wrapper(rs.pipeline(rs.context())))
    except RuntimeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
