import resource

import pytest
import torch

from mde.errors import MdeError
from mde.training.callbacks import SafeCheckpointIO


def test_a_full_disk_leaves_the_checkpoint_before_it_intact_and_nothing_else(tmp_path):
    path = tmp_path / "last.ckpt"
    io = SafeCheckpointIO()
    io.save_checkpoint({"step": 1, "weights": torch.ones(10)}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the system refuses to write more, as on a full disk
    try:
        with pytest.raises(MdeError, match=r"last\.ckpt"):
            io.save_checkpoint({"step": 2, "weights": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(path, weights_only=True)["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
