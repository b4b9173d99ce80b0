"""What a Jetson says about itself: release, power mode, clocks, memory, power, temperature, throttling.

Everything is optional: what a device does not tell is None. Python 3.6 syntax: the Jetson bundle ships this file.
"""

import glob
import os
import platform
import re
import subprocess
import tempfile
from types import TracebackType
from typing import Any, Dict, List, Optional, Type

JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7}  # Jetson Linux (L4T) -> JetPack
TOTAL_POWER = ("VDD_IN", "POM_5V_IN")  # the rail that feeds all others, on the boards that measure it
SENSOR_OFF = -40  # below it a temperature is a sensor without power, which says -256


def describe() -> Dict[str, Any]:
    """The `environment` entry of metrics.json."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "board": _read("/proc/device-tree/model"),
        "jetpack": jetpack(_read("/etc/nv_tegra_release")),
        "nvpmodel": _output(["nvpmodel", "-q"]),
        "jetson_clocks": _output(["jetson_clocks", "--show"]),
        "memory": memory(),
    }


def jetpack(release: Optional[str]) -> Optional[Dict[str, Any]]:
    """{"l4t": "35.4.1", "jetpack": 5} of the first line of /etc/nv_tegra_release."""
    found = re.match(r"# R(\d+) .*?REVISION: ([\d.]+)", release or "")
    if not found:
        return None
    return {"l4t": f"{found.group(1)}.{found.group(2)}", "jetpack": JETPACKS.get(int(found.group(1)))}


def memory() -> Optional[Dict[str, float]]:
    """Megabytes {"total", "available", "swap_free"}; the GPU of a Jetson lives in the same memory."""
    names = {"MemTotal": "total", "MemAvailable": "available", "SwapFree": "swap_free"}
    rows = re.findall(r"^(\w+): +(\d+) kB", _read("/proc/meminfo") or "", re.MULTILINE)
    return {names[name]: int(size) / 1024 for name, size in rows if name in names} or None


def throttling() -> Optional[Dict[str, int]]:
    """States of the cooling devices (0: no throttling) and counts of over-current events, by name."""
    found = {}
    for folder in sorted(glob.glob("/sys/class/thermal/cooling_device*")):
        name, state = _read(folder + "/type"), _read(folder + "/cur_state")
        if name and state and state.lstrip("-").isdigit():
            found[f"{name} ({os.path.basename(folder)})"] = int(state)
    for path in sorted(glob.glob("/sys/class/hwmon/hwmon*/oc*_event_cnt")):
        count = _read(path)
        if count and count.isdigit():
            found[os.path.basename(path)] = int(count)
    return found or None


class Tegrastats:
    """Runs `tegrastats`, once a second, while the block does; `samples` are there afterwards, none without the program.

    >>> with Tegrastats() as stats:
    ...     pass
    >>> stats.summary()["power_w"]  # None, but for a Jetson
    """

    def __init__(self) -> None:
        self.samples: List[Dict[str, Any]] = []
        self._process: Optional[Any] = None

    def __enter__(self) -> "Tegrastats":
        self._output = tempfile.TemporaryFile("w+")
        try:
            self._process = subprocess.Popen(
                ["tegrastats", "--interval", "1000"], stdout=self._output, stderr=subprocess.DEVNULL
            )
        except OSError:
            self._process = None
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        with self._output:
            self._output.seek(0)
            self.samples = [parse_tegrastats(line) for line in self._output if "RAM" in line]

    def summary(self) -> Dict[str, Optional[float]]:
        """Mean power of the whole board in watts, and the hottest sensor's hottest moment in degrees Celsius."""
        power = [sample["power_w"] for sample in self.samples if sample["power_w"] is not None]
        heat = [max(sample["temperature_c"].values()) for sample in self.samples if sample["temperature_c"]]
        return {
            "power_w": sum(power) / len(power) if power else None,
            "max_temperature_c": max(heat) if heat else None,
        }


def parse_tegrastats(line: str) -> Dict[str, Any]:
    """One line of tegrastats, of JetPack 4, 5 or 6:

    rails_w         rail -> watts at that moment. JetPack 4 writes them without a unit ("POM_5V_IN 5282/5282"), later
                    ones with ("VDD_IN 4969mW/4969mW"); memory has another unit and is none
    power_w         of the board: the rail that feeds it, or the sum of all; None when no rail is listed
    temperature_c   sensor -> degrees Celsius; sensors without power are left out. PMIC, a constant 100, too
    """
    rails = {
        name: int(milliwatts) / 1000 for name, milliwatts in re.findall(r"(\w+) (\d+)(?:mW)?/\d+(?:mW)?(?=\s|$)", line)
    }
    heat = {name: float(degrees) for name, degrees in re.findall(r"(\w+)@(-?\d+(?:\.\d+)?)C\b", line)}
    totals = [rails[name] for name in TOTAL_POWER if name in rails]
    return {
        "rails_w": rails,
        "power_w": totals[0] if totals else sum(rails.values()) if rails else None,
        "temperature_c": {name: c for name, c in heat.items() if c > SENSOR_OFF and name != "PMIC"},
    }


def _read(path: str) -> Optional[str]:
    try:
        with open(path) as file:
            return file.read().strip("\0\n ")
    except (OSError, ValueError):
        return None


def _output(command: List[str]) -> Optional[str]:
    """What a program prints; None when it is missing, fails (some ask for root) or takes long."""
    try:
        printed = subprocess.check_output(command, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return printed.decode(errors="replace").strip()
