"""Image files that a command is given: their paths, and answers in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from vitral.errors import UserError

T = TypeVar("T")


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


def answers(paths: Sequence[str], size: int, answer: Callable[[list[str]], Iterable[T]]) -> Iterator[T]:
    """One answer a path, `size` paths at once; the answers before an image that cannot be read are not lost."""
    for start in range(0, len(paths), size):
        batch = list(paths[start : start + size])
        try:
            found = answer(batch)
        except UserError:
            found = (one for path in batch for one in answer([path]))
        yield from found
