"""Deploy a depth network: `python deploy.py checkpoint=PATH target=openvino quantize=int8 [-m target=...] ...`.

Or set deployed ones side by side: `python deploy.py compare=[FILE,FILE,...]`; against a depth camera: `data=l515`.
"""

import hydra
from omegaconf import DictConfig

from mde.app.entry import job, register, run
from mde.config import SensorData


@hydra.main(version_base="1.3", config_path="conf", config_name="deploy")
@job
def main(config: DictConfig) -> None:
    # Imported after composing: a mistyped option is answered before torch is imported.
    if config.data._target_ == SensorData._target_:
        from mde.deploy.camera.run import observe

        observe(config)
    elif config.compare:
        from mde.deploy.compare import compare

        compare(config)
    elif config.source is not None:
        from mde.deploy.predict.run import predict

        predict(config)
    else:
        from mde.deploy.run import deploy

        deploy(config)


if __name__ == "__main__":
    register()
    run(main)
