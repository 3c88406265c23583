"""Image files that a command is given."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from vitral.errors import UserError


def check_exist(names: Sequence[str]) -> None:
    """Raises UserError for a file or folder that is not there: before a model is loaded."""
    for name in names:
        if not Path(name).exists():
            raise UserError("no such image", where=name)


def image_paths(names: Sequence[str]) -> list[str]:
    """These files, and all images below these folders. Raises UserError where there is none."""
    from vitral.data.folder import images_below

    paths = [
        str(path) for name in names for path in (images_below(Path(name)) if Path(name).is_dir() else [Path(name)])
    ]
    if not paths:
        raise UserError("no images in here", where=", ".join(names))
    return paths


class Bad:
    """Images that cannot be read, named on stderr one by one: how many there were, and `most` may be, as `key` says."""

    def __init__(self, most: int, key: str = "max_bad") -> None:
        self._most, self._key, self._count = most, key, 0

    def say(self, error: str) -> None:
        """Name one."""
        self._count += 1
        print(f"error: {error}", file=sys.stderr)

    def exit_code(self, total: int) -> int:
        """2 where there were more than may be; says how many of `total` there were."""
        if not self._count:
            return 0
        is_error = self._count > self._most
        if total > 1:
            hint = f". {self._key}={self._count} accepts that" if is_error else ""
            print(f"{self._count:,} of {total:,} images cannot be read{hint}", file=sys.stderr)
        return 2 if is_error else 0
