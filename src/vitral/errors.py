"""Errors meant for people: what is wrong, where, what was found, what would do, and what to type next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


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
        super().__init__("\n".join(lines))


class RunFailed(Exception):
    """Failed while running, through nobody's typing: exit code 1, one message."""

    exit_code = 1


class Interrupted(Exception):
    """The run was stopped by a signal after its state was saved: exit code 128 + the signal's number."""

    def __init__(self, signum: int, message: str) -> None:
        self.signum, self.exit_code = signum, 128 + signum
        super().__init__(message)


def nearest(name: str, options: Iterable[str]) -> str | None:
    """The most similar of `options`, or None if nothing comes close."""
    found = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return found[0] if found else None
