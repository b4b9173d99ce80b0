"""The Lightning trainer of a run: devices, precision, loggers, callbacks, checkpoints."""

import logging
import os
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.callbacks.progress import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf

from mde.data.sample import Frames
from mde.training.callbacks import PicturePanel, SafeCheckpointIO, Throughput

LAST = "checkpoints/last.ckpt"  # in the run directory


def build_trainer(config: DictConfig, run_dir: Path, pictured: Frames, size: tuple[int, int]) -> L.Trainer:
    """The trainer that `config` describes; `pictured` are the frames of which pictures are made after each validation."""
    quiet()
    options = config.trainer
    callbacks: list[Callback] = [
        ModelCheckpoint(
            run_dir / Path(LAST).parent,
            filename=Path(LAST).stem,
            enable_version_counter=False,
            train_time_interval=timedelta(minutes=options.checkpoint_minutes),
            save_on_exception=True,
        ),
        LearningRateMonitor("step"),
        Throughput(config.batch_size),
        PicturePanel(run_dir / "pictures", pictured, size),
        TQDMProgressBar(refresh_rate=10),
    ]
    if options.ema_decay is not None:
        callbacks.append(EMAWeightAveraging(decay=options.ema_decay))
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,
        sync_batchnorm=uses_gpu(options) and options.devices > 1,
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


def precision(options: DictConfig) -> str:
    """What "auto" stands for: bfloat16 where the device computes in it, else float32 (float16 on an old GPU)."""
    if options.precision != "auto":
        return options.precision
    if uses_gpu(options):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return "bf16-mixed" if native else "32-true"  # emulated bfloat16 is slower than float32


def uses_gpu(options: DictConfig) -> bool:
    return options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and torch.cuda.is_available())


def quiet() -> None:
    """Leave out what Lightning says of itself: devices it did not find, services, its own deprecations."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # a run directory that is resumed
