"""Network files: our own (safetensors with JSON metadata) and the official ones. Nothing here runs a file's code."""

import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mde.atomic_file import atomic_file
from mde.errors import MdeError
from mde.models.midas_small import ENCODERS, MidasSmall
from mde.models.network import DepthNetwork
from mde.models.registry import find_network

METADATA_KEY = "mde"
RESERVED = ("network", "options", "mean", "std")

# Our names -> the official ones. There the encoder is cut into four stages, with timm's names inside them.
OFFICIAL_NAMES = {
    r"encoder\.conv_stem\.": "pretrained.layer1.0.",
    r"encoder\.bn1\.": "pretrained.layer1.1.",
    r"encoder\.blocks\.0\.": "pretrained.layer1.3.",
    r"encoder\.blocks\.1\.": "pretrained.layer1.4.",
    r"encoder\.blocks\.2\.": "pretrained.layer2.0.",
    r"encoder\.blocks\.3\.": "pretrained.layer3.0.",
    r"encoder\.blocks\.4\.": "pretrained.layer3.1.",
    r"encoder\.blocks\.5\.": "pretrained.layer4.0.",
    r"encoder\.blocks\.6\.": "pretrained.layer4.1.",
    r"decoder\.reduce([1-4])\.": r"scratch.layer\1_rn.",
    r"decoder\.fusion([1-4])\.refine_skip\.": r"scratch.refinenet\1.resConfUnit1.",
    r"decoder\.fusion([1-4])\.refine_sum\.": r"scratch.refinenet\1.resConfUnit2.",
    r"decoder\.fusion([1-4])\.project\.": r"scratch.refinenet\1.out_conv.",
    r"decoder\.head\.conv1\.": "scratch.output_conv.0.",
    r"decoder\.head\.conv2\.": "scratch.output_conv.2.",
    r"decoder\.head\.conv3\.": "scratch.output_conv.4.",
}
# The deepest fusion block has no skip, so its first residual unit never runs.
NEVER_EXECUTED = tuple(f"scratch.refinenet4.resConfUnit1.conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))


def save_model(model: DepthNetwork, path: str | os.PathLike[str], **metadata: Any) -> None:
    """Writes `model` (dense or pruned) to `path` as safetensors, atomically.

    The file's metadata holds the network's name and options, its mean and std, and `metadata` (anything JSON can hold).
    MdeError when the file cannot be written, or when `metadata` uses one of those names.
    """
    taken = [key for key in RESERVED if key in metadata]
    if taken:
        raise MdeError(f"{path}: metadata may not be called {', '.join(taken)}; choose another name")
    header = {"network": model.name, "options": model.options, "mean": model.mean, "std": model.std, **metadata}
    # A copy of each tensor: safetensors refuses shared memory and channels_last strides.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    content = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)})
    with atomic_file(Path(path)) as file:
        file.write(content)


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save_model` wrote beside the tensors: network, options, mean, std and the caller's own entries."""
    return _read_own(Path(path), with_tensors=False)[0]


def trained_size(checkpoint: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of the images that `checkpoint` (as `build_model`'s weights) was trained on; 256 x 256 for
    official networks, whose files do not say.
    """
    if Path(checkpoint).suffix != ".safetensors":
        return 256, 256
    height, width = read_metadata(checkpoint).get("input", (256, 256))
    return height, width


def load_model(path: str | os.PathLike[str], *, reference: bool | None = None) -> DepthNetwork:
    """The network that `save_model` wrote, in eval mode, pruned if it was: widths are read from the tensors.

    reference  order of operations, see `MidasSmall`; None takes the file's

    MdeError when the file is missing, damaged, not ours, or of an unknown network.
    """
    path = Path(path)
    header, tensors = _read_own(path, with_tensors=True)
    options = dict(header["options"])
    if reference is not None:
        options["reference"] = reference
    try:
        network = find_network(header["network"])
        with torch.device("meta"):
            model = network(**options)
    except (MdeError, TypeError) as error:
        raise MdeError(f"{path}: written by another version of this program ({error}); update it") from error
    narrow_to(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    fill(model, tensors, path)
    check_runs(model, path)
    return model.eval()


def load_official(path: str | os.PathLike[str], *, reference: bool = False) -> MidasSmall:
    """MiDaS v2.1 small from an official `.pt` file, in eval mode; the encoder is read from the shapes.

    Every tensor is used, or is one of NEVER_EXECUTED. MdeError when the file is missing, damaged, carries code, or
    holds another network (the message names the tensors).
    """
    path = Path(path)
    official = read_tensors(path)
    problem = looks_like(official)
    if problem:
        raise MdeError(f"{path}: {problem}; midas_small takes midas_v21_small_256.pt or a file written by this program")
    tensors = {name: tensor for name, tensor in official.items() if name not in NEVER_EXECUTED}
    found = {(name, tensor.shape) for name, tensor in tensors.items()}
    with torch.device("meta"):
        models = [MidasSmall(encoder, reference) for encoder in reversed(ENCODERS)]

    def differences(model: MidasSmall) -> int:
        return len(found ^ {(official_name(name), tensor.shape) for name, tensor in model.state_dict().items()})

    model = min(models, key=differences)
    fill(model, tensors, path, official_name)
    return model.eval()


def official_name(our_name: str) -> str:
    """What the official checkpoints call a tensor of `MidasSmall`."""
    for pattern, replacement in OFFICIAL_NAMES.items():
        name, matches = re.subn(f"^{pattern}", replacement, our_name)
        if matches:
            return name
    raise KeyError(our_name)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch file by name, without running code; a `model` or `state_dict` around is taken off."""
    if not path.is_file():
        raise MdeError(f"{path}: no such file; give a checkpoint's path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():  # how torch words a class or function that it refuses
            raise MdeError(
                f"{path}: refused, it holds Python objects beside tensors; save its state_dict alone"
            ) from error
        raise MdeError(f"{path}: not a PyTorch checkpoint; download it again") from error
    except Exception as error:  # bytes that are no checkpoint can fail anywhere in the reader
        raise MdeError(f"{path}: damaged or not a PyTorch checkpoint; download it again") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise MdeError(f"{path}: holds no tensors by name; give a state_dict saved with torch.save")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()):
        raise MdeError(f"{path}: holds other things than tensors; give a state_dict saved with torch.save")
    return dict(content)


def looks_like(names: Mapping[str, Tensor]) -> str | None:
    """What a checkpoint with these names is, if it is not MiDaS small."""
    if any(name.startswith("pretrained.model.") for name in names):
        return "this is a DPT network (MiDaS v3, vision transformer), not MiDaS small"
    if any(re.match(r"pretrained\.layer\d(\.\d+)+\.conv1\.", name) for name in names):
        return "this is MiDaS v2 large (ResNeXt-101), not MiDaS small"
    if not any(name.startswith(("pretrained.", "scratch.")) for name in names):
        return f"this is not a MiDaS checkpoint (its tensors are {_some(list(names))})"
    return None


def narrow_to(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Gives every convolution and BatchNorm of `model` the widths in `shapes` (names as in its state_dict), in place.

    Grouped convolutions are taken as depthwise. Parameters whose shape changes are new and hold no values yet. Names
    that are missing from `shapes` and shapes that no width explains are left alone: filling the model reports them.
    """
    for name, module in model.named_modules():
        shape = shapes.get(f"{name}.weight")
        if isinstance(module, nn.Conv2d) and shape is not None and shape[2:] == module.kernel_size:
            depthwise = module.groups > 1
            module.out_channels = shape[0]
            module.in_channels, module.groups = (shape[0], shape[0]) if depthwise else (shape[1], 1)
        elif isinstance(module, nn.BatchNorm2d) and shape is not None and len(shape) == 1:
            module.num_features = shape[0]
        else:
            continue
        for kind, old in list(module.named_parameters(recurse=False)):
            new = (shape[0], *old.shape[1:]) if old.ndim == 1 else shape
            setattr(module, kind, nn.Parameter(old.new_empty(new)))
        for kind, old in list(module.named_buffers(recurse=False)):
            if old.ndim == 1:
                setattr(module, kind, old.new_empty(shape[0]))


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
    except (SafetensorError, OSError) as error:
        raise MdeError(f"{path}: damaged or not a safetensors file; write or copy it again") from error
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


def _some(names: list[str]) -> str:
    rest = len(names) - 3
    return ", ".join(names[:3]) + (f" and {rest} more" if rest > 0 else "")
