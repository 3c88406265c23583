"""Errors meant for people: what is wrong, where, what was found, what would do, and what to type next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# C0 and C1 controls but tab and line feed, delete, line and paragraph separators, and what turns the order of letters.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return text with control characters as the escapes of JSON: names from files must not steer a terminal.

    Inside JSON strings they stand for the same characters.
    """
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def one_line(text: str) -> str:
    """Return `printable` text in which line feeds and tabs are escapes too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


class UserError(ValueError):
    """A mistake the user can mend: usage, config or data. The command line shows it without a traceback, exit code 2.

    what: one sentence without a full stop. where: a file, a line or a dotted key. got, wanted: the two sides of a
    mismatch. nearest: the closest legal name. hint: the next thing to do, often a command.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        wanted: object = None,
        nearest: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.nearest = what, where, nearest
        lines = [what if where is None else f"{where}: {what}"]
        lines += [f"  got:    {got}"] if got is not None else []
        lines += [f"  wanted: {wanted}"] if wanted is not None else []
        lines += [f"  did you mean {nearest!r}?"] if nearest is not None else []
        lines += [f"  {hint}"] if hint is not None else []
        super().__init__(printable("\n".join(lines)))


class RunFailed(Exception):
    """Failed while running, through nobody's typing: exit code 1, one message."""

    exit_code = 1


class Interrupted(Exception):
    """The run was stopped by a signal after its state was saved: exit code 128 + the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        self.signum, self.exit_code = signum, 128 + signum
        super().__init__(message)


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The most similar of `options`, or None if nothing comes close: three fifths of the letters, in the same order."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None


def nearest_key(key: str, options: Iterable[str]) -> str | None:
    """The same for dotted keys, whose last parts must be close as well as what stands before them: of
    data.background, data.path shares no more than the group. A key without its group, or in another one, is found too.
    """
    options = list(options)
    group, _, last = key.rpartition(".")

    def likeness(option: str) -> float:
        its_group, _, its_last = option.rpartition(".")
        if last == its_last:
            return 2 + _ratio(group, its_group)
        return min(_ratio(last, its_last), _ratio(group, its_group) if group else 1)

    best = max(options, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.7 else None


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
