import resource

import pytest
import torch

from mde.errors import MdeError
from mde.models import build_model
from mde.models.midas_small import MidasSmall
from mde.training.callbacks import SafeCheckpointIO
from mde.training.run import RESUMED, narrow_like


@pytest.fixture(scope="module")
def checkpoint():
    """What a run of MiDaS small leaves, as far as it is looked at before Lightning goes on from it."""
    state = {f"model.{name}": tensor for name, tensor in MidasSmall("lite0").half().state_dict().items()}
    callbacks = {"Pruner": {"step": 3}, "theirs": [1]}
    return {name: kind() for name, kind in RESUMED.items()} | {"state_dict": state, "callbacks": callbacks}


def test_the_checkpoint_of_the_same_network_is_gone_on_from(checkpoint, tmp_path):
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    narrow_like(MidasSmall("lite0"), tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("foreign", "words"),
    [
        (lambda own: own["state_dict"], "no checkpoint of this program's training"),
        (lambda own: [own], "no checkpoint of this program's training"),
        (lambda own: own | {"callbacks": None}, "it has no callbacks"),
        (lambda own: {key: own[key] for key in own if key != "optimizer_states"}, "it has no optimizer_states"),
        (lambda own: own | {"state_dict": {"weight": torch.ones(1)}}, "of another network than midas_small"),
        (lambda own: own | {"hyper_parameters": Code()}, "refused, it holds Python objects"),
    ],
    ids=["state_dict", "list", "callbacks", "optimizer", "network", "pickled"],
)
def test_another_checkpoint_is_one_line_before_anything_is_trained(checkpoint, foreign, words, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(foreign(checkpoint), path)
    with pytest.raises(MdeError, match=words) as error:
        narrow_like(build_model("midas_small", encoder="lite0"), path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


class Code:
    pass


def test_a_checkpoint_of_which_a_byte_changed_is_not_gone_on_from(checkpoint, tmp_path):
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint(checkpoint, path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        place = int(share * len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(MdeError, match=r"last\.ckpt: damaged.*by its checksum"):
            narrow_like(MidasSmall("lite0"), path)


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
