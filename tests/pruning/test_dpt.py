"""Pruning of transformers: heads, MLP width, decoder. What holds for every network is in the other files."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mde.export import deployable
from mde.models import load_model, save_model
from mde.models.counts import multiply_adds
from mde.models.dpt import Dpt, DptHybrid, DptLarge
from mde.pruning.channels import Limits, Search, sparsity_aims
from mde.pruning.cost import cost, dense_widths, layers_of
from mde.pruning.importance import channel_importance, image_gradients, weight_importance
from mde.pruning.layer_latency import measure_profile
from mde.pruning.masks import apply_masks, fine_grained_masks, layer_weights, two_four_masks
from mde.pruning.structure import IN, OUT, ChannelGroup, channel_groups, keep_channels
from tests.pruning.test_structure import images, output_of

HEAD = 64  # channels of one attention head
SIZE = (64, 96)


@pytest.fixture(scope="module", params=[DptHybrid, DptLarge], ids=lambda network: network.name)
def model(request: pytest.FixtureRequest) -> Dpt:
    """Two blocks, lively; not to be changed."""
    torch.manual_seed(0)
    model = request.param(blocks=2).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
        model.decoder.head.conv3.weight.mul_(100)
        model.decoder.head.conv3.bias.fill_(3)
    return model


@pytest.fixture(scope="module")
def groups(model: Dpt) -> list[ChannelGroup]:
    return channel_groups(model)


def some(groups: list[ChannelGroup]) -> dict[str, Tensor]:
    """A third of each group's channels, at random."""
    random = torch.Generator().manual_seed(3)
    return {g.name: torch.randperm(g.width, generator=random)[: g.width // 3].sort().values for g in groups}


def narrowed(model: Dpt, groups: list[ChannelGroup], keep: dict[str, Tensor]) -> Dpt:
    smaller = copy.deepcopy(model)
    keep_channels(smaller, groups, keep)
    return smaller


def test_heads_mlp_width_and_decoder_are_groups_and_nothing_that_is_normalised_together(
    model: Dpt, groups: list[ChannelGroup]
) -> None:
    heads = [group for group in groups if group.block > 1]
    assert [(g.name, g.block) for g in heads] == [(f"encoder.blocks.{i}.attn.qkv", HEAD) for i in (0, 1)]
    width = model.encoder.pos_embed.shape[2]
    assert {g.width for g in heads} == {width // HEAD}
    encoder = {group.name: group.width for group in groups if group.name.startswith("encoder")}
    mlps = {f"encoder.blocks.{i}.mlp.fc1": 4 * width for i in (0, 1)}
    assert encoder == {g.name: g.width for g in heads} | mlps
    written = {name for group in groups for name, axis in group.members if axis == OUT}
    left = {
        name for name, m in model.decoder.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    }
    assert {f"decoder.{name}" for name in left} - written == {"decoder.head.conv3"}
    normalised = [name for name, module in model.named_modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))]
    assert not written & set(normalised)


def test_taking_channels_away_does_what_reading_zeros_for_them_does(model: Dpt, groups: list[ChannelGroup]) -> None:
    keep = some(groups)
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for group in groups:
            gone = sorted(set(range(group.width)) - set(keep[group.name].tolist()))
            for name, axis in group.members:
                if axis != IN:
                    continue
                layer = silenced.get_submodule(name)
                for channel in gone:
                    of = slice(channel * group.block, (channel + 1) * group.block)
                    if isinstance(layer, nn.ConvTranspose2d):
                        layer.weight[of] = 0
                    else:
                        layer.get_parameter("weight")[:, of] = 0
    smaller = output_of(narrowed(model, groups, keep))
    assert torch.allclose(smaller, output_of(silenced), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(smaller, output_of(model), rtol=1e-2)


def test_the_cost_of_any_widths_is_what_the_network_built_with_them_has(model: Dpt, groups: list[ChannelGroup]) -> None:
    layers, dense = layers_of(model, groups, SIZE), dense_widths(model, groups)
    assert dense == {group.name: group.width for group in groups}
    keep = some(groups)
    smaller = narrowed(model, groups, keep)
    for network, widths in (model, dense), (smaller, {name: len(kept) for name, kept in keep.items()}):
        found = cost(layers, widths)
        assert found.parameters == sum(parameter.numel() for parameter in network.parameters())
        assert found.macs == multiply_adds(network, SIZE)
    again = channel_groups(smaller)
    assert dense_widths(smaller, again) == dense
    assert {group.name: group.width for group in again} == {name: len(kept) for name, kept in keep.items()}


def test_elements_moved_are_those_that_layers_read_and_write(model: Dpt, groups: list[ChannelGroup]) -> None:
    sizes: dict[str, int] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, args, output, name=name: sizes.__setitem__(name, args[0].numel() + output.numel())
        )
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    layers, widths = layers_of(model, groups, SIZE), dense_widths(model, groups)
    for hook in hooks:
        hook.remove()
    # A stride larger than the kernel reads every second pixel alone; the map is counted whole, as elsewhere.
    assert {layer.name: layer.moved(widths) for layer in layers if layer.area} == sizes


def test_a_pruned_network_comes_back_pruned(model: Dpt, groups: list[ChannelGroup], tmp_path: Path) -> None:
    smaller = narrowed(model, groups, some(groups))
    save_model(smaller, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert output_of(loaded).equal(output_of(smaller))
    assert loaded.get_submodule("encoder.blocks.0.attn").num_heads == groups[0].width // 3


@pytest.mark.parametrize("kind", ["l1", "l2"])
def test_magnitudes_of_heads_equal_a_slow_reference(model: Dpt, groups: list[ChannelGroup], kind: str) -> None:
    heads = groups[0]
    attention = model.encoder.blocks[0].attn
    qkv, proj = (layer.weight.detach().double().numpy() for layer in (attention.qkv, attention.proj))
    size = (lambda values: np.mean(values**2)) if kind == "l2" else (lambda values: np.mean(np.abs(values)))
    found = channel_importance(model, [heads], kind)[heads.name]
    writes, reads = [], []
    for head in range(heads.width):
        rows = [part * heads.width * HEAD + head * HEAD + i for part in range(3) for i in range(HEAD)]
        writes.append(size(qkv[rows]))
        reads.append(size(proj[:, head * HEAD : (head + 1) * HEAD]))
    expected = np.array(writes) / sum(writes) + np.array(reads) / sum(reads)
    assert np.allclose(found.numpy(), expected, rtol=1e-4)


def test_taylor_is_the_losss_squared_slope_when_a_head_fades(model: Dpt, groups: list[ChannelGroup]) -> None:
    twin = copy.deepcopy(model).double()
    image = {"image": images(size=32).double()}

    def loss(prediction: Tensor, _: object) -> Tensor:
        return (prediction**2).mean()

    chosen = [groups[0], next(g for g in groups if g.name.startswith("decoder.reassemble3"))]
    scores = channel_importance(twin, chosen, "taylor", image_gradients(twin, [image], loss))
    step = 1e-6
    for group in chosen:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                other = copy.deepcopy(twin)
                for name, axis in group.members:
                    if axis == IN:
                        weight = other.get_submodule(name).get_parameter("weight")
                        weight[:, 2 * group.block : 3 * group.block] *= 1 + sign * step
                values.append(float(loss(other(image["image"]), None)))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(scores[group.name][2]) == pytest.approx(slope**2, rel=1e-3)


def test_a_wanted_sparsity_is_hit(model: Dpt, groups: list[ChannelGroup]) -> None:
    layers, dense = layers_of(model, groups, SIZE), dense_widths(model, groups)
    scores = channel_importance(model, groups, "l1")
    aims = sparsity_aims(layers, dense, 0.4)
    keep = Search(layers, groups, dense, scores, Limits(8, 0.9, {}), "global", aims).run()
    smaller = narrowed(model, groups, keep)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (smaller, model)]
    assert counts[0] / counts[1] == pytest.approx(0.6, abs=0.005)
    assert any(".attn." in name for name in keep)
    assert all(len(kept) % 8 == 0 for name, kept in keep.items() if ".attn." not in name)
    assert output_of(smaller).shape == (2, 1, 64, 64)


def test_single_weights_go_from_linear_layers_too() -> None:
    twin = DptLarge(blocks=1)
    before = sum(int(parameter.count_nonzero()) for parameter in twin.parameters())
    scores = weight_importance(twin, layer_weights(twin), "l1")
    parameters = sum(parameter.numel() for parameter in twin.parameters())
    apply_masks(twin, fine_grained_masks(twin, scores, 0.5, parameters, "global"))
    after = sum(int(parameter.count_nonzero()) for parameter in twin.parameters())
    assert after == pytest.approx(parameters / 2, abs=parameters - before + 1)  # norms and biases start at zero
    for name in ("encoder.blocks.0.mlp.fc1.weight", "decoder.reassemble3.readout.weight"):
        assert twin.get_parameter(name).eq(0).any()


def test_zeros_of_a_sparse_hybrid_are_zeros_in_what_is_deployed() -> None:
    hybrid = DptHybrid(blocks=1)
    masks = two_four_masks(hybrid, weight_importance(hybrid, layer_weights(hybrid), "l1"))
    apply_masks(hybrid, masks)
    deployed = deployable(hybrid)
    assert len(masks) > 20
    for name, mask in masks.items():
        assert deployed.get_parameter(name)[~mask].eq(0).all()


def test_every_layer_with_weights_can_be_timed_alone() -> None:
    torch.manual_seed(0)
    model = DptLarge(blocks=1).eval()
    groups = channel_groups(model)
    keep_channels(model, groups, {group.name: torch.arange(max(1, group.width // 16)) for group in groups})
    groups = channel_groups(model)
    layers = layers_of(model, groups, (32, 32))
    profile = measure_profile(model, groups, layers, (32, 32), "onnxruntime", 1)
    assert set(profile["layers"]) == {layer.name for layer in layers if layer.area}
    assert all(ms > 0 for table in profile["layers"].values() for row in table["ms"] for ms in row)
