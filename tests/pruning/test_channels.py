import copy
import fnmatch
import functools
import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mde.errors import MdeError
from mde.models.midas_small import MidasSmall
from mde.pruning.channels import Aim, Limits, Search, kept_after, macs_aims, sparsity_aims
from mde.pruning.cost import Cost, Layer, cost, dense_widths, layers_of
from mde.pruning.importance import channel_importance
from mde.pruning.structure import ChannelGroup, channel_groups, keep_channels
from tests.pruning.test_structure import lively, output_of

ANY = Limits(8, 0.95, {})
SPARSITIES = (0.05, 0.3, 0.9)
KINDS = ("l1", "l2", "batchnorm", "taylor")


class Case:
    """A network, what a search needs to know of it, and the cost of what a search found."""

    def __init__(self, model: MidasSmall) -> None:
        self.model = model
        self.groups: list[ChannelGroup] = channel_groups(model)
        self.layers: list[Layer] = layers_of(model, self.groups, (64, 64))
        self.dense = dense_widths(model, self.groups)
        self.full = cost(self.layers, self.dense)

    @functools.cache  # noqa: B019  a few cases, which live as long as the tests
    def scores(self, kind: str) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(5)
        gradients = [
            {name: torch.randn(p.shape, generator=random) for name, p in self.model.named_parameters()} for _ in "ab"
        ]
        return channel_importance(self.model, self.groups, kind, gradients)

    def search(
        self, aims: list[Aim], kind: str = "l1", scope: str = "global", limits: Limits = ANY
    ) -> dict[str, Tensor]:
        return Search(self.layers, self.groups, self.dense, self.scores(kind), limits, scope, aims).run()

    def to_sparsity(
        self, sparsity: float, kind: str = "l1", scope: str = "global", limits: Limits = ANY
    ) -> dict[str, Tensor]:
        return self.search(sparsity_aims(self.layers, self.dense, sparsity), kind, scope, limits)

    def widths(self, keep: Mapping[str, Tensor]) -> dict[str, int]:
        return {group.name: len(keep[group.name]) if group.name in keep else group.width for group in self.groups}

    def cost(self, keep: Mapping[str, Tensor]) -> Cost:
        return cost(self.layers, self.widths(keep))

    def sparsity(self, keep: Mapping[str, Tensor]) -> float:
        return 1 - self.cost(keep).parameters / self.full.parameters


@functools.cache
def case(encoder: str = "lite0") -> Case:
    return Case(lively(encoder))


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encoder", ["lite0", "lite3"])
def test_every_sparsity_is_hit_and_what_goes_is_least_important(encoder, kind, scope):
    network = case(encoder)
    for sparsity in SPARSITIES:
        keep = network.to_sparsity(sparsity, kind, scope)
        assert network.sparsity(keep) == pytest.approx(sparsity, abs=0.005)
        for group in network.groups:
            if group.name not in keep:
                continue
            indices, score = keep[group.name], network.scores(kind)[group.name]
            assert torch.equal(indices, indices.unique()), "sorted, each once"
            gone = torch.ones(group.width, dtype=torch.bool)
            gone[indices] = False
            assert score[gone].max() <= score[indices].min()
            assert len(indices) % 8 == 0
            assert 1 <= len(indices) < group.width


def test_the_network_built_from_it_has_that_sparsity():
    network = case()
    narrowed = copy.deepcopy(network.model)
    keep_channels(narrowed, network.groups, network.to_sparsity(0.5))
    dense, left = (sum(p.numel() for p in model.parameters()) for model in (network.model, narrowed))
    assert 1 - left / dense == pytest.approx(0.5, abs=0.005)
    assert narrowed(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_more_is_wanted_more_goes(scope):
    network = case()
    found = [network.cost(network.to_sparsity(wanted / 12, "l2", scope)) for wanted in range(11)]
    assert found[0] == network.full, "nothing is wanted"
    parameters = [each.parameters for each in found]
    assert all(after < before for before, after in itertools.pairwise(parameters))
    assert found[-1].macs < 0.5 * found[0].macs, "and it is faster"


def test_a_search_ends_near_its_aim():
    network = case()
    for sparsity in (0.03, 0.21, 0.4, 0.63):
        assert network.sparsity(network.to_sparsity(sparsity)) == pytest.approx(sparsity, abs=0.001)


def test_a_dear_group_does_not_go_because_its_size_fits():
    """80 parameters are to go. Eight channels: of "coarse" too many, of "dear" 80, of "fine" 8, ten times over."""
    reads = {"coarse": 12, "dear": 10, "fine": 1}
    dense = dict.fromkeys(reads, 128)
    layers = [Layer(name, (count,), (name,), 1, 1, 1, 1, 0, False) for name, count in reads.items()]
    groups = [ChannelGroup(name, 128, ()) for name in reads]
    scores = {name: torch.full((128,), value) for name, value in {"coarse": 1e-3, "dear": 1e3, "fine": 1.0}.items()}
    aim = Aim(lambda layer, widths: layer.parameters(widths), 128 * sum(reads.values()) - 80)
    keep = Search(layers, groups, dense, scores, ANY, "global", [aim]).run()
    assert {name: len(indices) for name, indices in keep.items()} == {"fine": 48}


def test_layer_scope_takes_the_same_share_everywhere():
    network = case()
    keep = network.to_sparsity(0.5, "l1", "layer")
    widths = network.widths(keep)
    wide = {name: 1 - widths[name] / dense for name, dense in network.dense.items() if dense >= 256}
    assert max(wide.values()) - min(wide.values()) < 0.05
    assert min(wide.values()) > 0.2


@pytest.mark.parametrize("multiple", [1, 8, 32])
def test_widths_are_multiples_unless_nothing_went(multiple):
    network = case()
    for scope in ("global", "layer"):
        keep = network.to_sparsity(0.6, "l1", scope, limits=Limits(multiple, 0.95, {}))
        assert keep
        assert all(len(indices) % multiple == 0 for indices in keep.values())


def test_no_group_loses_more_than_its_limit():
    network = case()
    patterns = {"decoder.fusion4.*": 0.0, "decoder.*": 0.25, "encoder.blocks.[56].*": 0.9, "encoder.*": 0.5}
    keep = network.to_sparsity(0.35, limits=Limits(8, 0.1, patterns))
    widths = network.widths(keep)
    for name, dense in network.dense.items():
        most = next(share for pattern, share in patterns.items() if fnmatch.fnmatch(name, pattern))
        assert widths[name] >= dense * (1 - most)
        if name.startswith("decoder.fusion4"):
            assert widths[name] == dense
    assert any(widths[name] < 0.7 * dense for name, dense in network.dense.items()), "a pattern counts, not max_share"


def test_limits_count_from_the_dense_network():
    network = case()
    limits = Limits(8, 0.6, {})
    model = copy.deepcopy(network.model)
    keep_channels(model, network.groups, network.to_sparsity(0.4, limits=limits))
    again = Case(model)
    assert again.dense == network.dense
    widths = again.widths(again.to_sparsity(0.7, limits=limits))
    assert all(widths[name] >= 0.4 * dense for name, dense in network.dense.items())
    assert cost(again.layers, widths).parameters == pytest.approx(0.3 * network.full.parameters, rel=0.02)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("limits", [Limits(8, 0.2, {}), Limits(64, 0.95, {}), Limits(8, 0.95, {"decoder.*": 0.0})])
def test_what_the_limits_do_not_allow_is_an_error(scope, limits):
    with pytest.raises(MdeError, match=r"prune\.max_share") as caught:
        case().to_sparsity(0.97, "l1", scope, limits=limits)
    assert "\n" not in str(caught.value)


def test_an_unknown_scope_is_an_error():
    with pytest.raises(MdeError, match="scope=local"):
        case().to_sparsity(0.5, "l1", "local")


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_multiply_adds_reach_their_target(scope):
    network = case()
    for share in (0.9, 0.5, 0.2):
        target = share * network.full.macs
        found = network.cost(network.search(macs_aims(target), "l1", scope)).macs
        assert found == pytest.approx(target, abs=0.01 * network.full.macs)
    assert network.search(macs_aims(2 * network.full.macs)) == {}, "already there"


def test_channels_without_importance_go_first():
    network = case()
    scores = {name: score.clone() for name, score in network.scores("l1").items()}
    group = next(group for group in network.groups if group.width == 512)
    useless = torch.arange(3, 512, 4)
    scores[group.name][useless] = 0
    aims = macs_aims(0.98 * network.full.macs)
    keep = Search(network.layers, network.groups, network.dense, scores, ANY, "global", aims).run()
    assert set(range(512)) - set(keep[group.name].tolist()) <= set(useless.tolist())
    assert len(keep) <= 2, "this group alone, but for the last step"


def test_channels_kept_twice_are_counted_in_the_dense_network():
    network = case()
    model = copy.deepcopy(network.model)
    kept: dict[str, Tensor] = {}
    for sparsity in (0.2, 0.4, 0.6):
        now = Case(model)
        keep = now.to_sparsity(sparsity)
        keep_channels(model, now.groups, keep)
        kept = kept_after(kept, keep)
    at_once = copy.deepcopy(network.model)
    keep_channels(at_once, network.groups, kept)
    assert all(torch.equal(tensor, at_once.state_dict()[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(output_of(model), output_of(at_once), rtol=0, atol=0)


def test_composing_leaves_its_arguments_alone():
    earlier = {"a": torch.tensor([1, 4, 6]), "b": torch.tensor([0, 2])}
    composed = kept_after(earlier, {"a": torch.tensor([0, 2]), "c": torch.tensor([5])})
    assert {name: indices.tolist() for name, indices in composed.items()} == {"a": [1, 6], "b": [0, 2], "c": [5]}
    assert earlier["a"].tolist() == [1, 4, 6]
