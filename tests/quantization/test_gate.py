import pytest

from mde.errors import MdeError
from mde.quantization.gate import quantize_within


class Trial:
    """A network whose delta1 is 0.9 less what each layer in INT8 costs; it counts and remembers."""

    def __init__(self, costs):
        self.costs, self.calls = costs, []

    def quantize(self, excluded):
        self.calls.append(tuple(excluded))
        return tuple(excluded)

    def evaluate(self, network):
        return 0.9 - sum(cost for layer, cost in self.costs.items() if layer not in network)


@pytest.mark.parametrize("needed", range(12))
def test_the_gate_sends_back_the_smallest_number_of_layers_that_holds(needed):
    costs = {f"layer{number:02}": 0.01 for number in range(11)}
    trial = Trial(costs)
    gated = quantize_within(trial.quantize, trial.evaluate, lambda: costs, 0.9, max_drop=0.01 * (11 - needed) + 1e-9)
    assert gated.excluded == tuple(sorted(costs))[:needed]  # all alike: by name
    assert gated.network == gated.excluded == trial.calls[-1]
    assert gated.drop == pytest.approx(0.01 * (11 - needed))
    assert gated.delta1 == pytest.approx(0.9 - gated.drop)
    assert len(trial.calls) <= 9


def test_the_gate_takes_the_most_sensitive_layers_first():
    costs = {"a": 0.001, "b": 0.05, "c": 0.02, "d": 0.0}
    trial = Trial(costs)
    gated = quantize_within(trial.quantize, trial.evaluate, lambda: costs, 0.9, max_drop=0.01)
    assert gated.excluded == ("b", "c")
    assert trial.calls[0] == ()


def test_a_gain_passes_at_once():
    trial = Trial({"a": -0.1})

    def never() -> dict[str, float]:
        raise AssertionError("measured, though nothing has to go back to float")

    gated = quantize_within(trial.quantize, trial.evaluate, never, 0.9, max_drop=0.0)
    assert trial.calls == [()]
    assert gated.drop < 0


def test_the_gate_gives_up_when_float_does_not_hold():
    trial = Trial({"a": 0.0, "b": 0.0, "c": 0.0})
    with pytest.raises(MdeError, match=r"quantize\.max_drop=0\.01: delta1 falls by 0\.05 with every layer in float"):
        quantize_within(trial.quantize, trial.evaluate, lambda: trial.costs, 0.95, max_drop=0.01)
    assert trial.calls[-1] == ("a", "b", "c")
