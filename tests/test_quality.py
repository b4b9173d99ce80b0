"""The linter, the formatter and the type checker find nothing; the packages import one another in one direction."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# From the ground up; a module may import from its own level and those before it (DESIGN).
LEVELS = [
    {
        "errors",
        "atomic_file",
        "quiet",
        "config",
        "refused",
        "cache",
        "names",
        "json_file",
        "overrides",
        "command_line",
        "progress",
        "builders",
        "runs",
        "jetson",
        "openvino_core",
        "peak_memory",
    },
    {"losses", "metrics", "geometry", "breakdown", "calibration"},
    {"models"},
    {"data"},
    {"sensors"},
    {"evaluation"},
    {"export", "roofline"},
    {"engines"},
    {"engine_memory", "profile"},
    {"benchmark"},
    {"report"},
    {"deploy"},
    {"training"},
    {"pruning"},
    {"sweep"},
    {"cli"},
]


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_the_checkers_find_nothing(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_one_way():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    for path in (ROOT / "mde").rglob("*.py"):
        own = path.relative_to(ROOT / "mde").with_suffix("").parts[0]
        if own == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in filter(None, names):
                if name.startswith("mde."):
                    other = name.split(".")[1]
                    assert level[other] <= level[own], f"{path} imports {name}"
