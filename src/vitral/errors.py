"""Errors for users: what is wrong, where, expected and received values, and the next command."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import shlex
from collections.abc import Iterable

NAMES = "vitral.names"  # error handler of written text: see `shown`
# Characters that move the cursor, break lines or change the writing direction: control characters and relatives.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_LONGEST = 2000  # characters of a value in a message


class _Brief(Exception):
    """Base of errors that notebooks show without a traceback."""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UserError(_Brief, ValueError):
    """A mistake that the user can fix: usage, config or data. The command line shows it without a traceback, exit
    code 2.

    what: one sentence without a full stop. where: a file, a line or a dotted key. got, expected: the two sides of a
    mismatch. nearest: the closest legal name. hint: the next step, often a command.
    """

    exit_code = 2

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: object = None,
        expected: object = None,
        nearest: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.what, self.where, self.nearest = what, where, nearest
        what = _bounded(what, 4 * _LONGEST)
        lines = [what if where is None else f"{shown(_bounded(where))}: {what}"]
        lines += [f"  got:    {_bounded(got)}"] if got is not None else []
        lines += [f"  expected: {_bounded(expected)}"] if expected is not None else []
        lines += [f"  did you mean {nearest!r}?"] if nearest is not None else []
        lines += [f"  {hint}"] if hint is not None else []
        super().__init__(shown_lines("\n".join(lines)))


class RunFailed(_Brief):
    """A failure while running that is not a user mistake: exit code 1, one message."""

    exit_code = 1


class Interrupted(_Brief):
    """The run was stopped by a signal after its state was saved: exit code 128 + the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        self.signum, self.exit_code = signum, 128 + signum
        super().__init__(message)


def shown(name: str) -> str:
    r"""Return the printable form of a file or class name: UTF-8, one line. Bytes that are not UTF-8 and control
    characters become escapes (`caf\xe9`, `\n`); every other name is unchanged."""
    if name.isprintable():
        return name
    plain = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), name)
    return plain.encode("utf-8", NAMES).decode("utf-8")


def shown_lines(text: str) -> str:
    """Return a text of several lines with `shown` applied to each."""
    return text if text.isprintable() else "\n".join(map(shown, text.split("\n")))


def json_safe(text: str) -> str:
    """Return text with control characters (except line ends and tabs) and lone surrogates as escapes. Inside the
    strings of JSON the escapes mean the same characters."""
    if text.isprintable():
        return text
    plain = _CONTROLS.sub(lambda found: found[0] if found[0] in "\n\t" else f"\\u{ord(found[0]):04x}", text)
    return plain.encode("utf-8", "backslashreplace").decode("utf-8")  # lone surrogates


def plural(count: int, word: str, words: str | None = None) -> str:
    """Return the number with the noun in its form: 1 image, 2 images, 1,000 classes (`words` where an s is not
    enough)."""
    return f"{count:,} {word if count == 1 else words or word + 's'}"


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Return the bytes that Python holds as lone surrogates, as `\\x` and two digits; other surrogates by their
    number."""
    assert isinstance(error, UnicodeEncodeError)
    signs = map(ord, error.object[error.start : error.end])
    return "".join(f"\\x{c - 0xDC00:02x}" if 0xDC80 <= c <= 0xDCFF else f"\\u{c:04x}" for c in signs), error.end


codecs.register_error(NAMES, _escaped)


def _bounded(value: object, longest: int = _LONGEST) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]} ... ({len(text):,} characters)"


def command(*words: str) -> str:
    """Return a command line to print, quoted for the shell of this system."""
    if os.name == "nt":  # cmd.exe knows no single quotes
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def taken(place: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False) -> UserError:
    """Return the error of an existing output file or non-empty output folder. overwrite, resume: whether the command
    supports these keys."""
    what = "output folder exists and is not empty" if os.path.isdir(place) else "output file exists"
    ways = ["overwrite=true to replace it"] * overwrite + ["resume=true to continue"] * resume
    hint = f"Pass {' or '.join(ways)}." if ways else "Pass another out=PATH, or remove this one."
    return UserError(what, where="out", got=place, hint=hint)


def nearest(name: str, options: Iterable[str]) -> str | None:
    """Return the most similar of `options`, or None below a similarity of 0.6."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.6)
    return found[0] if found else None


def nearest_key(key: str, options: Iterable[str]) -> str | None:
    """Return the most similar dotted key: last parts and groups must both be similar. A key without its group, or in
    another group, is found too."""
    options = list(options)
    group, _, last = key.rpartition(".")

    def similarity(option: str) -> float:
        its_group, _, its_last = option.rpartition(".")
        if last == its_last:
            return 2 + _ratio(group, its_group)
        return min(_ratio(last, its_last), _ratio(group, its_group) if group else 1)

    best = max(options, key=similarity, default=None)
    return best if best is not None and similarity(best) >= 0.7 else None


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()
