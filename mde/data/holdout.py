"""Choosing validation frames: by scene, never at random."""

import hashlib
import math
from collections.abc import Sequence

from mde.errors import MdeError
from mde.names import utf8


def hold_out(scenes: Sequence[str], name: str) -> tuple[list[int], list[int], str]:
    """Cut frames, in order of time and each with its scene, into training and validation indices; and a note for the
    report.

    Of several scenes a tenth (rounded, at least one) validates. Which ones depends on their names alone, through a
    hash, so adding a scene moves no more than one other. A single scene is cut in time: its last fifth validates after
    a gap of a twentieth, and the note says "same scene". Raises MdeError for fewer than two frames; `name` says of
    which set.
    """
    if len(scenes) < 2:
        raise MdeError(f"{name}: {len(scenes)} frame(s) for training cannot give training and validation; add frames")
    distinct = sorted(set(scenes), key=lambda scene: hashlib.sha256(utf8(scene).encode()).digest())
    if len(distinct) > 1:
        held_out = set(distinct[: max(1, round(len(distinct) / 10))])
        training = [i for i, scene in enumerate(scenes) if scene not in held_out]
        return training, [i for i, scene in enumerate(scenes) if scene in held_out], ""
    validating = max(1, round(0.2 * len(scenes)))
    gap = min(math.ceil(0.05 * len(scenes)), len(scenes) - validating - 1)
    first = len(scenes) - validating
    note = f"same scene: the last {validating} of {len(scenes)} frames validate, after a gap of {gap}"
    return list(range(first - gap)), list(range(first, len(scenes))), note
