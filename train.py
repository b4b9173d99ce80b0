"""Train a depth network: `python train.py [data=folder data.root=PATH] [experiment=full] ...`."""

import hydra
from omegaconf import DictConfig

from mde.app.entry import job, register, run


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@job
def main(config: DictConfig) -> None:
    from mde.training import train  # after composing: a mistyped option is answered before torch is imported

    train(config)


if __name__ == "__main__":
    register()
    run(main)
