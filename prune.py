"""Prune a trained depth network: `python prune.py checkpoint=PATH prune=channel sparsity=0.5 [recovery=none] ...`."""

import hydra
from omegaconf import DictConfig

from mde.app.entry import job, register, run


@hydra.main(version_base="1.3", config_path="conf", config_name="prune")
@job
def main(config: DictConfig) -> None:
    from mde.pruning.run import prune  # after composing: a mistyped option is answered before torch is imported

    prune(config)


if __name__ == "__main__":
    register()
    run(main)
