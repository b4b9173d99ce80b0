"""Tiny datasets, generated where a test asks for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZE = (24, 32)  # height, width


def save_depth(path: Path, counts: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(counts.astype(np.uint16)).save(path)


def save_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder({id: scene}, **meta): a folder of frames, each 2 m deep with one unknown pixel in its corner."""

    def make(scenes: Mapping[str, str], name: str = "tiny", /, **meta: Any) -> Path:
        root = tmp_path / name
        root.mkdir()
        for number, frame in enumerate(scenes):
            save_image(root / "rgb" / f"{frame}.png", seed=number)
            counts = np.full(SIZE, 2000)
            counts[0, 0] = 0
            save_depth(root / "depth" / f"{frame}.png", counts)
        (root / "meta.json").write_text(json.dumps({"depth_unit_m": 0.001, "scenes": dict(scenes)} | meta))
        return root

    return make
