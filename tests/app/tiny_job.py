"""A job as small as can be, wrapped and started as train.py's is; what becomes of it depends on its seed."""

import json
import os
import signal
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mde.app.entry import job, register, run
from mde.errors import MdeError

CONF = str(Path(__file__).resolve().parents[2] / "conf")
MENDABLE, UNFORESEEN, DIES, INTERRUPTED = 101, 102, 103, 104


def result(seed: int) -> dict:
    """A complete record: the higher the seed, the cheaper and the worse, but for 50, which is both worst and dear."""
    better = -1 if seed == 50 else seed
    return {
        "schema": 1,
        "status": "complete",
        "environment": {},
        "model": {
            "name": "midas_small",
            "encoder": "lite0",
            "input": [64, 64],
            "parameters": 1000000,
            "nonzero_parameters": 1000000 - seed,
            "macs": 10**9 - better * 10**6,
            "sparsity": seed / 100,
            "file_bytes": 4000000,
        },
        "quality": {"frames": {"delta1": 0.9 - seed / 1000, "rmse": 1.0, "mae": 0.5, "abs_rel": 0.1}},
        "latency": {"openvino": {"p50_ms": 20 - better / 10, "speedup_vs_reference": 1.5}},
    }


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
@job
def main(config: DictConfig) -> None:
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    with open(run_dir / "begun", "a") as file:
        file.write("x")
    if config.seed == MENDABLE:
        raise MdeError("seed=101: too large; take a smaller one")
    if config.seed == UNFORESEEN:
        raise ZeroDivisionError("in two\nlines")
    if config.seed == DIES:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == INTERRUPTED:
        raise KeyboardInterrupt
    record = result(config.seed)
    if config.sweep.search:
        record |= {"validation": record["quality"], "quality": {}}
    (run_dir / "metrics.json").write_text(json.dumps(record))


if __name__ == "__main__":
    register()
    run(main)
