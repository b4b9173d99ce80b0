"""The official checkpoints: which network one is, and what it calls the tensors of ours."""

import re
from collections.abc import Iterable

# Of the official weights, for those who learn from them.
TRAINED_ON = "MiDaS's mix of sets"
LICENCE = "MIT (isl-org/MiDaS, isl-org/DPT); some of the sets that they were trained on allow no commercial use"

# Our names -> the official ones. The encoder of MiDaS small is cut into four stages there, with timm's names inside
# them; a transformer is whole.
_DECODER = {
    r"decoder\.reassemble([1-4])\.readout\.": r"pretrained.act_postprocess\1.0.project.0.",
    r"decoder\.reassemble([1-4])\.project\.": r"pretrained.act_postprocess\1.3.",
    r"decoder\.reassemble([1-4])\.resample\.": r"pretrained.act_postprocess\1.4.",
    r"decoder\.reduce([1-4])\.": r"scratch.layer\1_rn.",
    r"decoder\.fusion([1-4])\.refine_skip\.": r"scratch.refinenet\1.resConfUnit1.",
    r"decoder\.fusion([1-4])\.refine_sum\.": r"scratch.refinenet\1.resConfUnit2.",
    r"decoder\.fusion([1-4])\.project\.": r"scratch.refinenet\1.out_conv.",
    r"decoder\.head\.conv1\.": "scratch.output_conv.0.",
    r"decoder\.head\.conv2\.": "scratch.output_conv.2.",
    r"decoder\.head\.conv3\.": "scratch.output_conv.4.",
}
_TRANSFORMER = {r"encoder\.": "pretrained.model."}
_NAMES = {
    "midas_small": {
        r"encoder\.conv_stem\.": "pretrained.layer1.0.",
        r"encoder\.bn1\.": "pretrained.layer1.1.",
        r"encoder\.blocks\.0\.": "pretrained.layer1.3.",
        r"encoder\.blocks\.1\.": "pretrained.layer1.4.",
        r"encoder\.blocks\.2\.": "pretrained.layer2.0.",
        r"encoder\.blocks\.3\.": "pretrained.layer3.0.",
        r"encoder\.blocks\.4\.": "pretrained.layer3.1.",
        r"encoder\.blocks\.5\.": "pretrained.layer4.0.",
        r"encoder\.blocks\.6\.": "pretrained.layer4.1.",
    }
    | _DECODER,
    "dpt_hybrid": _TRANSFORMER | _DECODER,
    "dpt_large": _TRANSFORMER | _DECODER,
}

# The deepest fusion block has no skip, so its first residual unit never runs; nor does a transformer's classifier.
_UNIT = tuple(f"scratch.refinenet4.resConfUnit1.conv{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))
_CLASSIFIER = ("pretrained.model.head.weight", "pretrained.model.head.bias")
NEVER_EXECUTED = {"midas_small": _UNIT, "dpt_hybrid": _UNIT + _CLASSIFIER, "dpt_large": _UNIT + _CLASSIFIER}


def official_name(network: str, our_name: str) -> str:
    """What the official checkpoint of `network` calls a tensor."""
    for pattern, replacement in _NAMES[network].items():
        name, matches = re.subn(f"^{pattern}", replacement, our_name)
        if matches:
            return name
    raise KeyError(our_name)


def network_of(names: Iterable[str]) -> str | None:
    """The network whose official checkpoint holds tensors of these names; None for none that is known here."""
    names = list(names)
    if any(name.startswith("pretrained.model.") for name in names):
        hybrid = any(name.startswith("pretrained.model.patch_embed.backbone.") for name in names)
        return "dpt_hybrid" if hybrid else "dpt_large"
    resnext = any(re.match(r"pretrained\.layer\d(\.\d+)+\.conv1\.", name) for name in names)
    return "midas_small" if not resnext and any(n.startswith(("pretrained.", "scratch.")) for n in names) else None


def transformer_blocks(names: Iterable[str]) -> int:
    """How many blocks the transformer has in a DPT checkpoint with tensors of these names."""
    found = (re.match(r"pretrained\.model\.blocks\.(\d+)\.", name) for name in names)
    return 1 + max((int(block[1]) for block in found if block), default=-1)
