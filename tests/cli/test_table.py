"""Tables: aligned columns, names as they are, nothing lost in a pipe or a narrow terminal."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from vitral.cli.table import table

ROWS = [
    ("[bold]cat[/bold] :smile:", "98.1 %", 3, "dog (3)"),
    ("漢字", "-", 1200, ""),
    ("a\x1b[31m\nb", "1.0 %", 20, ""),
]


def cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(letter) == "W" else 1 for letter in text)


def test_columns_are_aligned_and_text_is_not_markup() -> None:
    lines = table(("class", "recall", "images", "taken for"), ROWS).splitlines()
    assert len(lines) == 4
    assert lines[1] == "[bold]cat[/bold] :smile:  98.1 %       3  dog (3)"
    assert lines[3].startswith("a\\x1b[31m\\nb ")
    ends = {
        cells(line[: line.index(word) + len(word)]) for line, word in zip(lines[1:], ("3 ", "1200", "20"), strict=False)
    }
    assert len(ends) == 2  # "3 " stands one column further than the number
    assert all(line == line.rstrip() for line in lines)


def test_without_names_there_is_no_line_for_them() -> None:
    assert table((), [("digits", "8x8 images"), ("small", "your own")], indent=2) == (
        "  digits  8x8 images\n  small   your own"
    )
    assert table((), []) == ""


def test_a_pipe_gets_whole_rows_and_a_terminal_all_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    name, other = "n" * 500, "words " * 60
    assert table(("class", "text"), [(name, other)]).splitlines()[1] == f"{name}  {other.rstrip()}"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    lines = table(("class", "text"), [(name, other)]).splitlines()
    assert max(map(len, lines)) <= 60
    text = "".join(lines[1:])
    assert (text.count("n"), text.count("words")) == (500, 60)
