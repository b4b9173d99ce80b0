"""Pruning as a part of training: a callback that follows the schedule, and what it needs to be continued."""

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mde.atomic_file import atomic_file
from mde.config import ImportanceConfig, PruneConfig, RecoveryConfig
from mde.data.datamodule import DepthData
from mde.errors import MdeError
from mde.models import load_model, save_model
from mde.models.build import dense_of
from mde.models.network import DepthNetwork
from mde.models.scale import rescale
from mde.pruning.channels import Aim, Limits, Search, kept_after, macs_aims, sparsity_aims
from mde.pruning.cost import Layer, cost, dense_widths, layers_of
from mde.pruning.depth import check_blocks, take_out_blocks
from mde.pruning.group_sensitivity import plot_scan, scan
from mde.pruning.importance import Gradients, channel_importance, image_gradients, weight_importance
from mde.pruning.latency_profile import read_profile, write_profile
from mde.pruning.layer_latency import latency_aims, measure_profile, time_share
from mde.pruning.masks import (
    Masks,
    apply_masks,
    fine_grained_masks,
    layer_masks,
    layer_weights,
    two_four_masks,
)
from mde.pruning.recovery import Distillation, corrected_statistics
from mde.pruning.schedule import Schedule
from mde.pruning.structure import ChannelGroup, channel_groups, keep_channels
from mde.report.dispensable import dispensable
from mde.report.terminal import say
from mde.training.callbacks import Compression
from mde.training.module import DepthModule

BLOCK_IMAGES = 16  # that decide which blocks go
MEASUREMENTS = 4  # of a latency that was aimed at
DENSE = "dense.safetensors"  # in the run directory: the network as it was before its first pruning


class Pruner(Compression):
    """Prunes the network in training where the schedule says so, and holds zeroed weights at zero.

    Its state (share reached, masks, kept channels) is in every checkpoint; the dense snapshot, which is the teacher and
    the table's "before", is a file in the run directory. The narrowed shapes of a resumed network are the training
    code's matter: they are read from the checkpoint's tensors.
    """

    def __init__(
        self,
        prune: PruneConfig,
        importance: ImportanceConfig,
        schedule: Schedule,
        recovery: RecoveryConfig,
        size: tuple[int, int],
        run_dir: Path,
    ):
        self.options, self.importance, self.schedule, self.recovery = prune, importance, schedule, recovery
        self.size, self.run_dir, self.dense_file = size, run_dir, run_dir / DENSE
        self.share = 0.0  # of the way to the aim
        self.masks: Masks = {}
        self.kept: dict[str, Tensor] = {}  # group -> indices in the network before pruning
        self.taken_out: tuple[str, ...] = ()

    def state_dict(self) -> dict[str, Any]:
        return {"share": self.share, "masks": self.masks, "kept": self.kept, "taken_out": self.taken_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.share, self.masks, self.kept = state["share"], state["masks"], state["kept"]
        self.taken_out = state["taken_out"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.world_size > 1 and self.options.kind == "channel":
            raise MdeError("prune=channel: not in several processes, whose copies would differ in shape; use devices=1")
        assert isinstance(module, DepthModule)
        if self.share:  # a resumed run
            self._teach(module)
        else:
            check_blocks(module.model, self.options.blocks)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, DepthModule)
        self.follow(trainer.global_step, module, trainer.datamodule, trainer)  # type: ignore[attr-defined]
        if isinstance(module.beside, Distillation):
            module.beside.weight = self.teacher_weight(trainer.global_step)
            if not module.beside.weight:
                module.beside = None

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, DepthModule)
        apply_masks(module.model, self.masks)
        if trainer.global_step == trainer.max_steps:
            self.follow(trainer.global_step, module, trainer.datamodule, trainer)  # type: ignore[attr-defined]

    def teacher_weight(self, step: int) -> float:
        """1 until the last pruning, then falling to 0 in recovery.fade steps."""
        assert self.recovery.fade is not None
        return min(1.0, max(0.0, 1 - (step - self.schedule.end) / self.recovery.fade))

    def follow(self, step: int, module: DepthModule, data: DepthData, trainer: L.Trainer | None = None) -> None:
        """Prunes `module`'s network as far as the schedule asks for at `step`, unless that was done already."""
        share = self.schedule.share(step)
        if share <= self.share:
            return
        first, self.share = not self.share, share
        if first:
            rescale(module.model)  # as the file has it, which teaches
        if first and (trainer is None or trainer.is_global_zero):
            save_model(module.model, self.dense_file)
        if trainer is not None:
            trainer.strategy.barrier()  # every process reads it
        model = module.model
        before = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
        module.eval()
        images = torch.stack([sample["image"] for sample in data.calibration(self.recovery.batchnorm_images)])
        images = images.to(next(model.parameters()).device)
        optimizer = trainer.optimizers[0] if trainer else None
        if self.options.kind == "channel":
            if first and self.options.blocks:
                seen = images[:: -(-len(images) // BLOCK_IMAGES)]
                take_out_blocks(model, seen, self.options.blocks, optimizer)
                self.taken_out = model.taken_out
            groups = channel_groups(model)
            keep = self._channels(groups, module, data, images, first)
            with corrected_statistics(model, images):
                keep_channels(model, groups, keep, optimizer)
            self.kept = kept_after(self.kept, keep)
        else:
            masks = self._masks(module, data)
            self.masks = trainer.strategy.broadcast(masks) if trainer else masks
            with corrected_statistics(model, images):
                apply_masks(model, self.masks)
        module.train()
        after = sum(int(parameter.count_nonzero()) for parameter in model.parameters())
        say(f"step {step}: pruned from {before / 1e6:.2f} M to {after / 1e6:.2f} M non-zero parameters")
        self._teach(module)

    def _channels(
        self, groups: list[ChannelGroup], module: DepthModule, data: DepthData, images: Tensor, first: bool
    ) -> dict[str, Tensor]:
        """Group -> indices that stay."""
        model, options = module.model, self.options
        layers = layers_of(model, groups, self.size)
        scores = channel_importance(model, groups, self.importance.kind, self._gradients(module, data))
        if options.scan and first:
            rows = scan(model, groups, layers, scores, data.splits.validation, images, 16)
            with dispensable("sensitivity"):
                plot_scan(rows, self.run_dir / "pictures" / "sensitivity.png")
                with atomic_file(self.run_dir / "sensitivity.json") as file:
                    file.write(json.dumps(rows, indent=1).encode())
        dense = dense_widths(model, groups)
        limits = Limits(options.multiple, options.max_share, options.limits)

        def search(aims: list[Aim]) -> dict[str, Tensor]:
            return Search(layers, groups, dense, scores, limits, options.scope, aims).run()

        if options.budget is None:
            assert options.sparsity is not None
            whole = layers_of(dense_of(model), [], self.size)  # also what was taken out counts
            return search(sparsity_aims(whole, {}, self.share * options.sparsity))
        assert options.target is not None
        if options.budget == "macs":
            total = cost(layers, dense).macs
            return search(macs_aims(total - self.share * (total - options.target)))
        return self._within_latency(model, groups, layers, search)

    def _within_latency(
        self,
        model: DepthNetwork,
        groups: list[ChannelGroup],
        layers: list[Layer],
        search: Callable[[list[Aim]], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The search for a latency. Where the engine is at hand its result is measured, and the search repeated for
        more or less: layers timed alone do not tell all (NetAdapt, Yang et al., ECCV 2018, measures for that reason).
        """
        options = self.options
        assert options.target is not None
        path = self.run_dir / "profile.json"
        if options.profile:
            write_profile(path, read_profile(Path(options.profile), model, groups, layers, self.size))
        elif not path.exists():
            write_profile(path, measure_profile(model, groups, layers, self.size, options.engine, options.threads))
        profile = read_profile(path, model, groups, layers, self.size)
        wanted = 1000 / options.target if options.budget == "fps" else options.target
        if wanted >= profile["total_ms"]:
            say(f"takes {profile['total_ms']:.1f} ms already, {wanted:.1f} ms are wanted: nothing is pruned")
            return {}
        aim = wanted = profile["total_ms"] - self.share * (profile["total_ms"] - wanted)
        found: dict[float, dict[str, Tensor]] = {}  # measured ms -> what is kept
        if options.profile:
            say(f"planned for {aim:.1f} ms by {options.profile}, not measured: measure what remains on that device")
            return search(latency_aims(profile, layers, aim))
        for _ in range(MEASUREMENTS):
            keep = search(latency_aims(profile, layers, aim))
            narrowed = copy.deepcopy(model)
            keep_channels(narrowed, groups, keep)
            before = load_model(self.dense_file)  # what was profiled
            share = time_share(narrowed, before, self.size, options.engine, options.threads)
            found[measured := share * profile["total_ms"]] = keep
            say(f"aimed at {aim:.1f} ms, measured {measured:.1f} ms, {wanted:.1f} ms are wanted")
            if 0.95 * wanted <= measured <= wanted:
                break
            aim *= 0.98 * wanted / measured  # a little less, so as to end on the right side
        within = [measured for measured in found if measured <= wanted]
        return found[max(within) if within else min(found)]

    def _masks(self, module: DepthModule, data: DepthData) -> Masks:
        model, options = module.model, self.options
        assert options.sparsity is not None
        sparsity = self.share * options.sparsity
        parameters = sum(parameter.numel() for parameter in dense_of(model).parameters())
        if options.kind == "layer":
            return layer_masks(model, sparsity, parameters, options.rule)
        gradients = self._gradients(module, data)
        scores = weight_importance(model, layer_weights(model), self.importance.kind, gradients)
        if options.kind == "two_four":
            return two_four_masks(model, scores)
        return fine_grained_masks(model, scores, sparsity, parameters, options.scope)

    def _gradients(self, module: DepthModule, data: DepthData) -> Gradients | None:
        """Of the training loss, for the criteria that need them."""
        if self.importance.kind != "taylor":
            return None
        device = next(module.model.parameters()).device
        images = ({key: value[None].to(device) for key, value in sample.items() if isinstance(value, Tensor)}
                  for sample in data.calibration(self.importance.images))  # fmt: skip
        last = partial(module.objective, step=module.max_steps)  # the loss that the run ends with

        def loss(prediction: Tensor, image: Mapping[str, Tensor]) -> Tensor:
            return last(prediction, image["depth"], image["mask"], teacher=image.get("teacher"))["loss"]

        return image_gradients(module.model, images, loss)

    def _teach(self, module: DepthModule) -> None:
        if self.recovery.kind != "distill":
            return
        if isinstance(module.beside, Distillation):
            module.beside.kept = self.kept
            return
        teacher = load_model(self.dense_file).to(next(module.model.parameters()).device)
        module.beside = Distillation(
            teacher.to(memory_format=torch.channels_last),
            module.model,
            channel_groups(module.model),
            self.kept,
            self.recovery.output,
            self.recovery.features,
        )
