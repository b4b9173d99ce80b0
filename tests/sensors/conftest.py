"""Recordings that the emulator makes once for all tests."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from mde.sensors.emulator import IDEAL, Rig, record, rendered
from tests.data.conftest import make_folder

__all__ = ["make_folder"]

SIZE = (96, 128)


@pytest.fixture(scope="session")
def ideal(tmp_path_factory):
    """12 frames: depth exact to its counts, seen from colour's own place."""
    path = tmp_path_factory.mktemp("recordings") / "ideal.db3"
    record(rendered(12, replace(IDEAL, size=SIZE)), path, 0.0)
    return path


@pytest.fixture(scope="session")
def noisy(tmp_path_factory):
    """12 frames through the L515's noise, from beside the colour camera."""
    path = tmp_path_factory.mktemp("recordings") / "noisy.db3"
    rig = Rig(size=SIZE)
    record(rendered(12, rig), path, rig.baseline)
    return path


@pytest.fixture(scope="session")
def exact(ideal):
    return np.load(ideal.with_suffix(".exact.npz"))["depth"]


@pytest.fixture(scope="session")
def shown():
    """What the ideal recording was made of."""
    return list(itertools.islice(rendered(12, replace(IDEAL, size=SIZE)), 12))
