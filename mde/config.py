"""The typed schema of every option: what the YAML files in `conf/` may say, with types, defaults and meaning.

Hydra merges a YAML file into the dataclass registered for it, so an unknown or ill-typed option fails while composing.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


@dataclass
class ModelConfig:
    name: str | None = None  # null: what the weights hold, midas_small where they leave it open
    encoder: str | None = None  # of midas_small: lite0 .. lite4; null: what the weights hold, else lite0
    variant: str | None = (
        None  # of fastdepth: dense | pruned; of guidedepth: full | small; null: likewise, else the first
    )
    border: str | None = (
        None  # of midas_small: zeros, as published, or replicate, train.py's default for untrained weights
    )
    blocks: int | None = None  # of a DPT's transformer; null: likewise, else as published


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
class PhotosData:
    """A folder of photos without depth, for teacher=PATH; folders inside it count."""

    _target_: str = "mde.data.photos.photos_splits"
    root: str = MISSING
    val_root: str | None = None  # frames with depth, as of data=folder, that validate; null: synthetic scenes
    size: list[int] = field(default_factory=lambda: "${size}")  # type: ignore[arg-type, return-value]  # of those


@dataclass
class MixData:
    """Several datasets; a part is drawn with the weight that stands under its name."""

    _target_: str = "mde.data.mix.mix_splits"
    parts: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)


@dataclass
class SensorData:
    """A depth camera or a recording of one: what `deploy.py` evaluates against, records and calibrates with."""

    _target_: str = "mde.sensors.source.sensor_splits"
    source: str = MISSING  # live | a .bag or .db3 | a folder that was recorded
    frames: int | None = None  # null: to the end, or until Ctrl-C
    resolution: list[int] = field(default_factory=lambda: [480, 640])  # height, width of a live camera's streams
    rate: int = 30  # of a live camera, frames a second
    preset: str | None = None  # of a live camera: no_ambient, low_ambient, max_range, short_range, ...
    min_depth: float = 0.25  # metres; nearer is unknown
    max_depth: float = 9.0  # metres; farther is unknown
    warmup: int | None = None  # frames left out at the start; null: 30 of a live camera, else none
    drop_edges: bool = False  # distrust depth beside a jump of 5 %, where an L515 has tails
    confidence: int = 0  # the least that is trusted, of an L515's 0 to 15


@dataclass
class LossConfig:
    data: str = "trimmed"  # trimmed | ssi | l1 | mse
    gradient: float = 0.5  # weight of multi-scale gradient matching
    teacher: float = 1.0  # weight of what teacher=PATH predicts, beside what depth says
    start_steps: int | None = None  # plain L1 before the invariant form; null: 100 for an untrained decoder, else 0


@dataclass
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay to zero."""

    encoder_lr: float | None = None  # null: 4e-4 for a decoder that knows nothing yet, half of it for trained weights
    decoder_lr: float | None = None  # null: likewise, of 1e-3
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
    freeze_batchnorm: bool = False  # keep BatchNorm's statistics as they were loaded, if any were


@dataclass
class LoggerConfig:
    wandb: bool = True  # offline unless a key is set
    project: str = "mde"
    group: str | None = "${mde.sweep_name:}"  # of the run in W&B: its sweep; null in a single run


@dataclass
class PruneConfig:
    """What is removed or zeroed, and how much of it."""

    _target_: str = "mde.pruning.build_pruner"
    kind: str = "none"  # none | channel | fine_grained | two_four | layer
    sparsity: float | None = "${sparsity}"  # type: ignore[assignment]
    budget: str | None = None  # instead of a sparsity: macs | latency_ms | fps, of one image at `size`
    target: float | None = None  # of the budget
    profile: str | None = None  # latencies measured on another device; null: measured here, in `engine`
    engine: str = "onnxruntime"  # onnxruntime | openvino
    threads: int = 2
    blocks: int = 0  # residual blocks that are taken out first, those that change the prediction least
    scan: bool = False  # first prune each group alone, and plot what that costs
    scope: str = "global"  # global: where it costs least; layer: the same share everywhere
    rule: str = "share"  # kind=layer: layers until the zeroed share is nearest, or the paper's `count` of layers
    multiple: int = 16  # widths are multiples of it
    max_share: float = 0.9  # of the channels that a group may lose
    limits: dict[str, float] = field(default_factory=dict)  # pattern of layer names: a max_share of their own


@dataclass
class ImportanceConfig:
    kind: str = "taylor"  # l1 | l2 | batchnorm (channels) | lamp (weights) | taylor
    images: int = 32  # training images whose gradients are taken


@dataclass
class ScheduleConfig:
    kind: str = "one_shot"  # one_shot | linear | cubic
    start: int | None = None  # step; null: 0 for trained weights, half of the steps for others
    end: int | None = None  # step; null: half-way between start and the last step
    interval: int | None = None  # steps; null: an eighth of the way


@dataclass
class RecoveryConfig:
    kind: str = "distill"  # none: prune after the last step | finetune | distill
    output: float = 1.0  # weight of the teacher's prediction
    features: float = 1.0  # weight of the teacher's features
    fade: int | None = None  # steps after the last pruning in which the teacher's weight falls to 0; null: see docs
    batchnorm_images: int = 64  # on which the change of BatchNorm's inputs is measured


@dataclass
class QuantizeConfig:
    """Precision of the deployed network; train.py takes none and qat."""

    kind: str = "none"  # none | float16 | int8 | dynamic | qat
    frames: int = 64  # training frames that int8 and qat are calibrated on
    max_drop: float = 0.01  # of delta1; int8 leaves the most sensitive layers in float until it holds
    gate_frames: int = 64  # validation frames on which that is decided


@dataclass
class EvaluationConfig:
    """How much is evaluated."""

    frames: int | None = None  # of each set, spread evenly; null: all


@dataclass
class MeasureConfig:
    """How latency and memory are measured."""

    rounds: int = 40  # in each of which every network runs once, in random order; 0: train.py and prune.py time nothing
    memory: bool = True  # the peak of each engine's, in a process of its own


@dataclass
class SweepConfig:
    """Multiruns: `-m`."""

    resume: str | None = None  # a sweep's directory: run what is not complete there
    search: bool = False  # of sweep=optuna: judge jobs on validation frames, and test only what was chosen
    cost: str = "macs"  # what sweep=optuna minimises beside maximising delta1: macs | latency_ms
    trials: int = 20  # of sweep=optuna


@dataclass
class TrainConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    importance: ImportanceConfig = field(default_factory=ImportanceConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    sparsity: float | None = None  # share of the parameters that pruning removes or zeroes
    weights: str = "shipped"  # none | midas | imagenet | shipped | PATH
    teacher: str | None = None  # a network's file to learn from: .safetensors, .pt, .onnx, .tflite, .xml or .engine
    size: list[int] | None = (
        None  # height, width: multiples of 32; null: what the weights were trained at, else 160 x 224
    )
    batch_size: int = 8  # over all devices
    workers: int = 1
    seed: int = 0
    protocol: str = "inverse_depth"  # inverse_depth | raw (the paper's own, wrong one)
    evaluate: list[str] = field(default_factory=list)  # folders that fill rows of the table, zero-shot
    resume: str | None = None  # a run directory to continue


@dataclass
class PruneRunConfig(TrainConfig):
    """`prune.py`: a trained network in, a pruned one out."""

    checkpoint: str = "shipped"  # midas | imagenet | shipped | PATH


@dataclass
class TargetConfig:
    """The engine that will run the network."""

    name: str = "onnxruntime"  # pytorch | onnxruntime | openvino | litert | tensorrt
    opset: int = 17  # of ONNX; 13 for TensorRT 8.2 (JetPack 4)
    layout: str = "nhwc"  # of the image: nhwc | nchw
    dtype: str = "uint8"  # of the image: uint8 | float32, for TensorRT before 8.5
    library: str = "auto"  # of target=tensorrt: auto | tensorrt | tensorrt_rtx


@dataclass
class DeviceConfig:
    """The board that the network is for: its latency, and bundle=true."""

    name: str = "cpu"
    jetpack: str | None = None  # 4.6 | 5 | 6 | 7; null: no Jetson
    workspace_mb: int | None = None  # the most scratch memory of a kernel while building
    dla: bool = False  # whether it has a deep learning accelerator
    board: str | None = None  # part of the name that the board gives itself (/proc/device-tree/model)
    peak: dict[str, float] = field(default_factory=dict)  # of its GPU in fp32, fp16, int8: 10^9 dense operations/s
    bandwidth: float | None = None  # of its memory: 10^9 bytes/s
    profile: str | None = None  # profile.json that the bundle wrote on it; null: its latency is estimated


@dataclass
class DeployConfig:
    """`deploy.py`: a network in, a verified file for an engine out. Or files side by side."""

    checkpoint: str | None = "shipped"  # midas | imagenet | shipped | PATH; null: for data=l515 alone
    compare: list[str] = field(default_factory=list)  # instead: files of networks, evaluated and timed together
    model: ModelConfig = field(default_factory=ModelConfig)
    data: Any = MISSING
    target: TargetConfig = field(default_factory=TargetConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    device: DeviceConfig = field(default_factory=DeviceConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    size: list[int] | None = None  # height, width: multiples of 32; null: what the network was trained at
    threads: int = 2  # of the CPU
    parity_frames: int = 16
    source: str | None = None  # only predict: a picture, a folder of pictures, a video, or a camera's number
    record: str | None = None  # keep the frames of data=l515: a new folder, a .npz, or of a live camera a .bag or .db3
    calibrate: str | None = None  # fit metres with data=l515: a recording, or how many of the first frames
    view: str | None = None  # watch data=l515: window, or a new .mp4 or .rrd (for rerun) file
    bundle: bool = False  # also write bundle/, the folder that a Jetson needs
    evaluate: list[str] = field(default_factory=list)  # folders that fill rows of the table
    default_precision: bool = False  # compare: OpenVINO's FP32 files once more, in what it computes by itself
    seed: int = 0


# Group -> its choices that are no more than a kind: what they say, the first word in the group's schema. Choices that
# say more are files in `conf/`, which begin with a schema of SCHEMAS.
CHOICES: dict[str, dict[str, Any]] = {
    "model": {
        name: ModelConfig(name=name) for name in ("midas_small", "dpt_hybrid", "dpt_large", "fastdepth", "guidedepth")
    },
    "data": {
        "synthetic": SyntheticData,
        "folder": FolderData,
        "kitti": KittiData,
        "nyu": NyuData,
        "photos": PhotosData,
        "l515": SensorData,
    },
    "loss": {
        "trimmed": LossConfig(data="trimmed"),  # MiDaS v2's
        "ssi": LossConfig(data="ssi"),  # its least squares form
        "l1": LossConfig(data="l1"),  # plain regression
        "mse": LossConfig(data="mse", gradient=0.0),  # what the paper did, against the grey depth image
    },
    "optimizer": {"adamw": OptimizerConfig},
    "trainer": {
        # Batches that a CPU can hold are too small for statistics of their own. To compare, on validation scenes:
        # python train.py data=folder data.root=NYU size=[96,128] trainer.max_steps=200 trainer.freeze_batchnorm=false
        "cpu": TrainerConfig(freeze_batchnorm=True),
        "gpu": TrainerConfig(accelerator="gpu"),
        # On GPUs BatchNorm is synchronised, on CPUs each process keeps its own statistics.
        "ddp": TrainerConfig(accelerator="auto", devices=2, strategy="ddp"),
    },
    "logger": {"wandb": LoggerConfig, "csv": LoggerConfig(wandb=False)},
    "prune": {
        "none": PruneConfig,
        "channel": PruneConfig(kind="channel"),  # taken out of the graph: fewer multiply-adds in every engine
        "fine_grained": PruneConfig(kind="fine_grained"),  # single weights held at zero: no faster in any engine tried
        "two_four": PruneConfig(kind="two_four"),  # two of four input channels at zero: faster on Ampere GPUs and later
        "layer": PruneConfig(kind="layer"),  # whole layers held at zero: what the paper called channel pruning
    },
    "importance": {kind: ImportanceConfig(kind=kind) for kind in ("l1", "l2", "batchnorm", "lamp", "taylor")},
    "schedule": {kind: ScheduleConfig(kind=kind) for kind in ("one_shot", "linear", "cubic")},
    "recovery": {kind: RecoveryConfig(kind=kind) for kind in ("none", "finetune", "distill")},
    "quantize": {kind: QuantizeConfig(kind=kind) for kind in ("none", "float16", "int8", "dynamic", "qat")},
    "device": {"cpu": DeviceConfig},  # the machine that deploy.py runs on: measured, not estimated
}
SCHEMAS: dict[str, dict[str, Any]] = {"data": {"mix_schema": MixData}, "device": {"device_schema": DeviceConfig}}


def register_schema(targets: Iterable[str] = ()) -> None:
    """Makes the schema and all choices known to Hydra; `targets`: the engines that write files, for `target=`."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="prune_run_schema", node=PruneRunConfig)
    store.store(name="deploy_schema", node=DeployConfig)
    store.store(group="experiment", name="none", node={}, package="_global_")  # a defaults list cannot ask for null
    for name in targets:
        store.store(group="target", name=name, node=TargetConfig(name=name))
    for groups in (CHOICES, SCHEMAS):
        for group, nodes in groups.items():
            for name, node in nodes.items():
                store.store(group=group, name=name, node=node)
