import errno
import json
import os
import pickle
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from mde.errors import MdeError
from mde.models import load_model, read_metadata, save_model, trained_size
from mde.models.checkpoints import load_official, provenance
from mde.models.midas_small import MidasSmall
from mde.models.official import NEVER_EXECUTED, official_name
from tests.models.conftest import official_state

IMAGE = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> MidasSmall:
    torch.manual_seed(0)
    model = MidasSmall("lite0")
    with torch.no_grad():
        model.decoder.head.conv3.weight.mul_(100)  # a fresh network's output is nearly constant
        model(torch.randn(2, 3, 32, 32))  # moves the running statistics off their start
    return model.eval()


def output_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        output = model(IMAGE)
    assert output.std() > 1e-3
    return output


def keep(layer: Any, out: list[int] | None = None, into: list[int] | None = None) -> None:
    """Slices a Conv2d or BatchNorm2d by hand to the channels `out` and, of its input, `into`."""
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups > 1
    for name, value in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        if value.ndim == 0:
            continue
        if out is not None:
            value = value[out]
        if into is not None and value.ndim == 4 and not depthwise:
            value = value[:, into]
        is_parameter = isinstance(getattr(layer, name), nn.Parameter)
        setattr(layer, name, nn.Parameter(value.detach().clone()) if is_parameter else value.clone())
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = layer.weight.shape[0]
    else:
        layer.out_channels = layer.weight.shape[0]
        layer.in_channels = layer.out_channels if depthwise else layer.weight.shape[1]
        layer.groups = layer.out_channels if depthwise else 1


def prune_by_hand(model: Any) -> None:
    """Half the hidden channels of a residual unit, of a strided and of an unstrided inverted residual."""
    unit = model.decoder.fusion4.refine_sum
    half = list(range(0, 512, 2))
    keep(unit.conv1, out=half)
    keep(unit.conv2, into=half)
    for block in (model.encoder.blocks[1][0], model.encoder.blocks[3][1]):
        hidden = list(range(1, block.conv_dw.out_channels, 2))
        keep(block.conv_pw, out=hidden)
        keep(block.bn1, out=hidden)
        keep(block.conv_dw, out=hidden)
        keep(block.bn2, out=hidden)
        keep(block.conv_pwl, into=hidden)


def test_saving_and_loading_gives_the_same_network(model: MidasSmall, tmp_path: Path) -> None:
    save_model(model, tmp_path / "new" / "model.safetensors")
    loaded = load_model(tmp_path / "new" / "model.safetensors")
    assert torch.equal(output_of(loaded), output_of(model))
    assert isinstance(loaded, MidasSmall)
    assert not loaded.training
    assert loaded.options == model.options
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_a_pruned_network_comes_back_pruned(model: MidasSmall, tmp_path: Path) -> None:
    dense = sum(p.numel() for p in model.parameters())
    prune_by_hand(model)
    before = output_of(model)
    save_model(model, tmp_path / "pruned.safetensors")
    loaded = load_model(tmp_path / "pruned.safetensors")
    assert torch.equal(output_of(loaded), before)
    assert sum(p.numel() for p in loaded.parameters()) == sum(p.numel() for p in model.parameters()) < dense
    widths = {name: (m.in_channels, m.out_channels) for name, m in loaded.named_modules() if isinstance(m, nn.Conv2d)}
    assert widths["decoder.fusion4.refine_sum.conv1"] == (512, 256)
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert widths["encoder.blocks.1.0.conv_dw"] == (48, 48)


def test_the_order_of_operations_is_kept_and_can_be_chosen(model: MidasSmall, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(MidasSmall("lite0", reference=True), path)
    assert load_model(path).options == {"encoder": "lite0", "reference": True, "border": "zeros"}
    assert load_model(path, reference=False).options == {"encoder": "lite0", "reference": False, "border": "zeros"}


def test_a_file_that_says_nothing_of_its_border_is_as_published(model: MidasSmall, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    about = {"network": "midas_small", "options": {"encoder": "lite0", "reference": False}}
    safetensors.torch.save_file(tensors, path, {"mde": json.dumps(about)})
    assert load_model(path).options["border"] == "zeros"


def test_channels_last_weights_can_be_saved(model: MidasSmall, tmp_path: Path) -> None:
    before = output_of(model)
    save_model(model.to(memory_format=torch.channels_last), tmp_path / "model.safetensors")
    assert torch.allclose(output_of(load_model(tmp_path / "model.safetensors")), before, atol=1e-5)


def test_metadata_holds_the_network_and_the_callers_entries(model: MidasSmall, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors", input=[160, 224], parent="weights/other")
    assert read_metadata(tmp_path / "model.safetensors") == {
        "network": "midas_small",
        "options": {"encoder": "lite0", "reference": False, "border": "zeros"},
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "input": [160, 224],
        "parent": "weights/other",
    }


def test_metadata_cannot_replace_the_networks_own(model: MidasSmall, tmp_path: Path) -> None:
    with pytest.raises(MdeError, match="mean"):
        save_model(model, tmp_path / "model.safetensors", mean=[0, 0, 0])


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    model: MidasSmall, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MdeError, match=r"model\.safetensors.*No space left.*free disk space"):
        save_model(model, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_is_refused(model: MidasSmall, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    whole = path.read_bytes()
    for size in (0, 5, 1000, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(MdeError, match=r"model\.safetensors: damaged"):
            load_model(path)


def test_a_file_of_which_a_byte_changed_is_refused(tmp_path: Path) -> None:
    """Or says the same: where the byte is only padding, or a name that nobody looks for."""
    path, rng = tmp_path / "model.safetensors", random.Random(0)
    save_model(MidasSmall("lite0").half(), path, licence="MIT", input=[96, 128])
    whole, tensors, about = path.read_bytes(), load_model(path).state_dict(), read_metadata(path)
    header = 8 + int.from_bytes(whole[:8], "little")
    text = whole.index(b'"__metadata__"')
    places = [*rng.choices(range(header), k=20), *rng.choices(range(text, text + 600), k=10), header, len(whole) - 1]
    refused = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            assert read_metadata(path) == about
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_model(path).state_dict().items())
        except MdeError:
            refused += 1
    assert refused > len(places) // 2


def test_what_was_written_without_checksums_opens(tmp_path: Path) -> None:
    path, model = tmp_path / "model.safetensors", MidasSmall("lite0").half()
    header = json.dumps({"network": "midas_small", "options": model.options})
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(tensors, path, {"mde": header})
    assert all(torch.equal(t.half(), tensors[name].half()) for name, t in load_model(path).state_dict().items())


def test_a_size_that_is_none_is_refused(tmp_path: Path) -> None:
    for size in (5, [64], [64, "a"], [0, 64], None):
        save_model(MidasSmall("lite0").half(), tmp_path / "model.safetensors", input=size)
        with pytest.raises(MdeError, match=r"model\.safetensors: .*input"):
            trained_size(tmp_path / "model.safetensors")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for read in (load_model, read_metadata, load_official):
        with pytest.raises(MdeError, match="no such file"):
            read(tmp_path / "none.safetensors")


def test_what_weights_say_of_their_training_is_handed_on(model: MidasSmall, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors", input=[96, 128], licence="MIT", teachers=[])
    assert provenance(tmp_path / "model.safetensors") == {"input": [96, 128], "licence": "MIT", "teachers": []}
    assert provenance("midas")["licence"].startswith("MIT")
    assert provenance("none") == {"trained_on": "none"}
    assert trained_size(tmp_path / "model.safetensors") == (96, 128)
    assert trained_size("imagenet") == (256, 256)


def write_header(path: Path, tensors: dict[str, Tensor], header: str) -> None:
    safetensors.torch.save_file(tensors, path, {"mde": header})


def test_another_programs_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(MdeError, match="another program"):
        load_model(path)
    for header in ("no json", "[]", "{}", '{"network": 3, "options": {}}'):
        write_header(path, {"a": torch.zeros(1)}, header)
        with pytest.raises(MdeError, match="another program"):
            read_metadata(path)


@pytest.mark.parametrize(
    "header",
    [
        '{"network": "midas_smal", "options": {}}',
        '{"network": "midas_small", "options": {"encoder": "lite7"}}',
        '{"network": "midas_small", "options": {"depth": 3}}',
    ],
)
def test_an_unknown_network_or_option_in_a_file_is_refused(header: str, tmp_path: Path) -> None:
    write_header(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, header)
    with pytest.raises(MdeError, match=r"model\.safetensors: written by another version"):
        load_model(tmp_path / "model.safetensors")


def test_tensors_that_do_not_fit_each_other_are_refused(model: MidasSmall, tmp_path: Path) -> None:
    keep(model.decoder.fusion4.refine_sum.conv1, out=list(range(256)))  # and conv2 still takes 512
    header = '{"network": "midas_small", "options": {"encoder": "lite0"}}'
    write_header(tmp_path / "model.safetensors", model.state_dict(), header)  # as another program would
    with pytest.raises(MdeError, match="do not fit each other"):
        load_model(tmp_path / "model.safetensors")


@pytest.mark.parametrize("shape", [(512, 512, 1, 1), (512,)])
def test_tensors_of_another_kernel_are_refused_by_name(
    model: MidasSmall, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    header = '{"network": "midas_small", "options": {"encoder": "lite0"}}'
    tensors = {**model.state_dict(), "decoder.fusion4.refine_sum.conv1.weight": torch.zeros(shape)}
    write_header(path, tensors, header)
    with pytest.raises(MdeError, match=r"wrong shape: decoder\.fusion4\.refine_sum\.conv1\.weight"):
        load_model(path)


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("encoder", ["lite0", "lite4"])
def test_official_files_load_and_name_their_own_encoder(encoder: str, wrap: str | None, tmp_path: Path) -> None:
    state = official_state(encoder)
    content: Any = state if wrap is None else {wrap: state, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
    torch.save(content, tmp_path / "official.pt")
    model = load_official(tmp_path / "official.pt")
    assert model.encoder_name == encoder
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], state[official_name("midas_small", name)]) for name in loaded)
    assert len(loaded) + len(NEVER_EXECUTED["midas_small"]) == len(state)


def test_an_official_file_with_wrong_tensors_is_refused_by_their_names(tmp_path: Path) -> None:
    state = official_state("lite0")
    del state["scratch.output_conv.4.bias"]
    state["scratch.layer1_rn.weight"] = torch.zeros(64, 8, 3, 3)
    state.update({f"scratch.extra{i}.weight": torch.zeros(1) for i in range(5)})
    torch.save(state, tmp_path / "official.pt")
    with pytest.raises(MdeError) as error:
        load_official(tmp_path / "official.pt")
    message = str(error.value)
    assert "unexpected: scratch.extra0.weight, scratch.extra1.weight, scratch.extra2.weight and 2 more" in message
    assert "missing: scratch.output_conv.4.bias" in message
    assert "wrong shape: scratch.layer1_rn.weight (64, 8, 3, 3) for (64, 24, 3, 3)" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pretrained.model.blocks.0.attn.qkv.weight", "does not fit dpt_large"),
        ("pretrained.layer2.0.conv1.weight", "ResNeXt"),
        ("pretrained.layer1.4.0.conv1.weight", "ResNeXt"),
        ("conv1.weight", "not a MiDaS checkpoint"),
    ],
)
def test_another_networks_checkpoint_is_named(name: str, words: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(MdeError, match=words):
        load_official(tmp_path / "other.pt")


class Hostile:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_carries_code_is_refused_and_not_run(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Hostile()}, "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(MdeError, match=r"bad\.pt: refused") as error:
        load_official("bad.pt")
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, official_file: Path) -> None:
    path = tmp_path / "bad.pt"
    with official_file.open("rb") as file:
        truncated = file.read(1_000_000)
    for content in (
        b"",
        b"<html>404</html>",
        truncated,
        pickle.dumps([1, 2], protocol=2),
        struct.pack("<Q", 3) + b"\x00" * 100,
    ):
        path.write_bytes(content)
        with pytest.raises(MdeError, match=r"bad\.pt: ") as error:
            load_official(path)
        assert "\n" not in str(error.value)
    for value in ([1], {}, {"weight": 1}, {1: torch.zeros(1)}, torch.zeros(1)):
        torch.save(value, path)
        with pytest.raises(MdeError, match="state_dict"):
            load_official(path)
