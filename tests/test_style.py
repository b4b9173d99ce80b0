"""The linter, the formatter and the type checker find nothing; the packages import one another in one direction."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# From the ground up; what is on one level does not import one another.
LEVELS = [
    {"errors", "jetson"},
    {"quiet", "config", "refused", "names"},
    {"atomic_file", "cache", "json_file", "overrides", "progress", "builders"},
    {"runs"},
    {"losses", "geometry"},
    {"metrics"},
    {"models", "renderer"},
    {"records", "data"},
    {"sensors", "evaluation"},
    {"export"},
    {"quantization"},
    {"engines"},
    {"speed"},
    {"report"},
    {"deploy", "training"},
    {"pruning"},
    {"app"},
]


@pytest.mark.parametrize("command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]])
def test_the_checkers_find_nothing(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_imports_go_one_way():
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    for path in (ROOT / "mde").rglob("*.py"):
        own = path.relative_to(ROOT / "mde").with_suffix("").parts[0]
        if path.stem == "__main__" or own == "__init__":  # a program of its own
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in filter(None, names):
                if name.startswith("mde."):
                    other = name.split(".")[1]
                    assert other == own or level[other] < level[own], f"{path} imports {name}"
