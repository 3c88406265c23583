"""Answers to many images, in the order of the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from vitral.errors import UserError

T = TypeVar("T")


def answers(paths: Sequence[str], size: int, answer: Callable[[list[str]], Iterable[T]]) -> Iterator[T]:
    """One answer a path, `size` paths at once; the answers before an image that cannot be read are not lost."""
    for batch in in_batches(paths, size):
        try:
            found = answer(batch)
        except UserError:
            found = (one for path in batch for one in answer([path]))
        yield from found


def in_batches(paths: Sequence[str], size: int) -> list[list[str]]:
    """The same paths, `size` at once."""
    return [list(paths[start : start + size]) for start in range(0, len(paths), size)]
