"""Each file that is no checkpoint is called what it is, and nothing else is called damaged."""

import errno
import gzip
import io
import os
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from mde.errors import MdeError
from mde.models import load_model
from mde.models.checkpoints import load_official, read_checkpoint, read_tensors
from mde.models.midas_small import MidasSmall


class Doubled(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


def torchscript() -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):  # torch would rather have another format
        torch.jit.save(torch.jit.script(Doubled()), content)
    return content.getvalue()


def archive(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in names:
            file.writestr(name, "text")
    return content.getvalue()


def array() -> bytes:
    content = io.BytesIO()
    np.save(content, np.zeros(3))
    return content.getvalue()


FOREIGN = {
    "pointer": (b"version https://git-lfs.example/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "a web page"),
    "keras": (archive("config.json", "model.weights.h5"), "a Keras archive"),
    "keras 2": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "zip": (archive("midas/model.pt"), r"a ZIP archive \(midas/model.pt\); unpack it"),
    "gzip": (gzip.compress(b"weights"), "gzip; unpack it"),
    "arrays": (archive("weight.npy"), "NumPy"),
    "array": (array(), "NumPy"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(100), "a graph of TensorFlow Lite"),
    "empty": (b"", "damaged, it is empty"),
    "zeros": (bytes(5000), "damaged, it is empty"),
    "noise": (bytes(range(1, 255)), "damaged, or no checkpoint"),
    "torchscript": (torchscript(), "a TorchScript archive.*give its state_dict"),
    "safetensors": (safetensors.torch.save({"a": torch.zeros(1)}), "call it .safetensors"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_is_called_what_it_is(name: str, tmp_path: Path) -> None:
    content, words = FOREIGN[name]
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(MdeError, match=words) as error:
        load_official(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert ("damaged" in str(error.value)) == (name in ("empty", "zeros", "noise"))


@pytest.mark.parametrize("name", ["pointer", "page", "zip", "empty", "zeros", "noise"])
def test_so_is_one_that_is_named_as_ours(name: str, tmp_path: Path) -> None:
    content, words = FOREIGN[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(MdeError, match=words):
        load_model(path)
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(MdeError, match=r"written by torch\.save.*call it \.pt"):
        load_model(path)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_locked_file_is_not_called_damaged(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / name
    path.write_bytes(b"whatever")

    def locked(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", locked)
    monkeypatch.setattr(torch, "load", locked)
    with pytest.raises(MdeError, match=r"cannot be read \(Permission denied\)") as error:
        (load_model if path.suffix == ".safetensors" else load_official)(path)
    assert "damaged" not in str(error.value)


def test_a_checkpoint_of_which_a_byte_changed_is_damaged(tmp_path: Path) -> None:
    """torch writes checksums, and itself never looks at them."""
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.arange(1000.0)}, path)
    whole = path.read_bytes()
    assert torch.equal(read_checkpoint(path)["weight"], torch.arange(1000.0))
    at = whole.index(torch.arange(1000.0)[500:504].numpy().tobytes())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert not torch.equal(torch.load(path)["weight"], torch.arange(1000.0))
    with pytest.raises(MdeError, match=r"damaged, .*data/0 in it is not what was written.*copy or download it again"):
        read_checkpoint(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(MdeError, match="damaged, it breaks off"):
        read_checkpoint(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "model.module._orig_mod."])
def test_what_wraps_a_network_is_taken_off(prefix: str, tmp_path: Path) -> None:
    tensors = {"pretrained.model.head.weight": torch.ones(2), "scratch.layer1_rn.weight": torch.zeros(3)}
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in tensors.items()}}, tmp_path / "wrapped.pt")
    found = read_tensors(tmp_path / "wrapped.pt")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in tensors.items())


def test_a_checkpoint_of_our_training_points_to_the_network(tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in MidasSmall("lite0").state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "last.ckpt")
    with pytest.raises(MdeError, match=r"last\.ckpt: weights of this program.*model\.safetensors.*resume=") as error:
        load_official(tmp_path / "last.ckpt")
    assert "download" not in str(error.value)
