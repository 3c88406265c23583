"""Image files that a command is given."""

from __future__ import annotations

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
