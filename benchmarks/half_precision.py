"""What half precision makes of the shipped networks: one table.

    python -m benchmarks.half_precision

For every network in weights/, as deploy.py rewrites it, at its own size, on docs/photos, rendered rooms and streets,
and where the shared folder is on some of NYU's test frames: the largest magnitude of any tensor of the graph in FP32
(half precision ends at 65,504), the largest difference of the prediction in FP16 from that in FP32, as a share of the
picture's range, in PyTorch and in ONNX Runtime, and the skips' shares of what the decoder's fusions add, the deepest
first.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch import Tensor

from mde.data.synthetic import SyntheticFrames
from mde.data.transforms import normalise, resize_image
from mde.export import ImageGraph, deployable, export_onnx
from mde.models import load_model, read_metadata
from mde.models.health import skip_shares
from mde.models.network import DepthNetwork
from mde.models.shipped import FOLDER
from mde.quantization.onnx_file import half_onnx

PHOTOS = Path(__file__).resolve().parents[1] / "docs" / "photos"
NYU_EVERY = 200  # of NYU's labelled frames one in so many is taken


def pictures() -> list[Tensor]:
    """Each uint8 or float (3, H, W), as `resize_image` takes it."""
    nyu = Path(os.environ.get("MDE_SHARED", "../shared")) / "data" / "nyu" / "rgb"
    photos = sorted(PHOTOS.glob("*.jpg")) + sorted(nyu.glob("*"))[::NYU_EVERY]
    planes = [torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) for path in photos]
    worlds = [SyntheticFrames(2, (192, 256), 7, "none", world) for world in ("rooms", "streets")]
    return planes + [frames[index].image for frames in worlds for index in range(2)]


class Shipped:
    """A shipped network, and its graph in FP32 and in FP16 as ONNX files in `folder`."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.model: DepthNetwork = load_model(path)
        self.size: tuple[int, int] = tuple(read_metadata(path)["input"])
        self.exact, self.half = folder / f"{path.stem}.onnx", folder / f"{path.stem}_half.onnx"
        export_onnx(self._graph(), self.exact, self.size)
        half_onnx(self.exact, self.half)

    def _graph(self) -> ImageGraph:
        return ImageGraph(deployable(self.model), self.model.mean, self.model.std).eval()

    def image(self, planes: Tensor) -> np.ndarray:
        """As the graph takes it: uint8 (1, H, W, 3)."""
        resized = resize_image(planes, self.size)
        return (255 * resized).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0)[None].numpy()

    def largest(self, images: list[Tensor]) -> tuple[float, str]:
        """The largest magnitude of any tensor that the graph computes, and that tensor's name."""
        graph = onnx.load(self.exact)
        there = {output.name for output in graph.graph.output}
        names = [name for node in graph.graph.node for name in node.output if name not in there]
        graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
        session = onnxruntime.InferenceSession(graph.SerializeToString())
        names = [output.name for output in session.get_outputs()]
        found = []
        for planes in images:
            for name, values in zip(names, session.run(None, {"image": self.image(planes)}), strict=True):
                if values.dtype == np.float32 and values.size:
                    found.append((float(np.abs(values).max()), name))
        return max(found)

    def differences(self, images: list[Tensor]) -> dict[str, float]:
        """Engine -> the largest difference in FP16 from ONNX Runtime's FP32, as a share of the picture's range."""
        exact, engine = (onnxruntime.InferenceSession(path) for path in (self.exact, self.half))
        half, found = self._graph().half(), {"PyTorch": 0.0, "ONNX Runtime": 0.0}
        for planes in images:
            image = self.image(planes)
            expected = exact.run(None, {"image": image})[0]
            with torch.no_grad():
                answers = half(torch.from_numpy(image)).float().numpy(), engine.run(None, {"image": image})[0]
            for name, answer in zip(found, answers, strict=True):
                difference = float(np.abs(answer - expected).max() / np.ptp(expected))
                found[name] = max(found[name], difference if np.isfinite(difference) else np.inf)
        return found

    def shares(self, images: list[Tensor]) -> dict[str, float]:
        """`skip_shares` over all images."""
        batch = [normalise(resize_image(planes, self.size), self.model.mean, self.model.std) for planes in images]
        with torch.no_grad(), skip_shares(self.model) as shares:
            self.model(torch.stack(batch))
        return shares


def main() -> None:
    images = pictures()
    print(f"| {len(images)} pictures | largest tensor | FP16 in PyTorch, % | in ONNX Runtime, % | skips, % |")
    print("| --- | ---: | ---: | ---: | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(FOLDER.glob("*.safetensors")):
            network = Shipped(path, Path(folder))
            differences = " | ".join(f"{100 * share:.2f}" for share in network.differences(images).values())
            shares = " ".join(f"{100 * share:.1f}" for share in network.shares(images).values())
            print(f"| {path.stem} | {network.largest(images)[0]:,.0f} | {differences} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
