import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mde.engines import ENGINES, export_openvino, open_engine
from mde.errors import MdeError
from mde.export import deployable, export_onnx
from mde.speed import interleaved as benchmark
from mde.speed.interleaved import check_output, interleave, latency_entry, measure_latency
from tests.export import random_network

torch.set_num_threads(1)
TIMES = {"p50_ms", "p95_ms", "p99_ms", "fps", "speedup_vs_reference", "preprocess_ms", "postprocess_ms"}
KEYS = TIMES | {"status", "precision", "peak_rss_mb", "threads", "warmup", "runs", "engine_version"}


@pytest.mark.parametrize("narrowed", [False, True])
def test_every_engine_computes_what_pytorch_does(narrowed: bool, tmp_path: Path) -> None:
    model = random_network(narrowed)
    export_onnx(deployable(model), tmp_path / "model.onnx", (64, 96))
    export_openvino(tmp_path / "model.onnx", tmp_path / "model.xml")
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(image).numpy()
    for engine, file in (("onnxruntime", "model.onnx"), ("openvino", "model.onnx"), ("openvino", "model.xml")):
        output = open_engine(engine, tmp_path / file, threads=1)(image.numpy())
        assert output.shape == expected.shape
        assert output.dtype == np.float32
        # bfloat16, which OpenVINO takes by itself where the processor has it, is off by 0.04 of the range.
        assert np.abs(output - expected).max() <= 1e-5 * np.ptp(expected)


def test_what_an_engine_cannot_open_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    (tmp_path / "model.xml").write_text("<net/>")
    cases = [
        ("tensorflow", "broken.onnx", "engine tensorflow: unknown; choose from pytorch, onnxruntime, openvino"),
        ("onnxruntime", "model.xml", "onnxruntime reads .onnx"),
        ("onnxruntime", "missing.onnx", "no such file"),
        ("onnxruntime", "broken.onnx", "onnxruntime cannot open it"),
        ("openvino", "broken.onnx", "openvino cannot open it"),
        ("openvino", "model.xml", "openvino cannot open it"),
    ]
    for engine, file, message in cases:
        with pytest.raises(MdeError) as caught:
            open_engine(engine, tmp_path / file, threads=1)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_each_round_calls_every_candidate_once_and_each_comes_to_follow_every_other_one() -> None:
    def called(names: str, rounds: int) -> list[str]:
        calls: list[str] = []
        runs = {name: lambda name=name: calls.append(name) for name in names}
        times = interleave(runs, warmup=2, rounds=rounds, on_round=lambda: calls.append("|"))
        assert {name: len(values) for name, values in times.items()} == dict.fromkeys(names, rounds)
        assert "".join(calls).startswith(2 * names)
        return "".join(calls)[2 * len(names) :].split("|")[:-1]

    orders = called("abcd", 30)
    assert len(orders) == 30
    assert all(sorted(order) == list("abcd") for order in orders)
    follows = [pair for order in orders for pair in itertools.pairwise(order)]
    assert set(follows) == set(itertools.permutations("abcd", 2))
    # Thirty rounds hold 90 pairs, each of the twelve 7.5 times on average.
    assert all(2 <= follows.count(pair) <= 15 for pair in set(follows))
    assert {order[0] for order in orders} == set("abcd")
    assert called("abcd", 30) == orders, "another order each time"
    assert called("a", 2) == ["a", "a"]


def test_times_are_the_milliseconds_of_each_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def takes(*seconds: float):
        left = iter(seconds)
        return lambda: clock.__setitem__(0, clock[0] + next(left))

    times = interleave({"a": takes(9, 0.25, 0.5), "b": takes(9, 1, 2)}, 1, 2, on_round=takes(100, 100))
    assert times == {"a": [250, 500], "b": [1000, 2000]}


def test_speedup_is_the_median_of_paired_ratios_not_the_ratio_of_medians() -> None:
    entry = latency_entry([10.0, 20.0, 40.0], reference=[30.0, 100.0, 44.0])
    assert entry["speedup_vs_reference"] == 3.0  # of 3, 5 and 1.1; the medians' ratio is 2.2
    assert entry["p50_ms"] == 20.0
    assert entry["fps"] == 50.0
    assert entry["p95_ms"] == pytest.approx(38.0)
    assert entry["p99_ms"] == pytest.approx(39.6)
    assert entry["runs"] == 3


def test_every_graph_has_an_entry_of_the_schema_in_every_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice_as_fast(runs, warmup, rounds, on_round):
        assert list(runs) == ["pruned", "reference"]
        for run in runs.values():
            assert run().shape == (1, 1, 32, 64)
        assert (warmup, rounds) == (1, 3)
        return {"reference": [4.0, 8.0, 12.0], "pruned": [2.0, 4.0, 6.0]}

    monkeypatch.setattr(benchmark, "interleave", twice_as_fast)
    graphs = {"pruned": deployable(random_network(narrowed=True)), "reference": random_network().train()}
    latency = measure_latency(graphs, (32, 64), threads=1, warmup=1, rounds=3)
    assert list(latency) == ["pruned", "reference"]
    for name, speedup in (("pruned", 2.0), ("reference", 1.0)):
        assert list(latency[name]) == ["onnxruntime", "openvino"]
        for engine, entry in latency[name].items():
            assert set(entry) == KEYS
            assert (entry["status"], entry["precision"]) == ("measured", "fp32")
            assert (entry["threads"], entry["warmup"], entry["runs"]) == (1, 1, 3)
            assert (entry["preprocess_ms"], entry["postprocess_ms"]) == (None, None)
            assert entry["speedup_vs_reference"] == speedup
            assert entry["engine_version"] == ENGINES[engine].version
            assert 50 < entry["peak_rss_mb"] < 100_000
    assert graphs["reference"].training


def test_real_timings_are_positive_and_counted() -> None:
    latency = measure_latency({"reference": random_network()}, (32, 32), engines=["openvino"], threads=1, rounds=2)
    entry = latency["reference"]["openvino"]
    assert 0 < entry["p50_ms"] <= entry["p95_ms"] <= entry["p99_ms"]
    assert entry["speedup_vs_reference"] == 1.0


def test_unknown_engines_and_a_missing_reference_are_found_before_any_work() -> None:
    with pytest.raises(MdeError, match="engine tflite: unknown"):
        measure_latency({"reference": nn.Identity()}, (32, 32), engines=["onnxruntime", "tflite"])
    with pytest.raises(MdeError, match="latency of pruned: no graph is called reference"):
        measure_latency({"pruned": nn.Identity()}, (32, 32))


def test_an_engine_that_computes_something_else_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = benchmark.open_engine

    def off_by_little(*arguments):
        run = honest(*arguments)
        return lambda image: run(image) + 0.002 * np.ptp(run(image))

    monkeypatch.setattr(benchmark, "open_engine", off_by_little)
    with pytest.raises(MdeError, match="reference in onnxruntime: differs from PyTorch by"):
        measure_latency({"reference": random_network()}, (32, 32), threads=1)


def test_only_the_reference_is_exported_as_published(monkeypatch: pytest.MonkeyPatch) -> None:
    exported = []

    def export(graph, path, size, as_published):
        exported.append(as_published)
        export_onnx(graph, path, size, as_published=as_published)

    monkeypatch.setattr("mde.speed.interleaved.export_onnx", export)
    model = random_network()
    measure_latency({"model": deployable(model), "reference": model}, (32, 32), engines=["onnxruntime"], rounds=1)
    assert exported == [False, True]


def test_parity_is_relative_to_the_range_and_forgives_only_rounding_of_a_constant() -> None:
    ramp = np.linspace(5, 15, 100, dtype=np.float32)
    check_output(ramp + 0.009, ramp, "ramp")
    constant = np.full(100, 7, dtype=np.float32)
    check_output(constant * (1 + 1e-6), constant, "constant")
    for output, expected in ((ramp + 0.011, ramp), (constant * 1.0001, constant), (ramp * np.nan, ramp)):
        with pytest.raises(MdeError, match="differs from PyTorch"):
            check_output(output, expected, "x")
