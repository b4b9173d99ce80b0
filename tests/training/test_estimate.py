import lightning as L
import torch

from mde.config import OptimizerConfig
from mde.models import build_model
from mde.training.estimate import TRIAL_STEPS, seconds, step_seconds
from mde.training.module import DepthModule
from mde.training.objective import Objective
from mde.training.run import RATES


class Frames(torch.utils.data.Dataset):
    def __getitem__(self, _):
        image = torch.randn(3, 32, 32)
        return {"image": image, "depth": 1 + image[:1].abs(), "mask": torch.ones(1, 32, 32, dtype=torch.bool)}

    def __len__(self):
        return 5


def test_a_step_and_its_data_are_timed_on_copies_that_are_thrown_away(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("mde.training.estimate.time.perf_counter", lambda: clock[0])
    model = build_model("midas_small", encoder="lite0")
    module = DepthModule(model, Objective("l1", 0.5, 0), OptimizerConfig(**RATES, warmup_steps=0), max_steps=10)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    def taking(function, duration):
        def slower(*arguments, **options):
            clock[0] += duration
            return function(*arguments, **options)

        return slower

    monkeypatch.setattr(torch.optim.AdamW, "step", taking(torch.optim.AdamW.step, 2))
    monkeypatch.setattr(Frames, "__getitem__", taking(Frames.__getitem__, 0.25))
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert step_seconds(module, trainer, Frames(), batch_size=4, workers=0) == 2 + 4 * 0.25
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())


def test_the_first_call_does_not_count(monkeypatch):
    clock, calls = [0.0], []
    monkeypatch.setattr("mde.training.estimate.time.perf_counter", lambda: clock[0])

    def work():
        clock[0] += 1 if calls else 100
        calls.append(None)

    assert seconds(work, TRIAL_STEPS) == 1
    assert len(calls) == TRIAL_STEPS + 1
