"""Tables of the command line."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from io import StringIO

from vitral.errors import shown

_NUMBER = re.compile(r"[-+]?[\d.,:]*\d[\d.,]*(e[-+]?\d+)?( ?(%|[kKMGT]?(i?B|MAC|FLOP)))?|-")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], indent: int = 0) -> str:
    """Return rows as text below the column names, if any. The first column and columns of words are left-aligned,
    columns with mostly numbers right-aligned. In a terminal, long cells wrap within their column; in a pipe or a file,
    each row is one line. Cells are plain text: no markup, no control characters."""
    from rich.console import Console
    from rich.table import Table

    cells = [[shown(str(cell)) for cell in row] for row in rows]
    grid = Table(box=None, show_header=bool(columns), pad_edge=False, padding=(0, 2, 0, 0))
    for place in range(len(columns) or max(map(len, cells), default=0)):
        numbers = sum(bool(_NUMBER.fullmatch(row[place])) for row in cells)
        side = "right" if place and 2 * numbers > len(cells) else "left"
        grid.add_column(shown(columns[place]) if columns else "", justify=side, overflow="fold")
    for row in cells:
        grid.add_row(*row)
    width = shutil.get_terminal_size().columns - indent if sys.stdout.isatty() else 10**6
    file = StringIO()
    Console(
        file=file, width=max(width, 20), color_system=None, markup=False, emoji=False, highlight=False,
        legacy_windows=False,
    ).print(grid)  # fmt: skip
    return "\n".join(" " * indent + line.rstrip() for line in file.getvalue().splitlines())
