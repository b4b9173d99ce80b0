import copy

import pytest
import timm.layers
import torch
from torch import nn

from mde.config import OptimizerConfig
from mde.models import build_model
from mde.training.module import DepthModule, health
from mde.training.objective import Objective
from mde.training.run import RATES


@pytest.fixture(scope="module")
def model():
    return build_model("midas_small", encoder="lite0")


def module_of(model, **options):
    config = OptimizerConfig(**RATES, warmup_steps=10)
    return DepthModule(model, Objective("l1", 0.5, 0), config, max_steps=100, **options)


def test_encoder_and_decoder_have_their_own_learning_rates_and_share_all_parameters(model):
    groups = module_of(model).configure_optimizers()["optimizer"].param_groups
    assert [group["name"] for group in groups] == ["encoder", "decoder"]
    assert groups[0]["initial_lr"] == RATES["encoder_lr"]
    assert groups[1]["initial_lr"] == RATES["decoder_lr"]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(parameter) for parameter in model.parameters()}


def test_the_learning_rate_warms_up_linearly_and_ends_at_zero_along_a_cosine(model):
    factor = module_of(model)._learning_rate_factor
    assert factor(0) == pytest.approx(1 / 11)
    assert factor(9) == pytest.approx(10 / 11)
    assert factor(10) == 1
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0, abs=1e-12)
    steps = [factor(step) for step in range(10, 101)]
    assert steps == sorted(steps, reverse=True)


def test_frozen_batchnorm_keeps_its_statistics_while_everything_else_trains(model):
    module = module_of(model, freeze_batchnorm=True)
    module.eval()
    module.train()  # as after a validation
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    module.model(torch.randn(2, 3, 64, 64)).mean().backward()
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    assert module.model.training
    assert all(parameter.grad is not None for parameter in module.model.parameters())
    model.zero_grad()


def test_a_network_built_for_evaluation_trains_in_training_mode(model):
    assert all(layer.training for layer in module_of(model.eval()).modules())


def test_health_shows_a_dead_output_and_an_inverted_sign():
    depth = torch.linspace(1, 4, 64).reshape(1, 1, 8, 8)
    mask = torch.ones_like(depth, dtype=torch.bool)
    dead = health(torch.zeros_like(depth), depth, mask)
    assert dead["dead_share"] == 1
    assert dead["output_std"] == 0
    inverted = health(depth, depth, mask)  # larger is farther
    assert inverted["negative_scale_share"] == 1
    assert health(1 / depth, depth, mask)["negative_scale_share"] == 0


def test_batchnorm_synchronised_over_gpus_keeps_the_activations(model):
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model.eval()(image)
        converted = timm.layers.convert_sync_batchnorm(copy.deepcopy(model))
        assert any(isinstance(layer, nn.SyncBatchNorm) for layer in converted.modules())
        assert torch.equal(converted.eval()(image), before)


def test_under_autocast_the_output_is_float32_and_not_in_steps_of_bfloat16(model):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = model.eval()(torch.randn(1, 3, 64, 64))
    assert prediction.dtype == torch.float32
    assert not torch.equal(prediction, prediction.bfloat16().float())
