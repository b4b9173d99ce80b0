"""One network's forward pass in PyTorch, timed in a process that does nothing else: its memory is its own."""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from mde.errors import MdeError
from mde.models.build import build_model
from mde.speed.peak_bytes import peak_bytes

RUNS = 5
ROOT = Path(__file__).resolve().parents[2]


def measure_forward(name: str, size: tuple[int, int]) -> dict[str, float]:
    """Of the published network with random weights, in FP32, one image of `size`:

    idle_mb  megabytes (10^6 bytes) that a fresh process holds with PyTorch, before the network is built
    peak_mb  what it holds at most until the last of RUNS passes
    ms       median of those passes, after one more to warm up

    MdeError when the process fails, for want of memory for example.
    """
    command = [sys.executable, "-m", "mde.speed.forward", name, *map(str, size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise MdeError(f"{name}: cannot be measured at {size[0]} x {size[1]} ({reason}); leave it with --no-measure")
    return json.loads(done.stdout.splitlines()[-1])


def _main() -> None:
    name, height, width = sys.argv[1:]
    idle = peak_bytes()
    model = build_model(name, reference=True)
    image, times = torch.zeros(1, 3, int(height), int(width)), []
    with torch.no_grad():
        for _ in range(1 + RUNS):
            start = time.perf_counter()
            model(image)
            times.append(1000 * (time.perf_counter() - start))
    print(json.dumps({"idle_mb": idle / 1e6, "peak_mb": peak_bytes() / 1e6, "ms": statistics.median(times[1:])}))


if __name__ == "__main__":
    _main()
