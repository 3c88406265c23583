"""Plain technical English in docstrings, comments, messages, help texts and documentation: a list of words to avoid."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "vitral"
PROSE = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
FILES = [*(path for path in sorted(PACKAGE.rglob("*")) if path.suffix in (".py", ".yaml", ".html", ".js")), *PROSE]
FILES.remove(ROOT / "docs" / "LOG.md")  # a record of experiments, which is not rewritten

_COUNTED = (
    "images|steps|samples|requests|tokens|lines|rows|MB|bytes|seconds|numbers|names|labels|files|weights|values"
    "|models|patches|views|one (?!(?:of|for|in|with|by|or|and|but|as|at|to|on|from|than) )[a-z]+"
)
_UNIT = (
    "second|image|class|GPU|step|process|sample|channel|block|head|row|worker|file|folder|patch|request|batch|pixel"
    "|epoch|objective|command|label|token|line|layer|side|machine|stream|split|device|task|concept|family"
)
# Pattern, and what to write instead. Matched in any case within a line.
WORDS = {
    r"\bjudg(?:e[sd]?|ing|e?ment)\b": "evaluate, validate",
    r"\btold\b(?! apart)": "given, configured",
    r"\btells?\b(?! apart| [\w ]{1,30} apart)": "shows, gives",
    r"\bsaid\b": "stated, reported",
    r"\b(?:asked|asks|asking)\b": "requested, set, configured, requires",
    r"\banew\b": "again, from the start",
    r"\bof no use\b": "has no effect",
    r"\bby (?:itself|themselves)\b": "automatically, separately, alone",
    r"\b(?:is|are) there already\b": "exists",
    r"\bwants? to know\b": "requires",
    r"\bnothing of that name\b": "not found",
    r"\bwhoever\b": "no people for processes",
    rf"\b(?:{_COUNTED}) an? (?:{_UNIT})\b(?! mixes)": "per",
    r"colour|\bgrey|\bcentre[sd]?\b|neighbour|behaviour|favour|artefact|\blicence|(?<!aria-)labell(?:ed|ing)|modell(?:ed|ing)":
        "US spelling",
    r"(?:normal|quant|minim|maxim|optim|standard|initial|organ|recogn|summar|general|penal|visual|regular|serial"
    r"|special|token)is(?:e[sdr]?|ing|ation)s?\b": "US spelling",
    r"\banalys(?:e[drs]?|ing)\b(?! of)": "US spelling",
    r"\bmend(?:s|ed|ing)?\b": "fix, repair",
    r"\bspeaks? of\b": "refers to",
    r"\b(?:goes|go|going|went|gone) on\b": "continues",
    r"\bmeanwhile\b": "during this time",
    r"\bin words\b": "as a message, as text",
    r"\bslip of the pen\b": "mistake",
}  # fmt: skip
_WORD = re.compile("|".join(f"(?P<w{number}>{pattern})" for number, pattern in enumerate(WORDS)), re.IGNORECASE)
_ADVICE = list(WORDS.values())
_IDENTIFIER = re.compile(r"""[rbf]*(["'])[\w.=*/-]*\1""")


def python_prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbers and lines of comments and of strings, without those that are one identifier."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("COMMENT", "STRING", "FSTRING_MIDDLE") and not _IDENTIFIER.fullmatch(token.string):
            yield from enumerate(token.string.split("\n"), token.start[0])


def script_prose(text: str) -> Iterator[tuple[int, str]]:
    """The same of JavaScript: comments, and strings with a blank."""
    for match in re.finditer(r"/\*.*?\*/|//[^\n]*|\"[^\"\n]* [^\"\n]*\"|`[^`]* [^`]*`", text, re.DOTALL):
        yield from enumerate(match[0].split("\n"), text.count("\n", 0, match.start()) + 1)


def found_in(text: str, suffix: str) -> list[str]:
    prose = {".py": python_prose, ".js": script_prose}.get(suffix)
    lines = prose(text) if prose else enumerate(text.split("\n"), 1)
    return [
        f"{number}: {match[0]!r}, write: {_ADVICE[int((match.lastgroup or 'w0')[1:])]}: {line.strip()[:120]}"
        for number, line in lines
        for match in _WORD.finditer(line)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_plain(path: Path) -> None:
    found = found_in(path.read_text(encoding="utf-8"), path.suffix)
    name = path.relative_to(ROOT).as_posix()
    assert not found, "\n" + "\n".join(f"{name}:{line}" for line in found)


@pytest.mark.parametrize(
    "text",
    [
        "# the weights are judged", '"""The judgement of a run."""', 'f"{name} is what was asked for"',
        "# one worker a GPU", "# one label an image", "# 2 images a second", "# normalised pixels", "# a Neighbour",
        "# it starts anew", "# whoever it is",
    ],
)  # fmt: skip
def test_the_list_finds(text: str) -> None:
    assert len(found_in(text, ".py")) == 1


@pytest.mark.parametrize(
    "text",
    [
        'key = "judge"', "judge = told(asked)  # names in code are found by their readers", "# tells the members apart",
        "# one of a class", "# model analysis, optimistic, an analysis of layers, a specialist, normalization",
        "# images as a file", "# a mean a little lower",
    ],
)  # fmt: skip
def test_the_list_leaves(text: str) -> None:
    assert found_in(text, ".py") == []


# WAI-ARIA 1.2, the common ones: browsers ignore all other names.
ARIA = {
    "atomic", "busy", "checked", "controls", "current", "describedby", "disabled", "expanded", "hidden", "invalid",
    "label", "labelledby", "level", "live", "modal", "pressed", "readonly", "required", "selected", "sort", "valuemax",
    "valuemin", "valuenow", "valuetext",
}  # fmt: skip


def test_pages_use_attributes_that_exist() -> None:
    pages = [path for path in FILES if path.suffix in (".html", ".js")]
    named = {name for path in pages for name in re.findall(r"\baria-([a-z]+)", path.read_text(encoding="utf-8"))}
    assert named
    assert not named - ARIA
