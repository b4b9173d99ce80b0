"""Non-zero parameters at the paper's sparsities, beside the paper's own counts.

    python -m benchmarks.paper_counts --checkpoint midas_v21_small_256.pt

The paper zeroed whole convolutions in order of magnitude ("channel") and single weights ("fine-grained"). Here with
both rules for whole layers: until the zeroed share is nearest to the sparsity, and the paper's share of the number of
layers.
"""

import argparse

from mde.models import build_model
from mde.models.network import DepthNetwork
from mde.pruning.importance import weight_importance
from mde.pruning.masks import Masks, fine_grained_masks, layer_masks, layer_weights

# Million parameters, its Tables 1 and 2.
LAYERS = {0.02: 16.3, 0.04: 15.9, 0.06: 15.6, 0.08: 15.3, 0.10: 14.9, 0.12: 14.6, 0.14: 14.3, 0.16: 13.9, 0.18: 13.6,
          0.20: 13.3}  # fmt: skip
WEIGHTS = {0.1: 14.9, 0.2: 13.3, 0.3: 11.6, 0.4: 9.96, 0.5: 8.3, 0.6: 6.6, 0.7: 5.0, 0.8: 3.3, 0.9: 1.7, 0.99: 0.17}


def left(model: DepthNetwork, masks: Masks) -> float:
    """Million parameters that are not zero under `masks`."""
    zeroed = sum(int((~mask & (model.get_parameter(name) != 0)).sum()) for name, mask in masks.items())
    return (sum(int(parameter.count_nonzero()) for parameter in model.parameters()) - zeroed) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="an official checkpoint or a network of ours")
    model = build_model("midas_small", weights=parser.parse_args().checkpoint)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print("| whole layers, sparsity | the paper, M | nearest share, M | share of layers, M |\n" + "| ---: " * 4 + "|")
    for sparsity, paper in LAYERS.items():
        counts = (left(model, layer_masks(model, sparsity, parameters, rule)) for rule in ("share", "count"))
        print(f"| {sparsity:.2f} | {paper} | " + " | ".join(f"{count:.2f}" for count in counts) + " |")
    scores = weight_importance(model, layer_weights(model), "l1")
    print("\n| single weights, sparsity | the paper, M | ours, M | (1 - s) x all, M |\n" + "| ---: " * 4 + "|")
    for sparsity, paper in WEIGHTS.items():
        masks = fine_grained_masks(model, scores, sparsity, parameters, "layer")
        print(f"| {sparsity:.2f} | {paper} | {left(model, masks):.3f} | {(1 - sparsity) * parameters / 1e6:.3f} |")


if __name__ == "__main__":
    main()
