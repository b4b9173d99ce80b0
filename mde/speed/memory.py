"""The memory that a network takes in an engine, measured in a process that does nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from mde.engines import open_engine
from mde.errors import MdeError
from mde.speed.peak_bytes import peak_bytes

RUNS = 3
ROOT = Path(__file__).resolve().parents[2]


def peak_memory(engine: str, path: Path, image: np.ndarray, threads: int) -> float:
    """Megabytes (10^6 bytes) that a fresh process holds at most while it opens the file and runs it RUNS times.

    image  of which shape and type count

    That is everything which using the file takes: Python with NumPy, the engine's library (PyTorch itself, for
    "pytorch"), weights and working memory. A GPU's memory is not in it. MdeError when the process fails.
    """
    command = [sys.executable, "-m", "mde.speed.memory", engine, str(path.resolve()), str(threads), image.dtype.name]
    command += [str(side) for side in image.shape]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise MdeError(f"{path}: cannot be run by {engine} in a process of its own ({reason})")
    return float(done.stdout.splitlines()[-1])


def _main() -> None:
    engine, path, threads, dtype, *shape = sys.argv[1:]
    run = open_engine(engine, Path(path), int(threads))
    image = np.zeros([int(side) for side in shape], dtype)
    for _ in range(RUNS):
        run(image)
    print(peak_bytes() / 1e6)


if __name__ == "__main__":
    _main()
