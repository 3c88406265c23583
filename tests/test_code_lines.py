"""The size budget: `[tool.vitral] code_lines` of pyproject.toml bounds the code lines of the package."""

from __future__ import annotations

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "code_lines.py"

EXAMPLE = '''"""A docstring
over two lines."""

import os  # a comment

# a comment alone


class Thing:
    """A docstring."""

    text = """a string
    is code,

    with its blank line"""


def call(
    x: int,
) -> str:
    """A docstring."""
    return os.fspath(
        # a comment inside
        str(x)
    )
'''


def test_code_lines_of_a_known_file(tmp_path: Path):
    folder = tmp_path / "package" / "inner"
    folder.mkdir(parents=True)
    (folder / "example.py").write_text(EXAMPLE, encoding="utf-8")
    (folder.parent / "one.py").write_text("x = 1\n", encoding="utf-8")
    # import, class, the string's four, def's three, return's three
    assert runpy.run_path(str(TOOL))["count"](folder.parent) == {"inner/example.py": 12, "one.py": 1}
    done = subprocess.run(
        [sys.executable, str(TOOL), str(folder.parent)], capture_output=True, encoding="utf-8", check=True
    )
    assert [line.split() for line in done.stdout.splitlines()] == [["13", "total"], ["12", "inner/"], ["1", "one.py"]]


def test_the_package_is_within_its_budget():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    budget = settings["tool"]["vitral"]["code_lines"]
    counted = sum(runpy.run_path(str(TOOL))["count"](ROOT / "src" / "vitral").values())
    assert counted <= budget, f"{counted} code lines, {budget} allowed: what can be merged? See tools/code_lines.py"
