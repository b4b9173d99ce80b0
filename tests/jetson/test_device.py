"""What a Jetson prints is read; what it does not print is None. Lines are in each JetPack's format, values our own."""

import sys

import pytest

from mde.jetson import device

NANO_4 = (
    "RAM 2462/3964MB (lfb 4x1MB) SWAP 12/1982MB (cached 0MB) IRAM 0/252kB(lfb 252kB) CPU [17%@1479,off,9%@1479] "
    "EMC_FREQ 0% GR3D_FREQ 99% PLL@38C CPU@41.5C PMIC@100C GPU@40C AO@47C thermal@40.75C "
    "POM_5V_IN 5282/5100 POM_5V_GPU 1200/1150 POM_5V_CPU 900/880"
)
XAVIER_4 = (
    "RAM 3011/31918MB (lfb 6500x4MB) SWAP 0/15959MB (cached 0MB) CPU [3%@1190,off,off] EMC_FREQ 0% GR3D_FREQ 0% "
    "AO@36.5C GPU@37C Tdiode@40.25C PMIC@100C AUX@36C CPU@37.5C thermal@36.8C Tboard@37C "
    "GPU 500/500 CPU 300/311 SOC 900/932 CV 0/0 VDDRQ 100/155 SYS5V 1200/1362"
)
ORIN_5 = (
    "RAM 3202/30536MB (lfb 6271x4MB) SWAP 0/15268MB (cached 0MB) CPU [0%@729,0%@729,off,off] EMC_FREQ 0% GR3D_FREQ 0% "
    "CV0@-256C CPU@48.5C Tboard@37C SOC2@45C Tdiode@39C GPU@-256C tj@48.75C VDD_GPU_SOC 2836mW/2836mW "
    "VDD_CPU_CV 788mW/788mW VIN_SYS_5V0 4040mW/4040mW NC 0mW/0mW VDDQ_VDD2_1V8AO 606mW/606mW"
)
NANO_6 = (
    "11-22-2026 10:00:00 RAM 2563/7620MB (lfb 5x4MB) SWAP 0/3810MB (cached 0MB) CPU [0%@729,1%@729,0%@729,2%@729] "
    "EMC_FREQ 0%@2133 GR3D_FREQ 0%@[305] NVDEC off cpu@49.5C soc2@48.6C gpu@48.8C tj@49.75C "
    "VDD_IN 4969mW/4900mW VDD_CPU_GPU_CV 522mW/520mW VDD_SOC 1444mW/1440mW"
)


@pytest.mark.parametrize(
    ("line", "watts", "rails", "sensors", "hottest"),
    [
        (NANO_4, 5.282, 3, 5, 47.0),
        (XAVIER_4, 3.0, 6, 7, 40.25),
        (ORIN_5, 8.27, 5, 5, 48.75),
        (NANO_6, 4.969, 3, 4, 49.75),
        ("RAM 1/2MB", None, 0, 0, None),
    ],
)
def test_power_and_temperature_are_read_in_every_format(line, watts, rails, sensors, hottest):
    sample = device.parse_tegrastats(line)
    assert sample["power_w"] == (watts if watts is None else pytest.approx(watts))
    assert (len(sample["rails_w"]), len(sample["temperature_c"])) == (rails, sensors)
    assert max(sample["temperature_c"].values(), default=None) == hottest


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program that prints `text`, and then waits, on the path."""

    def make(name, text, waits=""):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n{waits}\n")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def test_tegrastats_runs_while_the_block_does(program, tmp_path):
    ready = tmp_path / "ready"
    program("tegrastats", f"{NANO_4}\n{NANO_4.replace('5282/', '6282/')}", f"touch {ready}; exec sleep 60")
    with device.Tegrastats() as board:
        while not ready.exists():
            pass
    assert len(board.samples) == 2
    assert board.summary() == {"power_w": pytest.approx(5.782), "max_temperature_c": 47.0}


def test_without_tegrastats_there_is_no_figure(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with device.Tegrastats() as board:
        pass
    assert board.summary() == {"power_w": None, "max_temperature_c": None}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 1, BOARD: t210ref, EABI: aarch64", {"l4t": "32.7.1", "jetpack": 4}),
        ("# R35 (release), REVISION: 4.1, GCID: 1, BOARD: t186ref", {"l4t": "35.4.1", "jetpack": 5}),
        ("# R36 (release), REVISION: 4.0, GCID: 1, BOARD: generic", {"l4t": "36.4.0", "jetpack": 6}),
        ("# R99 (release), REVISION: 1.0, GCID: 1", {"l4t": "99.1.0", "jetpack": None}),
        ("something else", None),
        (None, None),
    ],
)
def test_the_release_is_read(line, expected):
    assert device.jetpack(line) == expected


def test_the_power_mode_is_what_nvpmodel_prints(program):
    program("nvpmodel", "NV Power Mode: MAXN\n0")
    assert device.describe()["nvpmodel"] == "NV Power Mode: MAXN\n0"


def test_what_fails_or_is_missing_is_none(program):
    program("jetson_clocks", "not allowed", "exit 1")
    described = device.describe()
    assert described["jetson_clocks"] is None
    assert described["nvpmodel"] is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/meminfo is Linux's")
def test_memory_is_in_megabytes():
    found = device.memory()
    assert 100 < found["available"] <= found["total"]
