"""The typed schema of every option: what the YAML files in `conf/` may say, with types, defaults and meaning.

Hydra merges a YAML file into the dataclass registered for it, so an unknown or ill-typed option fails while composing.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    name: str = "midas_small"
    encoder: str | None = None  # lite0 .. lite4; null: what the weights hold, lite0 where they leave it open


@dataclass
class SyntheticData:
    """Our own renderer, on the fly."""

    _target_: str = "mde.data.synthetic.synthetic_splits"
    frames: int = 20000  # distinct training scenes before the first repeats
    validation: int = 32
    test: int = 128
    size: list[int] = field(default_factory=lambda: "${size}")  # type: ignore[arg-type, return-value]
    seed: int = 0
    sensor: str = "none"  # none | l515 | lidar
    world: str = "mixed"  # rooms | streets | mixed


@dataclass
class FolderData:
    """rgb/ depth/ meta.json."""

    _target_: str = "mde.data.folder.folder_splits"
    root: str = MISSING
    val_root: str | None = None
    cap: float | None = None  # metres; null: 10 indoors, 80 outdoors


@dataclass
class KittiData:
    """The official KITTI depth layouts."""

    _target_: str = "mde.data.kitti.kitti_splits"
    root: str = MISSING
    layout: str = "auto"  # annotated | selection | auto
    crop: str = "auto"  # garg | eigen_kitti | benchmark | none; auto: garg, and none on the selection, which is cropped


@dataclass
class NyuData:
    """nyu_depth_v2_labeled.mat."""

    _target_: str = "mde.data.nyu.nyu_splits"
    root: str = MISSING


@dataclass
class MixData:
    """Several datasets; a part is drawn with the weight that stands under its name."""

    _target_: str = "mde.data.mix.mix_splits"
    parts: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class LossConfig:
    data: str = "trimmed"  # trimmed | ssi | l1 | mse
    gradient: float = 0.5  # weight of multi-scale gradient matching
    start_steps: int | None = None  # plain L1 before the invariant form; null: 100 for an untrained decoder, else 0


@dataclass
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay to zero."""

    encoder_lr: float = 4e-4
    decoder_lr: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 40
    gradient_clip: float = 1.0  # largest norm of the gradient; 0: off


@dataclass
class TrainerConfig:
    accelerator: str = "cpu"
    devices: int = 1
    strategy: str = "auto"
    precision: str = "auto"  # auto: bfloat16 where the device computes in it; else as Lightning names them
    max_steps: int = 400
    max_minutes: float | None = None  # stop cleanly after this long; continue with resume=
    validate_every: int = 100  # steps
    checkpoint_minutes: float = 1.0
    freeze_batchnorm: bool = False  # keep BatchNorm's statistics as they were loaded


@dataclass
class LoggerConfig:
    wandb: bool = True  # offline unless a key is set
    project: str = "mde"


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    weights: str = "imagenet"  # none | midas | imagenet | PATH
    size: list[int] = field(default_factory=lambda: [256, 256])  # height, width: multiples of 32
    batch_size: int = 8  # over all devices
    workers: int = 1
    seed: int = 0
    protocol: str = "inverse_depth"  # inverse_depth | raw (the paper's own, wrong one)
    evaluate: list[str] = field(default_factory=list)  # folders that fill rows of the table, zero-shot
    resume: str | None = None  # a run directory to continue


def register_schema() -> None:
    """Make the dataclasses known to Hydra under the names that the YAML files' defaults lists use."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    for group, name, node in [
        ("model", "model_schema", ModelConfig),
        ("data", "synthetic_schema", SyntheticData),
        ("data", "folder_schema", FolderData),
        ("data", "kitti_schema", KittiData),
        ("data", "nyu_schema", NyuData),
        ("data", "mix_schema", MixData),
        ("loss", "loss_schema", LossConfig),
        ("optimizer", "optimizer_schema", OptimizerConfig),
        ("trainer", "trainer_schema", TrainerConfig),
        ("logger", "logger_schema", LoggerConfig),
    ]:
        store.store(group=group, name=name, node=node)
