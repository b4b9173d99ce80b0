"""Two processes on one global batch compute what one process computes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT, write_frames

# Run by each process; Lightning starts the second one itself.
SCRIPT = """
import sys
import lightning as L, torch
from lightning.pytorch.callbacks import Callback
from mde.config import OptimizerConfig
from mde.training.run import RATES
from mde.data.datamodule import DepthData
from mde.data.folder import folder_splits
from mde.models import build_model
from mde.training.module import DepthModule
from mde.training.objective import Objective

root, out, devices = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
L.seed_everything(0, verbose=False)
losses = []

class Losses(Callback):
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        losses.append(float(trainer.callback_metrics["train/loss"]))

model = build_model("midas_small", encoder="lite0").to(memory_format=torch.channels_last)
optimizer = OptimizerConfig(**RATES, warmup_steps=0)
module = DepthModule(model, Objective("trimmed", 0.5, 0), optimizer, 5, freeze_batchnorm=True)
data = DepthData(folder_splits(root), size=(64, 64), mean=model.mean, std=model.std, batch_size=4, max_steps=5,
                 workers=0, seed=0, augment=False)
# In float64: AdamW's first steps divide a gradient by its own size, which blows up rounding where it is nearly 0.
trainer = L.Trainer(accelerator="cpu", precision="64-true", devices=devices, max_steps=5,
                    strategy="ddp" if devices > 1 else "auto", use_distributed_sampler=False, logger=False,
                    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                    callbacks=[Losses()])
trainer.fit(module, data)
if trainer.is_global_zero:
    torch.save({"losses": losses, "weights": model.state_dict()}, out)
"""


def run(tmp_path: Path, root: Path, devices: int) -> dict:
    script, out = tmp_path / "five_steps.py", tmp_path / f"{devices}.pt"
    script.write_text(SCRIPT)
    subprocess.run([sys.executable, str(script), str(root), str(out), str(devices)], check=True, cwd=ROOT, timeout=300)
    return torch.load(out, weights_only=True)


def test_two_processes_give_the_losses_and_weights_of_one(tmp_path):
    root = write_frames(tmp_path / "tiny", frames=12)
    for path in sorted((root / "depth").iterdir())[:4]:  # a third has no depth: one process may see none at all
        Image.new("I;16", (64, 48)).save(path)
    one, two = run(tmp_path, root, 1), run(tmp_path, root, 2)
    assert len(one["losses"]) == 5
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-6)
    for name, weight in one["weights"].items():
        assert torch.allclose(weight, two["weights"][name], rtol=1e-5, atol=1e-7), name
