import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models import build_model, load_model, read_metadata, save_model, trained_size
from mde.models.checkpoints import load_official, provenance
from mde.models.dpt import Dpt, DptHybrid, DptLarge, StandardisedConv2d
from mde.models.official import NEVER_EXECUTED, official_name

NETWORKS: list[type[Dpt]] = [DptHybrid, DptLarge]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda network: network.name)
def small(request: pytest.FixtureRequest) -> Dpt:
    """Two blocks, an output that is far from constant, in eval mode; not to be changed."""
    torch.manual_seed(0)
    model = request.param(blocks=2).eval()
    with torch.no_grad():
        model.decoder.head.conv3.weight.mul_(100)
        model.encoder.pos_embed.normal_()
        for module in model.modules():
            if isinstance(module, nn.GroupNorm):
                module.weight.fill_(1)  # timm starts residual branches at zero: nothing would come through them
    return model


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def output_of(model: nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        output = model(image)
    assert output.std() > 1e-3
    return output


@pytest.mark.parametrize(("network", "executed"), [(DptHybrid, 120_753_921), (DptLarge, 341_258_433)])
def test_names_shapes_and_parameter_count_are_the_published_ones(
    network: type[Dpt], executed: int, shared: Path
) -> None:
    published = json.loads((shared / "reference" / f"{network.name}_state.json").read_text())
    with torch.device("meta"):
        model = network()
    ours = {official_name(network.name, name): list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: shape for name, shape in published.items() if name not in NEVER_EXECUTED[network.name]}
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(counts.values()) - counts["encoder.pos_embed"] - counts["encoder.cls_token"] == executed


def test_every_parameter_is_executed_and_learns_but_for_the_last_norm(small: Dpt) -> None:
    called = set()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.add(name)) for name, module in small.named_modules()
    ]
    gradients = torch.autograd.grad(
        small(images(2, 3, 64, 64)).sum(), [p for p in small.parameters() if p.requires_grad]
    )
    for hook in hooks:
        hook.remove()
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert {name for name, p in small.named_parameters() if not p.requires_grad} == {
        "encoder.norm.weight",
        "encoder.norm.bias",
    }
    owners = {name.rpartition(".")[0] for name, _ in small.named_parameters()} - {"encoder"}
    assert owners <= called


def test_convolving_before_upsampling_changes_nothing(small: Dpt) -> None:
    reference = type(small)(blocks=2, reference=True).eval()
    reference.load_state_dict(small.state_dict())
    image = images(1, 3, 64, 96)
    first, second = output_of(small, image), output_of(reference, image)
    assert (first - second).abs().max() <= 1e-5 * second.max()


@pytest.mark.parametrize("size", [(32, 32), (64, 160)])
def test_inverse_depth_has_the_images_size(small: Dpt, size: tuple[int, int]) -> None:
    output = output_of(small, images(2, 3, *size)) if size != (32, 32) else small(images(2, 3, *size))
    assert output.shape == (2, 1, *size)
    assert output.min() >= 0


def test_positions_are_interpolated_between_the_learned_ones() -> None:
    model = DptLarge(blocks=1)
    rows, columns = 4, 10
    with torch.no_grad():
        grid = model.encoder.pos_embed[0, 1:].normal_().view(24, 24, -1).numpy()
        positions = model.encoder._positions(torch.zeros(1, 1024, rows, columns))[0]
    expected = np.empty((rows, columns, 1024), np.float32)
    for row in range(rows):
        for column in range(columns):
            y, x = (row + 0.5) * 24 / rows - 0.5, (column + 0.5) * 24 / columns - 0.5
            top, left = int(y), int(x)
            for down in (0, 1):
                for right in (0, 1):
                    weight = (y - top if down else top + 1 - y) * (x - left if right else left + 1 - x)
                    value = weight * grid[min(top + down, 23), min(left + right, 23)]
                    expected[row, column] = value if down == right == 0 else expected[row, column] + value
    assert np.allclose(positions[1:].numpy().reshape(expected.shape), expected, atol=1e-5)
    assert positions[0].equal(model.encoder.pos_embed[0, 0])


def test_the_published_size_takes_the_positions_as_they_were_learned() -> None:
    model = DptLarge(blocks=1)
    assert model.encoder._positions(torch.zeros(1, 1024, 24, 24)).equal(model.encoder.pos_embed)


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1), (1, 2)])
def test_standardised_convolutions_are_timms(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    theirs = timm.layers.StdConv2dSame(6, 5, kernel, stride=stride, eps=1e-8)
    ours = StandardisedConv2d.of(theirs)
    image = images(2, 6, 16, 24)
    assert torch.allclose(ours(image), theirs(image), atol=1e-5)
    kernels = ours.standardised().flatten(1)
    assert kernels.mean(1).abs().max() < 1e-6
    assert torch.allclose(kernels.std(1, correction=0), torch.ones(5), atol=1e-5)


def test_the_hybrids_pooling_is_timms() -> None:
    image = images(2, 4, 16, 24)
    pool = DptHybrid(blocks=1).encoder.patch_embed.backbone.stem.pool
    assert pool(image).equal(timm.layers.create_pool2d("max", 3, 2, padding="same")(image))


def test_nothing_in_the_hybrid_pads_by_the_inputs_size() -> None:
    with torch.device("meta"):
        kinds = {type(module).__name__ for module in DptHybrid().modules()}
    assert not any("Same" in kind for kind in kinds)


def official(model: Dpt) -> dict[str, Tensor]:
    """A small network's state as an official file has it."""
    state = {official_name(model.name, name): tensor for name, tensor in model.state_dict().items()}
    return state | {name: torch.zeros(1) for name in NEVER_EXECUTED[model.name]}


def test_an_official_file_says_which_network_it_is(small: Dpt, tmp_path: Path) -> None:
    path = tmp_path / "official.pt"
    torch.save(official(small), path)
    for name in (small.name, None):
        model = build_model(name, weights=path)
        assert type(model) is type(small)
        assert model.options == small.options
        assert all(value.equal(small.state_dict()[key]) for key, value in model.state_dict().items())
    about = read_metadata(path)
    assert (about["network"], about["options"]["blocks"], about["input"]) == (small.name, 2, [384, 384])
    assert provenance(path).keys() == {"input", "trained_on", "licence"}
    assert trained_size(path) == trained_size("midas", small.name) == (384, 384)
    with pytest.raises(MdeError, match=f"holds {small.name}, not midas_small; set model={small.name}"):
        build_model("midas_small", weights=path)
    with pytest.raises(MdeError, match=r"model\.blocks=3.*holds blocks=2"):
        build_model(None, weights=path, blocks=3)
    with pytest.raises(MdeError, match=f"model.encoder: {small.name} has no such option"):
        build_model(None, weights=path, encoder="lite0")


def test_an_official_file_of_another_transformer_is_refused(tmp_path: Path) -> None:
    state = official(DptLarge(blocks=1))
    state["pretrained.model.blocks.0.attn.q_bias"] = torch.zeros(1024)
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(MdeError, match=r"unexpected: pretrained\.model\.blocks\.0\.attn\.q_bias"):
        load_official(tmp_path / "other.pt")


def test_saving_and_loading_gives_the_same_network(small: Dpt, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(small, path)
    loaded = load_model(path)
    image = images(1, 3, 64, 64)
    assert output_of(loaded, image).equal(output_of(small, image))
    assert loaded.options == {"blocks": 2, "reference": False}
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in small.parameters()]


def test_imagenet_weights_go_into_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    create, created = timm.create_model, []

    def offline(name: str, pretrained: bool, **options: Any) -> Any:
        if not pretrained:
            return create(name, **options)
        created.append(create(name, depth=2))
        return created[0]

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(DptHybrid, "published_blocks", 2)
    model = build_model("dpt_hybrid", weights="imagenet")
    expected = created[0].state_dict()
    state = model.get_submodule("encoder").state_dict()
    assert all(value.equal(expected[name]) for name, value in state.items())
    assert set(expected) - set(state) == {"head.weight", "head.bias"}


@pytest.mark.parametrize("blocks", [0, -1])
def test_a_transformer_without_blocks_is_refused(blocks: int) -> None:
    with pytest.raises(MdeError, match="at least 1"):
        build_model("dpt_large", blocks=blocks)


def test_other_shapes_are_refused_with_the_rule(small: Dpt) -> None:
    with pytest.raises(MdeError, match=f"{small.name} takes.*multiples of 32"):
        small(torch.zeros(1, 3, 48, 64))


def test_tracing_gives_the_same_output_and_warns_of_no_fixed_branch(
    small: Dpt, recwarn: pytest.WarningsRecorder
) -> None:
    image = images(1, 3, 32, 64)
    with torch.no_grad():
        traced = torch.jit.trace(small, image, check_trace=False)
        assert torch.allclose(traced(image), small(image), rtol=1e-4)
    warned = [warning for warning in recwarn if issubclass(warning.category, torch.jit.TracerWarning)]
    # torch's own group_norm asks whether there is more than one value in a group, which no size here leaves open.
    assert {Path(warning.filename).name for warning in warned} <= {"functional.py"}
