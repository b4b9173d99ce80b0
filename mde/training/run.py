"""`train.py` from the composed configuration to a finished run directory."""

import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mde.data.datamodule import DepthData, parts_of
from mde.data.folder import FolderFrames
from mde.data.sample import Frames, Splits
from mde.errors import MdeError
from mde.evaluation import evaluate, network_predictor, ramp_predictor, spread
from mde.models import build_model, load_model, save_model
from mde.models.network import DepthNetwork
from mde.report.page import write_report
from mde.report.pictures import picture_sheet
from mde.report.record import describe_model, new_record, write_record
from mde.report.terminal import say, show_quality
from mde.training.estimate import step_seconds
from mde.training.module import DepthModule
from mde.training.objective import Objective
from mde.training.trainer import LAST, build_trainer, precision, uses_gpu


def train(config: DictConfig) -> Path:
    """Trains as configured and returns the run directory, complete with network, record, pictures and page.

    The record's status is "running" meanwhile, and "incomplete" when the run ended before its last step: by
    trainer.max_minutes, by a signal, or by an error, which is raised again. `resume=` continues from the last checkpoint.
    """
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    config = prepared(config)
    size = checked_size(config.size)
    L.seed_everything(config.seed, workers=True, verbose=False)
    splits: Splits = instantiate(config.data)
    evaluated = evaluation_sets(splits, config.evaluate)
    model = build_model(config.model.name, weights=config.weights, encoder=default_encoder(config))
    trainer = build_trainer(config, run_dir, parts_of(splits.validation)[0], size)
    if trainer.is_global_zero:
        OmegaConf.save(config, run_dir / "config.yaml")
        write_record(run_dir, new_record("running", parent=config.weights, model=describe_model(model, size)))
    try:
        fit(config, run_dir, trainer, model, splits, size)
    finally:
        if trainer.is_global_zero and trainer.global_step < config.trainer.max_steps:
            write_record(run_dir, new_record("incomplete", parent=config.weights, model=describe_model(model, size)))
            say(f"stopped at step {trainer.global_step}; to continue: python train.py resume={run_dir}")
    if trainer.is_global_zero and trainer.global_step >= config.trainer.max_steps:
        finish(config, run_dir, model, splits, evaluated, size)
    return run_dir


def fit(
    config: DictConfig, run_dir: Path, trainer: L.Trainer, model: DepthNetwork, splits: Splits, size: tuple[int, int]
) -> None:
    """Optimises `model` in place, from the run directory's last checkpoint where there is one."""
    if config.batch_size % trainer.world_size:
        raise MdeError(
            f"batch_size={config.batch_size}: not a multiple of the {trainer.world_size} processes it is for"
        )
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
    module = DepthModule(
        model.to(memory_format=torch.channels_last),
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


def announce(config: DictConfig, module: DepthModule, trainer: L.Trainer, size: tuple[int, int]) -> None:
    """Says what will be trained, on what, and on a CPU for how long."""
    parameters = sum(parameter.numel() for parameter in module.model.parameters())
    steps = config.trainer.max_steps
    say(
        f"{config.model.name}, {parameters / 1e6:.1f} M parameters, input {size[0]} x {size[1]}, "
        f"batch {config.batch_size}, {steps} steps, {config.trainer.precision}"
    )
    if not uses_gpu(config.trainer):
        minutes = step_seconds(module, trainer, config.batch_size // trainer.world_size, size) * steps / 60
        say(f"about {max(1, round(minutes))} min of training on this machine, if nothing else runs on it")
        if trainer.world_size > 1:
            say("several processes on the CPU: BatchNorm statistics are per process (SyncBatchNorm needs GPUs)")


def finish(
    config: DictConfig,
    run_dir: Path,
    model: DepthNetwork,
    splits: Splits,
    evaluated: list[Frames],
    size: tuple[int, int],
) -> None:
    """Saves the network, evaluates it once on every set, and writes pictures, record and page."""
    path = run_dir / "model.safetensors"
    steps = config.trainer.max_steps
    save_model(model.cpu(), path, input=list(size), trained_on=splits.name, steps=steps, parent=config.weights)
    model = load_model(path)  # what is evaluated is what was saved
    predict = network_predictor(model, size)
    limit = evaluation_limit()
    quality: dict[str, Any] = {}
    ramp: dict[str, Any] = {}
    for frames in evaluated:
        title = f"evaluating on {frames.name}"
        quality[frames.name] = evaluate(predict, frames, protocol=config.protocol, limit=limit, progress=title)
        ramp[frames.name] = evaluate(ramp_predictor, frames, protocol=config.protocol, limit=limit)
        sheet = picture_sheet([frames[index] for index in spread(len(frames), 6)], predict, frames.cap)
        sheet.save(run_dir / "pictures" / f"{frames.name}.png")
    record = new_record(
        "complete",
        parent=config.weights,
        model=describe_model(model, size, path) | {"trained_on": splits.name, "steps": steps},
        quality=quality,
        baselines={"vertical_ramp": ramp},
        notes=[splits.note] if splits.note else [],
    )
    write_record(run_dir, record)
    show_quality(record)
    say(f"report: {write_report(run_dir)}")


def evaluation_sets(splits: Splits, folders: list[str]) -> list[Frames]:
    """The run's own test frames (validation where it has none), then the folders named in evaluate=: their test part, or
    all of them. Opened before training, so that a wrong path is found at once."""
    sets = list(parts_of(splits.test if splits.test is not None else splits.validation))
    for folder in folders:
        frames = FolderFrames(folder)
        if frames.has_split:
            frames = FolderFrames(folder, split="test")
        if frames.name not in [known.name for known in sets]:
            sets.append(frames)
    return sets


def prepared(config: DictConfig) -> DictConfig:
    """The configuration to run: of the run that is resumed, with this command line's other options on top; "auto" resolved.

    With MDE_MAX_STEPS=n in the environment a run ends after n steps and evaluates 4 n frames of each set: for tests.
    """
    if config.resume:
        path = Path(config.resume) / "config.yaml"
        if not path.exists():
            raise MdeError(f"resume={config.resume}: no config.yaml there; name the directory of an earlier run")
        overrides = [item for item in HydraConfig.get().overrides.task if not item.startswith("resume=")]
        # The composed configuration carries the types; the saved one carries the values.
        config = OmegaConf.merge(config, OmegaConf.load(path), OmegaConf.from_dotlist(overrides))  # type: ignore
    config.trainer.precision = precision(config.trainer)
    if limit := os.environ.get("MDE_MAX_STEPS"):
        config.trainer.max_steps = min(config.trainer.max_steps, int(limit))
    return config


def evaluation_limit() -> int | None:
    limit = os.environ.get("MDE_MAX_STEPS")
    return 4 * int(limit) if limit else None


def default_encoder(config: DictConfig) -> str | None:
    """The encoder asked for; where weights come without a decoder and none is asked for, lite0, which a CPU can train."""
    return config.model.encoder or ("lite0" if config.weights in ("none", "imagenet") else None)


def checked_size(size: Any) -> tuple[int, int]:
    if len(size) != 2 or any(side < 32 or side % 32 for side in size):
        raise MdeError(f"size={list(size)}: give height and width as multiples of 32, for example size=[256,256]")
    return size[0], size[1]
