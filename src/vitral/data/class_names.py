"""Find suspicious class names: two that look alike, and words for a missing label."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from vitral.data.findings import Finding, Severity, finding

_BETWEEN = re.compile(r"(?<=[^\W\d])[\s_\-.]+(?=\w)")  # words, but not digits: 1.5 and 1-5 are two
# What programs write for a value that is not there; the first kind is never a name, the second may be one (no defect).
_MISSING = frozenset({"nan", "<na>", "nat", "#n/a", "n/a", "#null!", "#value!", "#ref!", "\\n"})
_PERHAPS = frozenset({"na", "none", "null", "nil", "undefined", "?", "-"})
_FULL_WIDTH = {0xFF01 + place: 0x21 + place for place in range(0x5E)}  # to ASCII
_SHOWN = 5


def class_name_findings(classes: Sequence[str]) -> list[Finding]:
    """Return `alike-classes`: names that look the same in print (accents in one sign or two, Latin letters of another
    width, signs without width, other spaces); a warning where they differ by case, by spaces, `_`, `-` and `.`, or by
    the form of a sign (m2 and m²) alone. And `missing-label`: nan, N/A and -1 beside numbers; a warning
    for words that may be names (none, NA)."""
    same = _groups(classes, _looks)
    near = [group for group in _groups(classes, _folded) if len(set(map(_looks, group))) > 1]
    return [
        *_alike("error", same, "look the same and are different text"),
        *_alike("warning", near, "differ only by case, spaces, punctuation or form"),
        *_missing(classes),
    ]


def _groups(classes: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in classes:
        groups.setdefault(key(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _looks(name: str) -> str:
    """Return what is seen of a name: signs without width removed, one form of each accent, Latin letters of one width,
    one kind of space."""
    seen = (sign for sign in unicodedata.normalize("NFC", name) if not _is_unseen(sign))
    return " ".join("".join(seen).translate(_FULL_WIDTH).split())


def _is_unseen(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cf", "Cc") or "VARIATION SELECTOR" in unicodedata.name(sign, "")


def _folded(name: str) -> str:
    return _BETWEEN.sub(" ", unicodedata.normalize("NFKC", _looks(name)).casefold())


def _alike(severity: Severity, groups: Sequence[Sequence[str]], what: str) -> Iterator[Finding]:
    if not groups:
        return
    shown = ", ".join(" and ".join(map(ascii, group)) for group in groups[:_SHOWN])
    more = f" and {len(groups) - _SHOWN:,} more" if len(groups) > _SHOWN else ""
    yield finding("alike-classes", f"class names {what}: {shown}{more}", (), severity, classes=sum(map(len, groups)))


def _missing(classes: Sequence[str]) -> Iterator[Finding]:
    never = [name for name in classes if name.strip().casefold() in _MISSING or not _looks(name)]
    perhaps = [name for name in classes if name.strip().casefold() in _PERHAPS]
    others = [name for name in classes if name not in ("-1", "-1.0")]
    numbers = others and all(re.fullmatch(r"[0-9]+(\.0)?", name) for name in others)
    if len(others) < len(classes) and numbers and len(others) > 1:
        few = perhaps if len(others) == 2 else never  # -1, 0, 1 may be grades
        few += [name for name in classes if name not in others]
    kinds: tuple[tuple[Severity, list[str]], ...] = (("error", never), ("warning", perhaps))
    for severity, names in kinds:
        if names:
            text = f"classes named like a missing label: {', '.join(map(ascii, names))}"
            yield finding("missing-label", text, (), severity, classes=len(names))
