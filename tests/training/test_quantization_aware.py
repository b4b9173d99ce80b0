"""train.py quantize=qat, from its callback to the file that deploy.py makes of it."""

import json
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mde.config import OptimizerConfig
from mde.errors import MdeError
from mde.models import load_model, save_model
from mde.quantization.fake import FakeQuantized, convolutions, read_scales
from mde.training.module import BatchNorm, DepthModule
from mde.training.objective import Objective
from mde.training.quantization_aware import QuantizationAware, build_quantization
from mde.training.run import RATES
from tests.export import random_network
from tests.test_config import composed

torch.set_num_threads(1)


class Images:
    """What the callback asks of the training data."""

    def calibration(self, count: int) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        return [{"image": torch.randn(3, 32, 32, generator=generator)} for _ in range(count)]


def begun(tmp_path: Path, callback: QuantizationAware | None = None) -> tuple[DepthModule, QuantizationAware]:
    module = DepthModule(random_network(reference=False), Objective("trimmed", 0.5, 0), OptimizerConfig(**RATES), 3)
    with torch.no_grad():
        module.model.decoder.reduce1.weight[::2] = 0  # as pruning could leave it
    callback = callback or QuantizationAware(2, tmp_path)
    callback.follow(0, module, Images())  # type: ignore[arg-type]
    return module, callback


def test_every_convolution_trains_rounded_with_batchnorm_folded_and_at_rest(tmp_path: Path) -> None:
    module, callback = begun(tmp_path)
    layers = convolutions(module.model)
    assert all(isinstance(layer, FakeQuantized) for layer in layers.values())
    assert callback.scales.keys() == layers.keys()
    norms = [norm for norm in module.modules() if isinstance(norm, BatchNorm)]
    assert module.training
    assert all(not norm.training and not norm.running_mean.any() for norm in norms)
    before = load_model(callback.dense_file)
    assert torch.equal(before.encoder.conv_stem.weight, random_network().encoder.conv_stem.weight)
    image = Images().calibration(1)[0]["image"][None]
    module.model(image).sum().backward()
    assert all(layer.weight.grad is not None and layer.weight.grad.any() for layer in layers.values())


def test_zeros_stay_zero(tmp_path: Path) -> None:
    module, _ = begun(tmp_path)
    optimizer = module.configure_optimizers()["optimizer"]
    weight = module.model.decoder.reduce1.weight
    before = weight.detach().clone()
    for sample in Images().calibration(3):
        optimizer.zero_grad()
        module.model(sample["image"][None]).square().sum().backward()
        optimizer.step()
    assert not weight[::2].any()
    assert (weight[1::2] != before[1::2]).any()


def test_a_checkpoint_s_scales_are_kept_and_its_weights_not_folded_again(tmp_path: Path) -> None:
    module, callback = begun(tmp_path)
    other = QuantizationAware(2, tmp_path / "other")
    scales = {name: 2 * scale for name, scale in callback.scales.items()}
    other.load_state_dict(json.loads(json.dumps({"scales": scales})))
    resumed, _ = begun(tmp_path, other)
    assert other.scales == scales
    assert resumed.model.encoder.conv_stem.input_scale == scales["encoder.conv_stem"]  # type: ignore[union-attr]
    assert torch.equal(resumed.model.encoder.conv_stem.weight, random_network().encoder.conv_stem.weight)
    assert not torch.equal(module.model.encoder.conv_stem.weight, resumed.model.encoder.conv_stem.weight)
    assert not other.dense_file.exists()


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["quantize=int8"], "quantize=int8: needs no training; give it to deploy.py"),
        (["quantize=qat", "prune=channel", "sparsity=0.5", "weights=a.safetensors"], "prune first"),
        (["quantize=qat", "weights=imagenet"], "quantize=qat with weights=imagenet: fine-tunes a trained network"),
        (["quantize=qat", "weights=none"], "quantize=qat with weights=none: fine-tunes a trained network"),
        (["quantize=qat", "weights=midas", "quantize.frames=0"], "quantize.frames=0: must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_one_line(overrides: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(MdeError, match=line):
        build_quantization(composed(*overrides), tmp_path)


def test_its_schedule_is_its_own_unless_asked_otherwise() -> None:
    config = composed("quantize=qat", "optimizer.decoder_lr=1")
    assert config.optimizer.encoder_lr < RATES["encoder_lr"] / 10
    assert config.trainer.max_steps < composed().trainer.max_steps
    assert config.optimizer.decoder_lr == 1


class OneFrame(L.LightningDataModule):
    """The same frame at every step, so that a resumed run needs to skip none."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        depth = torch.rand(1, 32, 32, generator=generator) + 1
        self.frame = {"image": torch.randn(3, 32, 32, generator=generator), "depth": depth, "mask": depth > 0}

    def train_dataloader(self) -> DataLoader:
        return DataLoader([self.frame] * 4, 1)  # type: ignore[arg-type]

    def calibration(self, count: int) -> list[dict[str, Tensor]]:
        return Images().calibration(count)


def fitted(run_dir: Path, until: int, checkpoint: Path | None = None) -> tuple[L.Trainer, QuantizationAware]:
    """A run of two steps, stopped after `until`."""
    module = DepthModule(
        random_network(reference=False), Objective("trimmed", 0.5, 0), OptimizerConfig(**RATES, warmup_steps=0), 2
    )
    callback = QuantizationAware(2, run_dir)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=until,
        callbacks=[callback],
        default_root_dir=run_dir,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=OneFrame(), ckpt_path=str(checkpoint) if checkpoint else None, weights_only=True)
    return trainer, callback


def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path: Path) -> None:
    whole, expected = fitted(tmp_path / "whole", until=2)
    stopped, _ = fitted(tmp_path / "stopped", until=1)
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    resumed, found = fitted(tmp_path / "resumed", until=2, checkpoint=tmp_path / "last.ckpt")
    assert resumed.global_step == 2
    assert found.scales == expected.scales
    weights, early = resumed.lightning_module.state_dict(), stopped.lightning_module.state_dict()
    for name, tensor in whole.lightning_module.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
    assert not torch.equal(weights["model.encoder.conv_stem.weight"], early["model.encoder.conv_stem.weight"])


def test_what_was_trained_is_deployed_with_its_scales(run_train, frames_folder: Path, tmp_path: Path) -> None:
    weights = tmp_path / "trained.safetensors"
    save_model(random_network(reference=False, border="replicate"), weights, input=[64, 64])
    data, sizes = ["data=folder", f"data.root={frames_folder}"], ["size=[64,64]", "batch_size=2", "workers=0"]
    options = [*data, *sizes, f"weights={weights}", "quantize=qat", "logger=csv", f"hydra.run.dir={tmp_path / 'qat'}"]
    done = run_train(*options, steps=1)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "qat/metrics.json").read_text())
    found, before = (entry["quality"]["tiny"]["rmse"] for entry in (record, record["before"]))
    assert found != before
    checkpoint = tmp_path / "qat/model.safetensors"
    command = [f"checkpoint={checkpoint}", "quantize=qat", *data, f"hydra.run.dir={tmp_path / 'deployed'}"]
    done = run_train(*command, "threads=1", script="deploy.py", steps=1)
    assert done.returncode == 0, done.stderr[-2000:]
    entry = json.loads((tmp_path / "deployed/metrics.json").read_text())["deployment"]
    assert entry["trained_scales"] == len(read_scales(checkpoint))
    assert read_scales(tmp_path / "deployed/model.safetensors") == read_scales(checkpoint)
    assert entry["parity"]["largest"] > 1e-7
