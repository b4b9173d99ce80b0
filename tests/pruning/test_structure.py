import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models import load_model, save_model
from mde.models.midas_small import MidasSmall
from mde.models.network import DepthNetwork
from mde.pruning.structure import IN, OUT, ChannelGroup, channel_groups, keep_channels
from tests.conftest import ROOT

STREAM = "encoder.blocks.2.1.conv_pwl"  # writes a residual stream that the decoder reads as well
EXPANSION = "encoder.blocks.2.1.conv_pw"  # writes channels that a depthwise convolution passes on
STEM = "encoder.conv_stem"
FUSED = "decoder.reduce3"  # a sum of four convolutions' outputs
HEAD = "decoder.head.conv1"


def lively(encoder: str = "lite0", seed: int = 0) -> MidasSmall:
    """A network with random weights and statistics whose output is far from constant, in eval mode."""
    torch.manual_seed(seed)
    model = MidasSmall(encoder).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        model.decoder.head.conv3.weight.mul_(100)
    return model


def images(count: int = 1, seed: int = 1, size: int = 64) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def output_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output = model(images(2))
    assert output.std() > 1e-3, "a constant output would hide every difference"
    return output


def writing(groups: list[ChannelGroup], convolution: str) -> ChannelGroup:
    """The group whose channels `convolution` writes."""
    return next(group for group in groups if (convolution, OUT) in group.members)


def some(groups: list[ChannelGroup], least: int = 1, seed: int = 0) -> dict[str, Tensor]:
    """A random choice of channels, at least so many, in each of `groups`."""
    random = torch.Generator().manual_seed(seed)
    chosen = {}
    for group in groups:
        count = int(torch.randint(min(least, group.width), group.width + 1, (), generator=random))
        chosen[group.name] = torch.randperm(group.width, generator=random)[:count].sort().values
    return chosen


def sliced(name: str, values: np.ndarray, groups: list[ChannelGroup], keep: dict[str, Tensor]) -> np.ndarray:
    """What is left of the tensor `name` after pruning."""
    for group in groups:
        for member, axis in group.members:
            if group.name in keep and name.rpartition(".")[0] == member and values.ndim > axis:
                values = np.take(values, keep[group.name].numpy(), axis)
    return values


@pytest.mark.parametrize(
    "convolutions", [[STEM], [EXPANSION], [STREAM], [FUSED], [HEAD], None], ids=lambda names: (names or ["all"])[0]
)
def test_pruning_equals_torch_prunings_own(convolutions):
    model = lively()
    groups = channel_groups(model)
    chosen = groups if convolutions is None else [writing(groups, name) for name in convolutions]
    keep = some(chosen, least=8)
    theirs = copy.deepcopy(model)
    graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=images())
    for group in chosen:
        gone = sorted(set(range(group.width)) - set(keep[group.name].tolist()))
        writer = theirs.get_submodule(next(name for name, axis in group.members if axis == OUT))
        graph.get_pruning_group(writer, graph.get_pruner_of_module(writer).prune_out_channels, gone).prune()

    keep_channels(model, groups, keep)

    expected = theirs.state_dict()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(output_of(model), output_of(theirs), rtol=0, atol=0)


def test_every_convolution_is_in_a_group_but_for_the_image_and_the_prediction():
    model = lively()
    members = [member for group in channel_groups(model) for member in group.members]
    assert len(members) == len(set(members)), "a tensor's axis belongs to one group"
    wanted = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and module.groups > 1):
            wanted.add((name, OUT))
        elif isinstance(module, nn.Conv2d):
            wanted |= {(name, OUT), (name, IN)}
    assert set(members) == wanted - {("encoder.conv_stem", IN), ("decoder.head.conv3", OUT)}


@pytest.mark.parametrize("convolution", [STEM, EXPANSION, STREAM, FUSED, HEAD])
def test_the_pruned_network_is_the_dense_one_with_those_channels_silenced(convolution):
    model = lively()
    groups = channel_groups(model)
    group = writing(groups, convolution)
    keep = some([group])
    silenced = copy.deepcopy(model)
    gone = sorted(set(range(group.width)) - set(keep[group.name].tolist()))
    with torch.no_grad():
        for member, axis in group.members:
            if axis == IN:
                silenced.get_parameter(f"{member}.weight")[:, gone] = 0
    dense = output_of(model)
    keep_channels(model, groups, keep)
    torch.testing.assert_close(output_of(model), output_of(silenced), rtol=1e-3, atol=1e-4 * float(dense.abs().max()))
    assert (output_of(model) - dense).abs().max() > 1e-3 * dense.abs().max()


def test_both_orders_of_operations_have_the_same_groups():
    ours, published = (
        [(g.name, g.width, set(g.members)) for g in channel_groups(MidasSmall("lite0", reference=reference))]
        for reference in (False, True)
    )
    assert ours == published


def test_a_group_is_named_after_the_first_convolution_that_writes_it():
    model = lively()
    order = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    for group in channel_groups(model):
        assert group.name == next(name for name in order if (name, OUT) in group.members)


def test_groups_keep_their_names_when_narrowed():
    model = lively()
    groups = channel_groups(model)
    keep = some(groups, least=2)
    keep_channels(model, groups, keep)
    assert [(g.name, g.width, set(g.members)) for g in channel_groups(model)] == [
        (g.name, len(keep[g.name]), set(g.members)) for g in groups
    ]


def test_tracing_leaves_what_is_learned_and_the_statistics_as_they_were():
    model = lively()
    frozen = {name for number, (name, _) in enumerate(model.named_parameters()) if number % 3 == 0}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model.train()
    before = copy.deepcopy(model.state_dict())
    channel_groups(model)
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tracing_leaves_the_modes_as_they_were():
    model = lively().train()
    model.encoder.bn1.eval()
    before = [module.training for module in model.modules()]
    channel_groups(model)
    assert [module.training for module in model.modules()] == before


def test_pruning_keeps_modes_hooks_and_what_is_learned():
    model = lively().train()
    frozen = {name for number, (name, _) in enumerate(model.named_parameters()) if number % 3 == 0}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    groups = channel_groups(model)
    model.train()
    keep_channels(model, groups, some(groups))
    assert {name for name, parameter in model.named_parameters() if not parameter.requires_grad} == frozen
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize(
    "change",
    [
        {"memory_format": torch.channels_last},
        {"dtype": torch.float64},
    ],
    ids=str,
)
def test_pruning_keeps_type_and_memory_format(change):
    model = lively()
    groups = channel_groups(model)
    model.to(**change)
    keep_channels(model, groups, some(groups, least=8))
    weight = model.decoder.fusion2.refine_sum.conv1.weight
    assert weight.dtype == change.get("dtype", torch.float32)
    assert weight.is_contiguous(memory_format=change.get("memory_format", torch.contiguous_format))


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """Biases and norms apart from weights, the encoder's last, so that no order is the model's own."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    return torch.optim.AdamW(
        [
            {"params": weights[::-1], "lr": 2e-3, "weight_decay": 0.1},
            {"params": others, "lr": 1e-3, "weight_decay": 0.0, "betas": (0.8, 0.95)},
        ]
    )


def backward(model: nn.Module, seed: int) -> None:
    model.zero_grad()
    model(images(2, seed)).square().mean().backward()


def test_adamw_goes_on_as_if_it_had_always_trained_the_narrowed_network():
    model = lively()
    optimizer = adamw(model)
    for seed in range(2):
        backward(model, seed)
        optimizer.step()
    groups = channel_groups(model)
    keep = some(groups, least=4)
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [[names[parameter] for parameter in options["params"]] for options in optimizer.param_groups]
    settings = [{key: value for key, value in o.items() if key != "params"} for o in optimizer.param_groups]
    moments = {
        names[parameter]: [
            sliced(names[parameter], state[key].numpy(), groups, keep) for key in ("exp_avg", "exp_avg_sq")
        ]
        for parameter, state in optimizer.state.items()
    }

    keep_channels(model, groups, keep, optimizer)

    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [[names[parameter] for parameter in o["params"]] for o in optimizer.param_groups] == order
    assert [{key: value for key, value in o.items() if key != "params"} for o in optimizer.param_groups] == settings
    assert set(optimizer.state) == set(model.parameters())
    for parameter, state in optimizer.state.items():
        for found, wanted in zip((state["exp_avg"], state["exp_avg_sq"]), moments[names[parameter]], strict=True):
            np.testing.assert_array_equal(found.numpy(), wanted)

    before = {name: parameter.detach().numpy().astype(np.float64) for name, parameter in model.named_parameters()}
    backward(model, 3)
    optimizer.step()
    for options in optimizer.param_groups:
        beta1, beta2 = options["betas"]
        for parameter in options["params"]:
            weight, (mean, square) = before[names[parameter]], moments[names[parameter]]
            gradient = parameter.grad.numpy().astype(np.float64)
            mean = beta1 * mean + (1 - beta1) * gradient
            square = beta2 * square + (1 - beta2) * gradient**2
            weight = weight * (1 - options["lr"] * options["weight_decay"])
            weight -= options["lr"] * mean / (1 - beta1**3) / (np.sqrt(square / (1 - beta2**3)) + options["eps"])
            np.testing.assert_allclose(parameter.detach().numpy(), weight, rtol=1e-4, atol=2e-6)


def test_an_optimizer_without_a_step_yet_takes_the_new_parameters():
    model = lively()
    optimizer = adamw(model)
    groups = channel_groups(model)
    keep_channels(model, groups, some(groups), optimizer)
    assert {id(p) for o in optimizer.param_groups for p in o["params"]} == {id(p) for p in model.parameters()}
    assert not optimizer.state


def test_a_pruned_network_can_be_pruned_again():
    model = lively()
    groups = channel_groups(model)
    twice, once = copy.deepcopy(model), copy.deepcopy(model)
    first = some(groups, least=8)
    keep_channels(twice, groups, first)
    narrowed = channel_groups(twice)
    second = some(narrowed, seed=1)
    keep_channels(twice, narrowed, second)
    keep_channels(once, groups, {name: first[name][second[name]] for name in first})
    assert all(torch.equal(tensor, once.state_dict()[name]) for name, tensor in twice.state_dict().items())
    torch.testing.assert_close(twice(images()), once(images()), rtol=0, atol=0)


def test_a_network_one_channel_wide_runs_and_is_traced():
    model = lively()
    groups = channel_groups(model)
    keep_channels(model, groups, {group.name: torch.tensor([group.width - 1]) for group in groups})
    assert model(images()).shape == (1, 1, 64, 64)
    assert {group.width for group in channel_groups(model)} == {1}


def test_losing_the_last_channel_is_refused_and_changes_nothing():
    model = lively()
    groups = channel_groups(model)
    before = copy.deepcopy(model.state_dict())
    keep = some(groups) | {writing(groups, STREAM).name: torch.tensor([], dtype=torch.long)}
    with pytest.raises(MdeError, match="last channel"):
        keep_channels(model, groups, keep)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Small(DepthNetwork):
    name = "small"

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(8 if fault == "repeats" else 4, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        if self.fault == "repeats":
            one = self.one(image)
            return self.last(torch.cat([one, one], dim=1))
        raise RuntimeError("one line\nand another" if self.fault == "fails at length" else "a fault")


@pytest.mark.parametrize(
    "fault",
    [
        "repeats",
        "fails",
        "fails at length",
    ],
)
def test_a_network_that_cannot_be_traced_is_an_error_of_one_line(fault):
    with pytest.raises(MdeError, match="prune=fine_grained") as caught:
        channel_groups(Small(fault))
    assert "\n" not in str(caught.value)


def test_a_pruned_networks_file_needs_no_torch_pruning(tmp_path: Path):
    model = lively()
    groups = channel_groups(model)
    keep_channels(model, groups, some(groups, least=2))
    save_model(model, tmp_path / "pruned.safetensors")
    loaded = load_model(tmp_path / "pruned.safetensors")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    torch.save({"image": images(), "output": model(images()).detach()}, tmp_path / "expected.pt")
    program = (
        "import sys; sys.modules['torch_pruning'] = None\n"
        "import torch; from mde.models import load_model\n"
        "torch.set_num_threads(1)\n"
        "expected = torch.load('expected.pt', weights_only=True)\n"
        "with torch.no_grad(): output = load_model('pruned.safetensors')(expected['image'])\n"
        "assert output.std() > 1e-3 and torch.allclose(output, expected['output'], rtol=1e-6, atol=1e-6)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
