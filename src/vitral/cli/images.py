"""Image arguments of a command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vitral.errors import UserError, plural


def check_exist(names: Sequence[str]) -> None:
    """Raise UserError for a file or folder that does not exist, before a model is loaded."""
    for name in names:
        if not Path(name).exists():
            raise UserError("no such file", where=name)


def image_paths(names: Sequence[str]) -> list[str]:
    """Return these files and all images below these folders. Raises UserError without images."""
    from vitral.data.folder import images_below

    found = (images_below(Path(name)) if Path(name).is_dir() else [Path(name)] for name in names)
    paths = [str(path) for some in found for path in some]
    if not paths:
        raise UserError("no images found", where=", ".join(names))
    return paths


def skipped_lines(names: Sequence[str]) -> list[str]:
    """Return the names of skipped images as lines; none without images."""
    return [f"\n{plural(len(names), 'damaged image')} left out:", *(f"  {name}" for name in names)] if names else []


def output_file(out: Path, expected: str, suffix: str = "") -> Path:
    """Return the path of a file to write. Raises UserError, before the work starts, if it cannot be written."""
    if (suffix and out.suffix != suffix) or out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError("cannot write this file", where="out", got=out, expected=f"{expected} in an existing folder")
    return out


class Bad:
    """Count unreadable samples and report each on stderr. most: the number accepted, set by the key `key`. inputs:
    what the samples are called."""

    def __init__(self, most: int, key: str = "max_bad", inputs: str = "images") -> None:
        self._most, self._key, self._inputs, self._count = most, key, inputs, 0

    def report(self, error: str) -> None:
        """Report one sample."""
        self._count += 1
        print(f"error: {error}", file=sys.stderr)

    def exit_code(self, total: int) -> int:
        """Return 2 above the accepted number, else 0; print how many of `total` failed."""
        if not self._count:
            return 0
        is_error = self._count > self._most
        if total > 1:
            hint = f". Pass {self._key}={self._count} to accept this" if is_error else ""
            print(f"{self._count:,} of {total:,} {self._inputs} cannot be read{hint}", file=sys.stderr)
        return 2 if is_error else 0
