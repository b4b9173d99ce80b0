"""The Lightning trainer of a run: devices, precision, loggers, callbacks, checkpoints."""

import logging
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import DictConfig

from mde.errors import MdeError
from mde.report.wandb_run import wandb_logger
from mde.runs import LAST
from mde.training.callbacks import Deadline, ProgressBar, SafeCheckpointIO, Throughput
from mde.training.module import LOG_EVERY

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")


def build_trainer(config: DictConfig, run_dir: Path, first: list[Callback]) -> L.Trainer:
    """The trainer that `config` describes, with callbacks of the caller's before its own.

    Raises MdeError for a device that is not there.
    """
    silence_lightning()
    options = config.trainer
    if uses_gpu(options) and not torch.cuda.is_available():
        raise MdeError("trainer.accelerator=gpu: PyTorch sees no GPU here; use trainer=cpu")
    callbacks: list[Callback] = [
        *first,
        Throughput(config.batch_size),
        ModelCheckpoint(
            run_dir / Path(LAST).parent,
            filename=Path(LAST).stem,
            enable_version_counter=False,  # one file, replaced
            train_time_interval=timedelta(minutes=options.checkpoint_minutes),
        ),
        LearningRateMonitor("step"),
        ProgressBar(refresh_rate=10),
    ]
    if options.max_minutes is not None:
        callbacks.append(Deadline(options.max_minutes))
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,
        max_steps=options.max_steps,
        gradient_clip_val=config.optimizer.gradient_clip or None,
        log_every_n_steps=min(LOG_EVERY, options.max_steps),
        use_distributed_sampler=False,  # StreamSampler shares out the global batch itself
        logger=build_loggers(config, run_dir),
        callbacks=callbacks,
        plugins=[SafeCheckpointIO()],
        default_root_dir=run_dir,
        enable_model_summary=False,
    )


def build_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """CSV always; W&B when asked for: online with a key, else offline in the run directory; not with
    WANDB_MODE=disabled.

    A resumed run goes on in the W&B run that it began.
    """
    loggers: list[Logger] = [CSVLogger(run_dir, name="logs", flush_logs_every_n_steps=LOG_EVERY)]
    if config.logger.wandb and (logger := wandb_logger(config, run_dir)):
        loggers.append(logger)
    return loggers


def precision(options: DictConfig) -> str:
    """What "auto" stands for: bfloat16 where the device computes in it, else float32 (float16 on an old GPU)."""
    if options.precision not in PRECISIONS:
        raise MdeError(f"trainer.precision={options.precision}: unknown; choose one of {', '.join(PRECISIONS)}")
    if options.precision != "auto":
        return options.precision
    if uses_gpu(options):
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16"))
    return "bf16-mixed" if native else "32-true"  # emulated bfloat16 is slower than float32


def uses_gpu(options: DictConfig) -> bool:
    return options.accelerator in ("gpu", "cuda") or (options.accelerator == "auto" and torch.cuda.is_available())


def silence_lightning() -> None:
    """Leave out what Lightning says of itself: devices it did not find, services, its own deprecations."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        ".*exists and is not empty.*",  # a run directory that is resumed
        ".*dataloader is not resumable.*",  # ours is: its sampler starts at the step
        ".*no `val_dataloader`.*",
        ".*in eval mode at the start.*",  # trainer.freeze_batchnorm
    ):
        warnings.filterwarnings("ignore", message=message)
