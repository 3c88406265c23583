"""Count the lines of code of a package: no blank lines, comments or docstrings.

    python tools/code_lines.py [FOLDER] [--files]

Print the total and one line per subpackage of FOLDER (src/vitral), largest first; --files prints one line per file.
`[tool.vitral] code_lines` of pyproject.toml is the budget, which tests/test_code_lines.py holds.
"""

from __future__ import annotations

import argparse
import ast
import tokenize
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "vitral"
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}


def code_lines(path: Path) -> int:
    """Return the number of code lines of a Python file. A multi-line string counts unless it is a docstring."""
    with tokenize.open(path) as file:
        text = file.read()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and type(first.value.value) is str:
                lines.difference_update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def count(folder: Path) -> dict[str, int]:
    """Return the code lines of each Python file below a folder, by relative path."""
    return {path.relative_to(folder).as_posix(): code_lines(path) for path in sorted(folder.rglob("*.py"))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Count the lines of code of a package.")
    parser.add_argument("folder", nargs="?", type=Path, default=PACKAGE)
    parser.add_argument("--files", action="store_true", help="a line per file instead of per subpackage")
    arguments = parser.parse_args()
    files = count(arguments.folder)
    groups: Counter[str] = Counter()
    for name, lines in files.items():
        groups[name if arguments.files or "/" not in name else name.split("/")[0] + "/"] += lines
    for name, lines in [("total", sum(files.values())), *groups.most_common()]:
        print(f"{lines:7,} {name}")


if __name__ == "__main__":
    main()
