import copy

import pytest
import torch

from mde.models import build_model
from mde.report.record import describe_model


@pytest.mark.parametrize("name", ["fastdepth", "guidedepth"])
def test_describing_a_network_in_training_leaves_modes_and_statistics_as_they_were(name):
    model = build_model(name).train()
    model.encoder.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    assert describe_model(model, (64, 64))["name"] == name
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
