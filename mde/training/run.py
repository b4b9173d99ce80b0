"""`train.py` from the composed configuration to a finished run directory."""

import logging
import os
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import nn

from mde.data.datamodule import DepthData, parts_of
from mde.data.folder import FolderFrames
from mde.data.sample import Frames, Splits
from mde.errors import MdeError
from mde.evaluation import evaluate, network_predictor, ramp_predictor, spread
from mde.models import build_model, load_model, save_model
from mde.report.page import write_report
from mde.report.pictures import picture_sheet
from mde.report.record import describe_model, new_record, write_record
from mde.report.terminal import say, show_quality
from mde.training.callbacks import PicturePanel, SafeCheckpointIO, Throughput
from mde.training.module import DepthModule
from mde.training.objective import Objective

LAST = "checkpoints/last.ckpt"


def train(config: DictConfig) -> Path:
    """Trains as configured and returns the run directory, complete with model, record, report and pictures."""
    quiet()
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if config.resume:
        config = resumed_config(Path(config.resume))
    config = limited(config)
    size = checked_size(config.size)
    L.seed_everything(config.seed, workers=True, verbose=False)
    splits: Splits = instantiate(config.data)
    evaluated = evaluation_sets(splits, config.evaluate)
    model = build_model(config.model.name, weights=config.weights, **model_options(config))
    if is_rank_zero():
        OmegaConf.save(config, run_dir / "config.yaml")
        write_record(run_dir, new_record("running", model=describe_model(model, size)))
    module, trainer = fit(config, run_dir, model, splits, size)
    if not trainer.is_global_zero:
        return run_dir
    if trainer.global_step < config.trainer.max_steps:
        write_record(run_dir, new_record("incomplete", model=describe_model(model, size)))
        say(f"stopped at step {trainer.global_step}; continue with: python train.py resume={run_dir}")
        return run_dir
    finish(config, run_dir, module.model, splits, evaluated, size)
    return run_dir


def fit(
    config: DictConfig, run_dir: Path, model: nn.Module, splits: Splits, size: tuple[int, int]
) -> tuple[DepthModule, L.Trainer]:
    """Runs the optimisation, from the run directory's last checkpoint where there is one."""
    trainer = build_trainer(config, run_dir, splits, size)
    if config.batch_size % trainer.world_size:
        raise MdeError(f"batch_size={config.batch_size} cannot be shared by {trainer.world_size} processes: use a multiple")
    data = DepthData(
        splits,
        size=size,
        mean=model.mean,
        std=model.std,
        batch_size=config.batch_size,
        max_steps=config.trainer.max_steps,
        workers=config.workers,
        seed=config.seed,
    )
    model.to(memory_format=torch.channels_last)
    module = DepthModule(
        model,
        Objective(**config.loss),
        config.optimizer,
        max_steps=config.trainer.max_steps,
        validation=parts_of(splits.validation),
        protocol=config.protocol,
        freeze_batchnorm=config.trainer.freeze_batchnorm,
    )
    if trainer.is_global_zero:
        announce(config, module, trainer, size)
    last = run_dir / LAST
    trainer.fit(module, data, ckpt_path=str(last) if last.exists() else None, weights_only=True)
    return module, trainer


def build_trainer(config: DictConfig, run_dir: Path, splits: Splits, size: tuple[int, int]) -> L.Trainer:
    options = config.trainer
    callbacks: list[Callback] = [
        ModelCheckpoint(
            run_dir / "checkpoints",
            filename="last",
            enable_version_counter=False,
            train_time_interval=timedelta(minutes=options.checkpoint_minutes),
            save_on_exception=True,
        ),
        LearningRateMonitor("step"),
        Throughput(config.batch_size),
        PicturePanel(run_dir / "pictures", parts_of(splits.validation)[0], size),
        TQDMProgressBar(refresh_rate=10),
    ]
    if options.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=options.ema_decay))
    gpu = options.accelerator == "gpu" or (options.accelerator == "auto" and torch.cuda.is_available())
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,
        sync_batchnorm=gpu and options.devices > 1,
        max_steps=options.max_steps,
        max_time=timedelta(minutes=options.max_minutes) if options.max_minutes else None,
        val_check_interval=min(options.validate_every, options.max_steps),
        check_val_every_n_epoch=None,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # StreamSampler shares out the global batch itself
        logger=build_loggers(config, run_dir),
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        default_root_dir=run_dir,
        enable_model_summary=False,
    )


def build_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """CSV always; W&B when asked for: online with a key, else offline in the run directory."""
    loggers: list[Logger] = [CSVLogger(run_dir, name="logs")]
    if config.logger.wandb:
        online = bool(os.environ.get("WANDB_API_KEY")) and os.environ.get("WANDB_MODE") != "offline"
        loggers.append(
            WandbLogger(
                project=config.logger.project,
                name=run_dir.name,
                save_dir=run_dir,
                offline=not online,
                config=OmegaConf.to_container(config, resolve=True),
            )
        )
    return loggers


def announce(config: DictConfig, module: DepthModule, trainer: L.Trainer, size: tuple[int, int]) -> None:
    """Says what will be trained and for how long, from three timed steps on noise that leave the network as it was."""
    per_step = step_seconds(module, config.batch_size // trainer.world_size, size) if config.trainer.accelerator == "cpu" else 0
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    say(
        f"{config.model.name}, {parameters / 1e6:.1f} M parameters, input {size[0]} x {size[1]}, batch {config.batch_size}, "
        f"{config.trainer.max_steps} steps"
        + (f": about {max(1, round(per_step * config.trainer.max_steps / 60))} min of training" if per_step else "")
    )
    if trainer.world_size > 1 and not torch.cuda.is_available():
        say("several processes on the CPU: BatchNorm statistics are per process (SyncBatchNorm needs GPUs)")


def step_seconds(module: DepthModule, batch_size: int, size: tuple[int, int], steps: int = 3) -> float:
    """Seconds of one forward and backward pass on noise; weights and BatchNorm statistics stay as they were."""
    state = {name: buffer.clone() for name, buffer in module.model.named_buffers()}
    module.model.train()
    image = torch.randn(batch_size, 3, *size).contiguous(memory_format=torch.channels_last)
    depth = torch.rand(batch_size, 1, *size) + 1
    began = time.perf_counter()
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()  # the first pass allocates
        module.objective(module.model(image), depth, depth > 0, step)["loss"].backward()
    elapsed = (time.perf_counter() - began) / steps
    module.zero_grad(set_to_none=True)
    for name, buffer in module.model.named_buffers():
        buffer.copy_(state[name])
    return elapsed


def finish(
    config: DictConfig,
    run_dir: Path,
    model: nn.Module,
    splits: Splits,
    evaluated: list[Frames],
    size: tuple[int, int],
) -> None:
    """Saves the network, evaluates it once on every set, and writes record, pictures and page."""
    path = run_dir / "model.safetensors"
    save_model(model.cpu(), path, size=list(size), trained_on=splits.name, steps=config.trainer.max_steps)
    model = load_model(path)  # what is evaluated is what was saved
    predict = network_predictor(model, size)
    quality: dict[str, Any] = {}
    ramp: dict[str, Any] = {}
    for frames in evaluated:
        limit = evaluation_limit()
        quality[frames.name] = evaluate(
            predict, frames, protocol=config.protocol, limit=limit, progress=f"evaluating on {frames.name}"
        )
        ramp[frames.name] = evaluate(ramp_predictor, frames, protocol=config.protocol, limit=limit)
        samples = [frames[index] for index in spread(len(frames), 6)]
        (run_dir / "pictures").mkdir(exist_ok=True)
        picture_sheet(samples, predict, frames.cap).save(run_dir / "pictures" / f"{frames.name}.png")
    record = new_record(
        "complete",
        parent=str(config.weights),
        model=describe_model(model, size, path),
        quality=quality,
        baselines={"vertical_ramp": ramp},
        notes=[splits.note] if splits.note else [],
    )
    write_record(run_dir, record)
    page = write_report(run_dir)
    show_quality(record)
    say(f"report: {page}")


def evaluation_sets(splits: Splits, folders: list[str]) -> list[Frames]:
    """The run's own test frames (validation where it has none), then the folders named in evaluate=; opened before
    training, so that a wrong path is found at once."""
    sets = list(parts_of(splits.test if splits.test is not None else splits.validation))
    for folder in folders:
        frames = FolderFrames(folder)
        if frames.has_split:
            frames = FolderFrames(folder, split="test")
        if frames.name not in [known.name for known in sets]:
            sets.append(frames)
    return sets


def model_options(config: DictConfig) -> dict[str, Any]:
    """Constructor options that the weights leave open: lite0, which a CPU can train, unless something else is asked for."""
    if config.model.encoder is not None:
        return {"encoder": config.model.encoder}
    return {"encoder": "lite0"} if config.weights in ("none", "imagenet") else {}


def resumed_config(run_dir: Path) -> DictConfig:
    """The configuration of an earlier run with this command line's other options on top."""
    path = run_dir / "config.yaml"
    if not path.exists():
        raise MdeError(f"resume={run_dir}: no config.yaml there; name the directory of an earlier run")
    overrides = [item for item in HydraConfig.get().overrides.task if not item.startswith("resume=")]
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    OmegaConf.set_struct(saved, True)
    merged = OmegaConf.merge(saved, OmegaConf.from_dotlist(overrides))
    assert isinstance(merged, DictConfig)
    return merged


def limited(config: DictConfig) -> DictConfig:
    """With MDE_MAX_STEPS=n in the environment a run ends after n steps and evaluates 4 n frames a set: for tests."""
    steps = os.environ.get("MDE_MAX_STEPS")
    if steps:
        config.trainer.max_steps = min(config.trainer.max_steps, int(steps))
    return config


def evaluation_limit() -> int | None:
    steps = os.environ.get("MDE_MAX_STEPS")
    return 4 * int(steps) if steps else None


def checked_size(size: Any) -> tuple[int, int]:
    if len(size) != 2 or any(side < 32 or side % 32 for side in size):
        raise MdeError(f"size={list(size)}: give height and width as multiples of 32, for example size=[256,256]")
    return size[0], size[1]


def quiet() -> None:
    """Leave out what Lightning says about itself: devices it did not find, services it recommends, its own deprecations."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


def is_rank_zero() -> bool:
    return int(os.environ.get("LOCAL_RANK", 0)) == 0 and int(os.environ.get("NODE_RANK", 0)) == 0
