"""Making a network smaller: what to remove, how, when, and getting accuracy back."""

from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf

from mde.config import ImportanceConfig, PruneConfig, RecoveryConfig
from mde.errors import MdeError
from mde.models.build import UNTRAINED
from mde.pruning.pruner import Pruner
from mde.pruning.schedule import Schedule
from mde.report.terminal import say

__all__ = ["Pruner", "build_pruner"]

KINDS = ("none", "channel", "fine_grained", "two_four", "layer")
CRITERIA = {"channel": ("l1", "l2", "batchnorm", "taylor"), "fine_grained": ("l1", "l2", "lamp", "taylor")}


def build_pruner(config: DictConfig, run_dir: Path) -> Pruner | None:
    """The callback that `config` asks for, None with prune=none; fills in what is null in schedule and recovery.

    Raises MdeError for options that contradict one another.
    """
    prune = cast(PruneConfig, OmegaConf.to_object(config.prune))
    importance = cast(ImportanceConfig, OmegaConf.to_object(config.importance))
    recovery = cast(RecoveryConfig, OmegaConf.to_object(config.recovery))
    check(prune, importance, recovery)
    if prune.kind == "none":
        return None
    fill_in(config, recovery.kind)
    recovery.fade = config.recovery.fade
    if recovery.kind == "distill" and config.weights in UNTRAINED and config.schedule.start == 0:
        raise MdeError(
            f"recovery=distill: with weights={config.weights} and schedule.start=0 the teacher never trained; "
            "start later, give trained weights, or choose recovery=finetune"
        )
    if config.weights in UNTRAINED and config.schedule.start > 0:
        say(f"weights={config.weights}: trains dense for {config.schedule.start} steps, then prunes")
    plan = Schedule(config.schedule.kind, config.schedule.start, config.schedule.end, config.schedule.interval)
    return Pruner(prune, importance, plan, recovery, (config.size[0], config.size[1]), run_dir)


def check(prune: PruneConfig, importance: ImportanceConfig, recovery: RecoveryConfig) -> None:
    """MdeError for options that are unknown or contradict one another."""
    kind = prune.kind
    if kind not in KINDS:
        raise MdeError(f"prune.kind={kind}: unknown; choose one of {', '.join(KINDS)}")
    if recovery.kind not in ("none", "finetune", "distill"):
        raise MdeError(f"recovery.kind={recovery.kind}: unknown; choose none, finetune or distill")
    if kind == "none":
        for name, value in (
            ("sparsity", prune.sparsity),
            ("prune.budget", prune.budget),
            ("prune.blocks", prune.blocks or None),
        ):
            if value is not None:
                raise MdeError(f"{name}={value}: without pruning; add prune=channel, or leave it out")
        return
    if prune.blocks < 0:
        raise MdeError(f"prune.blocks={prune.blocks}: how many residual blocks to take out, at least 0")
    if prune.blocks and (kind != "channel" or prune.budget in ("latency_ms", "fps")):
        raise MdeError(f"prune.blocks={prune.blocks}: only with prune=channel and sparsity=... or prune.budget=macs")
    if prune.budget is not None:
        _check_budget(prune)
    elif kind == "two_four":
        if prune.sparsity not in (None, 0.5):
            raise MdeError(f"sparsity={prune.sparsity}: prune=two_four zeroes two of every four; leave it out")
        prune.sparsity = 0.5
    elif prune.sparsity is None:
        also = " or prune.budget=macs prune.target=1e9" if kind == "channel" else ""
        raise MdeError(f"prune={kind}: how much? give sparsity=0.5 (share of the parameters){also}")
    elif not 0 <= prune.sparsity < 1:
        raise MdeError(f"sparsity={prune.sparsity}: a share of the parameters, at least 0 and below 1")
    known = CRITERIA["channel" if kind == "channel" else "fine_grained"]
    if kind != "layer" and importance.kind not in known:
        raise MdeError(f"importance={importance.kind}: not with prune={kind}; choose one of {', '.join(known)}")


def _check_budget(prune: PruneConfig) -> None:
    if prune.kind != "channel":
        raise MdeError(f"prune.budget={prune.budget}: zeros save no time; only with prune=channel")
    if prune.sparsity is not None:
        raise MdeError(f"sparsity={prune.sparsity} and prune.budget={prune.budget}: give one of them")
    if prune.budget not in ("macs", "latency_ms", "fps"):
        raise MdeError(f"prune.budget={prune.budget}: unknown; choose macs, latency_ms or fps")
    if prune.target is None or prune.target <= 0:
        raise MdeError(f"prune.budget={prune.budget}: how much? give prune.target=...")


def fill_in(config: DictConfig, recovery: str) -> None:
    """What null stands for in schedule and recovery, in place."""
    schedule, last = config.schedule, config.trainer.max_steps
    if schedule.start is None:
        schedule.start = last if recovery == "none" else (last + 1) // 2 if config.weights in UNTRAINED else 0
    if schedule.start > last:
        raise MdeError(f"schedule.start={schedule.start}: after the last step, trainer.max_steps={last}")
    if schedule.end is None:
        schedule.end = schedule.start if schedule.kind == "one_shot" else (schedule.start + last) // 2
    if schedule.end > last:
        raise MdeError(f"schedule.end={schedule.end}: after the last step, trainer.max_steps={last}")
    if config.recovery.fade is None:
        # A teacher that is half trained itself would hold its student back.
        rest = last - schedule.end
        config.recovery.fade = max(1, rest // 4 if config.weights in UNTRAINED else rest)
    if schedule.interval is None:
        schedule.interval = max(1, (schedule.end - schedule.start) // 8)
