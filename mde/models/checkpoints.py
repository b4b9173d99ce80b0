"""Network files: our own (safetensors with JSON metadata) and the official ones. Nothing here runs a file's code."""

import hashlib
import inspect
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from timm.layers import Attention
from torch import Tensor, nn

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.models.diagnosis import AGAIN, not_a_network
from mde.models.midas_small import ENCODERS
from mde.models.network import DepthNetwork
from mde.models.official import LICENCE, NEVER_EXECUTED, TRAINED_ON, network_of, official_name, transformer_blocks
from mde.models.registry import DEFAULT, find_network
from mde.models.residual import take_out
from mde.models.scale import input_factors, parameter_factors, powers_of_two
from mde.models.shipped import located

METADATA_KEY = "mde"
SCALES = "activation_scales"  # in the metadata, where INT8 was trained: convolution -> scale of its input
RESERVED = ("network", "options", "mean", "std", "taken_out")
# What wraps a network puts before all names: DataParallel, torch.compile, and the attribute of a LightningModule.
WRAPPERS = ("module.", "_orig_mod.", "model.")


def save_model(model: DepthNetwork, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Writes `model` (dense or pruned) to `path` as safetensors, atomically; its maps, and what is in `metadata` of
    them, at a scale that half precision holds (mde.models.scale).

    The file's metadata holds the network's name and options, its mean and std, and `metadata` (anything JSON can hold);
    and checksums of these and of the tensors, by which damage is known.
    MdeError when the file cannot be written, or when `metadata` uses one of those names.
    """
    taken = [key for key in RESERVED if key in metadata]
    if taken:
        raise MdeError(f"{path}: metadata may not be called {', '.join(taken)}; choose another name")
    header = {"network": model.name, "options": model.options, "mean": model.mean, "std": model.std, **metadata}
    header |= {"taken_out": model.taken_out} if model.taken_out else {}
    powers = powers_of_two(model)
    if SCALES in metadata:
        inputs = input_factors(model, powers)
        header[SCALES] = {name: scale * inputs.get(name, 1.0) for name, scale in metadata[SCALES].items()}
    factors = parameter_factors(model, powers)
    # A copy of each tensor: safetensors refuses shared memory and channels_last strides.
    tensors = {
        name: multiplied(tensor.detach().cpu(), factors.get(name, 1.0)).clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    text = json.dumps(header)
    content = safetensors.torch.save(tensors, {METADATA_KEY: text} | checksums(text, tensors))
    with atomic_file(Path(path)) as file:
        file.write(content)


def multiplied(tensor: Tensor, factor: float) -> Tensor:
    """`tensor` times a power of two, to the last bit: in float32 where half precision has no room for a digit."""
    if factor == 1:
        return tensor
    wide = tensor.float() * factor
    narrow = wide.to(tensor.dtype)
    return narrow if torch.equal(narrow.float(), wide) else wide


def checksums(header: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """SHA-256 of the metadata, and of the tensors with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return {"header_sha256": hashlib.sha256(header.encode()).hexdigest(), "tensors_sha256": digest.hexdigest()}


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_model` wrote beside the tensors: network, options, mean, std and the caller's own entries; of an
    official file what is known of it. MdeError for another file.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_own(path, with_tensors=False)[0]
    model, _ = _match_official(path, reference=True)
    header = {"network": model.name, "options": model.options, "mean": model.mean, "std": model.std}
    return header | {"input": list(model.published_size), "trained_on": TRAINED_ON, "licence": LICENCE}


def provenance(weights: str | os.PathLike[str]) -> dict[str, Any]:
    """What `weights` (as `build_model` takes them) say of their training, to be handed on."""
    if weights == "midas":
        return {"trained_on": TRAINED_ON, "licence": LICENCE}
    weights = located(weights)
    if not Path(weights).suffix:
        return {"trained_on": weights}
    return {name: entry for name, entry in read_metadata(weights).items() if name not in RESERVED}


def trained_size(checkpoint: str | os.PathLike[str], network: str | None = None) -> tuple[int, int]:
    """Height and width of the images that `checkpoint` (as `build_model`'s weights) was trained on; what was published
    where it does not say.

    network  as `build_model`'s name, where `checkpoint` is no file
    """
    checkpoint = located(checkpoint)
    about: dict[str, Any] = read_metadata(checkpoint) if Path(checkpoint).suffix else {"network": network or DEFAULT}
    size = about.get("input", find_network(about["network"]).published_size)
    if not isinstance(size, list | tuple) or [type(side) for side in size] != [int, int] or min(size) < 1:
        raise MdeError(f"{checkpoint}: says input {size!r}, not height and width; write it again with save_model")
    return size[0], size[1]


def load_model(
    path: str | os.PathLike[str], *, reference: bool | None = None, border: str | None = None
) -> DepthNetwork:
    """The network that `save_model` wrote, in eval mode, pruned if it was: widths are read from the tensors.

    reference  order of operations, see `Fusion`; None takes the file's
    border     likewise, see `Head`; networks without it take none

    MdeError when the file is missing, damaged, not ours, or of an unknown network.
    """
    path = Path(path)
    header, tensors = _read_own(path, with_tensors=True)
    try:
        network = find_network(header["network"])
        with torch.device("meta"):
            model = network(**header["options"] | chosen(network, reference=reference, border=border))
        take_out(model, header.get("taken_out", []))
    except (MdeError, TypeError, AttributeError) as error:
        raise MdeError(f"{path}: written by another version of this program ({error}); update it") from error
    narrow_to(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    fill(model, tensors, path)
    check_runs(model, path)
    return model.eval()


def chosen(network: type[DepthNetwork], **options: Any) -> dict[str, Any]:
    """Those of `options` that `network` has and that are not None."""
    known = inspect.signature(network).parameters
    return {name: value for name, value in options.items() if name in known and value is not None}


def load_official(path: str | os.PathLike[str], *, reference: bool = False, border: str | None = None) -> DepthNetwork:
    """The network in an official `.pt` file (MiDaS v2.1 small, v3 DPT-Hybrid or DPT-Large), in eval mode. Which one it
    is, with which encoder or how many blocks, is read from names and shapes.

    Every tensor is used, or is one of NEVER_EXECUTED. MdeError when the file is missing, damaged, carries code, or
    holds another network (the message names the tensors).
    """
    path = Path(path)
    model, tensors = _match_official(path, reference, border)
    fill(model, tensors, path, partial(official_name, model.name))
    return model.eval()


def _match_official(path: Path, reference: bool, border: str | None = None) -> tuple[DepthNetwork, dict[str, Tensor]]:
    """The network whose tensors an official file has, without weights (on the meta device), and those tensors."""
    official = read_tensors(path)
    name = network_of(official)
    if name is None:
        raise MdeError(f"{path}: {_other(official)}")
    tensors = {key: tensor for key, tensor in official.items() if key not in NEVER_EXECUTED[name]}
    found = {(key, tensor.shape) for key, tensor in tensors.items()}
    network = find_network(name)
    if name == "midas_small":
        choices: list[dict[str, Any]] = [{"encoder": encoder} for encoder in reversed(ENCODERS)]
    else:
        choices = [{"blocks": max(1, transformer_blocks(official))}]
    with torch.device("meta"):
        own = chosen(network, reference=reference, border=border)
        models = [network(**options, **own) for options in choices]
    file_name = partial(official_name, name)

    def differences(model: DepthNetwork) -> int:
        return len(found ^ {(file_name(key), tensor.shape) for key, tensor in model.state_dict().items()})

    return min(models, key=differences), tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by name, without running code; a `model` or `state_dict` around is taken off."""
    content = read_checkpoint(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise MdeError(f"{path}: holds no tensors by name; give a state_dict saved with torch.save")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise MdeError(f"{path}: holds other things than tensors; give a state_dict saved with torch.save")
    return _unwrapped(content)


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without what WRAPPERS put before all of them."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})
    return dict(tensors)


def read_checkpoint(path: Path, mmap: bool = False) -> Any:
    """What torch.save wrote, without running code.

    mmap  leaves the tensors in the file until they are used

    MdeError when the file is missing, damaged, carries code, or is something else: the message says what.
    """
    if not path.is_file():
        raise MdeError(f"{path}: no such file; give a checkpoint's path")
    try:
        damaged = _damaged_member(path)
        if damaged is None:
            with warnings.catch_warnings(action="ignore"):  # of TorchScript, which it then refuses
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # how torch words a class or function that it refuses
            raise MdeError(
                f"{path}: refused, it holds Python objects beside tensors; save its state_dict alone"
            ) from error
        raise not_a_network(path) from error
    except Exception as error:  # bytes that are no checkpoint can fail anywhere in the reader
        raise not_a_network(path) from error
    raise MdeError(f"{path}: damaged, {damaged} in it is not what was written (by its checksum); {AGAIN}")


def _damaged_member(path: Path) -> str | None:
    """The first member of an archive of torch.save whose checksum is another; torch writes them, and never looks."""
    if not zipfile.is_zipfile(path):  # of torch before 1.6
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def narrow_to(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives every convolution, linear layer and BatchNorm of `model` the widths in `shapes` (names as in its
    state_dict), in place; an attention's number of heads follows from its linear layer.

    Grouped convolutions are taken as depthwise. Parameters whose shape changes are new and hold no values yet. Names
    that are missing from `shapes` and shapes that no width explains are left alone: filling the model reports them.
    """
    for name, module in model.named_modules():
        if isinstance(module, Attention) and (rows := shapes.get(f"{name}.qkv.weight")):
            module.attn_dim = rows[0] // 3
            module.num_heads = module.attn_dim // module.head_dim
        shape = shapes.get(f"{name}.weight")
        written = None if shape is None else _take_widths(module, shape)
        if shape is None or written is None:
            continue
        for kind, old in list(module.named_parameters(recurse=False)):
            new = (written, *old.shape[1:]) if old.ndim == 1 else shape
            setattr(module, kind, nn.Parameter(old.new_empty(new)))
        for kind, old in list(module.named_buffers(recurse=False)):
            if old.ndim == 1:
                setattr(module, kind, old.new_empty(written))


def _take_widths(module: nn.Module, shape: tuple[int, ...]) -> int | None:
    """Makes `module` one whose weight has `shape`; returns how many channels it writes, None where it cannot be."""
    if isinstance(module, nn.Conv2d) and shape[2:] == module.kernel_size:
        depthwise = module.groups > 1
        module.out_channels = shape[0]
        module.in_channels, module.groups = (shape[0], shape[0]) if depthwise else (shape[1], 1)
    elif isinstance(module, nn.ConvTranspose2d) and shape[2:] == module.kernel_size:
        module.in_channels, module.out_channels = shape[:2]
        return module.out_channels
    elif isinstance(module, nn.Linear) and len(shape) == 2:
        module.out_features, module.in_features = shape
    elif isinstance(module, nn.BatchNorm2d) and len(shape) == 1:
        module.num_features = shape[0]
    else:
        return None
    return shape[0]


def fill(
    model: DepthNetwork, tensors: Mapping[str, Tensor], source: Path, file_name: Callable[[str], str] = str
) -> None:
    """Puts every one of `tensors` into `model`; MdeError names the unexpected, missing and wrongly shaped ones.

    file_name  turns the model's name of a tensor into the one that `tensors` uses
    """
    own = {file_name(name): tensor for name, tensor in model.state_dict().items()}
    unexpected = [name for name in tensors if name not in own]
    missing = [name for name in own if name not in tensors]
    wrong = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    problems = {"unexpected": unexpected, "missing": missing, "wrong shape": wrong}
    if any(problems.values()):
        text = "; ".join(f"{kind}: {_some(names)}" for kind, names in problems.items() if names)
        raise MdeError(f"{source}: does not fit {model.name}: {text}; give a checkpoint of this network")
    # Copied: a tensor may still be a view of its file. Assigned: the model may be on the meta device.
    copies = {name: tensors[file_name(name)].to(tensor.dtype, copy=True) for name, tensor in model.state_dict().items()}
    model.load_state_dict(copies, assign=True)


def check_runs(model: DepthNetwork, source: Path) -> None:
    """One small image through `model`: widths that do not fit each other are found here, not in training."""
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, 32, 32))
    except RuntimeError as error:
        raise MdeError(f"{source}: its layers do not fit each other; write the file again with save_model") from error


def _read_own(path: Path, with_tensors: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise MdeError(f"{path}: no such file; give a network file's path")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
        found = checksums(metadata.get(METADATA_KEY, ""), tensors)
    except Exception as error:  # bytes that are no safetensors file can fail anywhere in the reader
        raise not_a_network(path) from error
    if not with_tensors:
        del found["tensors_sha256"]
    if any(metadata.get(name, value) != value for name, value in found.items()):  # older files have none
        raise MdeError(f"{path}: damaged, its contents are not what was written (by its checksum); {AGAIN}")
    try:
        header = json.loads(metadata[METADATA_KEY])
        known = isinstance(header["network"], str) and isinstance(header["options"], dict)
    except (KeyError, TypeError, ValueError):
        known = False
    if not known:
        raise MdeError(
            f"{path}: says nothing of its network, another program wrote it; give a file written by save_model"
        )
    return header, tensors


def _other(tensors: Mapping[str, Tensor]) -> str:
    """What a checkpoint of no network here is, and what to give instead."""
    if all(name.startswith(("encoder.", "decoder.")) for name in tensors):
        return (
            "weights of this program's training, which do not say of which network; give the run's model.safetensors, "
            "or continue the run with resume=RUN_DIRECTORY"
        )
    if any(name.startswith("pretrained.") for name in tensors):
        what = "this is MiDaS v2 large (ResNeXt-101)"
    else:
        what = f"this is not a MiDaS checkpoint (its tensors are {_some(list(tensors))})"
    return (
        f"{what}; give midas_v21_small_256.pt, dpt_hybrid-midas-501f0c75.pt, dpt_large-midas-2f21e586.pt "
        "or a file written by this program"
    )


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
