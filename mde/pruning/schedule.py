"""How much is pruned when."""

from dataclasses import dataclass

from mde.errors import MdeError


@dataclass(frozen=True)
class Schedule:
    """Share of the final sparsity, from 0 to 1, as a function of the step.

    kind      "one_shot": all of it at `start`; "linear"; "cubic": 1 - (1 - t)^3, fast while there is much that is
              redundant (Zhu and Gupta, 2017); t rises to 1 between `start`, where a first part is due, and `end`
    interval  steps between two prunings; the last one is at `end`
    """

    kind: str
    start: int
    end: int
    interval: int

    def __post_init__(self) -> None:
        if self.kind not in ("one_shot", "linear", "cubic"):
            raise MdeError(f"schedule.kind={self.kind}: unknown; choose one_shot, linear or cubic")
        if self.start < 0 or self.end < self.start or self.interval < 1:
            raise MdeError(
                f"schedule: start={self.start}, end={self.end}, interval={self.interval}: 0 <= start <= end and "
                "interval >= 1 are wanted"
            )

    def share(self, step: int) -> float:
        """Reached at `step`: constant between two prunings."""
        if step < self.start:
            return 0.0
        if self.kind == "one_shot" or step >= self.end:
            return 1.0
        # The first pruning, at start, is already a part: one of so many equal parts of the way.
        parts = -(-(self.end - self.start) // self.interval) + 1
        done = ((step - self.start) // self.interval + 1) / parts
        return done if self.kind == "linear" else 1 - (1 - done) ** 3
