"""The smallest network, data set, loss and board that somebody could add: each trains, saves and deploys as ours do."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.core.config_store import ConfigStore
from hydra.types import RunMode
from torch import Tensor, nn

from mde.builders import BUILDERS
from mde.config import DeviceConfig
from mde.data.sample import Sample, Splits
from mde.models import load_model
from mde.models.network import DepthNetwork, Scaled, closing_relu
from mde.models.registry import NETWORKS
from mde.speed.boards import estimated
from mde.training import train
from mde.training.objective import TERMS
from tests.conftest import TINY
from tests.test_config import composed

torch.set_num_threads(1)


class Plain(DepthNetwork):
    """A convolution that looks and one that predicts."""

    name, mean, std, taps = "plain", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), ("encoder",)
    options: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.decoder = nn.Conv2d(8, 1, 3, padding=1)

    def _predict(self, image: Tensor) -> Tensor:
        inverse_depth = closing_relu(self.decoder(F.relu(self.encoder(image))), self.training)
        return F.interpolate(inverse_depth, scale_factor=2.0, mode="bilinear")

    def scaled(self) -> list[Scaled]:
        return [Scaled("encoder", "", "seen"), Scaled("decoder", "seen", "predicted")]


class Ramps:
    """Brighter is nearer."""

    name, cap = "ramps", 10.0

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        depth = torch.linspace(1, 4 + index, 64).expand(1, 64, 64).contiguous()
        image = (255 / depth).to(torch.uint8).expand(3, 64, 64).contiguous()
        return Sample(image, depth, depth > 0, self.name, str(index))


def ramps_splits(frames: int) -> Splits:
    return Splits("ramps", Ramps(), Ramps())


@dataclass
class RampsData:
    _target_: str = f"{__name__}.ramps_splits"
    frames: int = 4


def cubed_loss(prediction: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, (prediction - target).abs() ** 3, 0).mean()


def test_a_network_a_data_set_and_a_loss_of_one_s_own_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(NETWORKS, Plain.name, Plain)
    monkeypatch.setitem(BUILDERS["data"], RampsData._target_, RampsData)
    ConfigStore.instance().store(group="data", name="ramps", node=RampsData)
    monkeypatch.setitem(TERMS, "cubed", (cubed_loss, "none"))
    (run_dir := tmp_path / "run").mkdir()
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(run_dir)), mode=RunMode.RUN)
    monkeypatch.setattr("mde.training.run.HydraConfig", SimpleNamespace(get=lambda: hydra))
    options = ["data=ramps", "model.name=plain", "loss.data=cubed", "experiment=quick", *TINY, "trainer.max_steps=2"]
    train(composed(*options))
    record = json.loads((run_dir / "metrics.json").read_text())
    assert record["status"] == "complete"
    assert record["quality"]["ramps"]["frames"] == 4
    assert record["latency"].keys() == {"onnxruntime", "openvino"}
    assert isinstance(load_model(run_dir / "model.safetensors"), Plain)


def test_a_board_is_its_data_sheet() -> None:
    board = DeviceConfig(name="mine", peak={"fp32": 10.0}, bandwidth=1.0)  # 10^9 operations and bytes a second
    entry = estimated(board, Plain().eval(), (64, 64), "fp32")
    assert entry["status"] == "estimate"
    bytes_moved = 4 * (3 * 64 * 64)  # the image alone takes that long
    assert entry["p50_ms"] > bytes_moved / 1e9 * 1000
