"""How long a run will take, said before it begins."""

import time

import lightning as L
import torch

from mde.training.module import DepthModule


def step_seconds(
    module: DepthModule, trainer: L.Trainer, batch_size: int, size: tuple[int, int], steps: int = 3
) -> float:
    """Seconds of one forward and backward pass on noise; weights and BatchNorm statistics stay as they were."""
    state = {name: buffer.clone() for name, buffer in module.model.named_buffers()}
    module.model.train()
    image = torch.randn(batch_size, 3, *size).contiguous(memory_format=torch.channels_last)
    depth = torch.rand(batch_size, 1, *size) + 1
    began = time.perf_counter()
    for step in range(steps + 1):
        if step == 1:
            began = time.perf_counter()  # the first pass allocates
        with trainer.precision_plugin.forward_context():
            prediction = module.model(image)
        module.objective(prediction, depth, depth > 0, step)["loss"].backward()
    elapsed = (time.perf_counter() - began) / steps
    module.zero_grad(set_to_none=True)
    for name, buffer in module.model.named_buffers():
        buffer.copy_(state[name])
    return elapsed
