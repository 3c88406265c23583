"""Identify images by size in bytes and content, independent of their names, and find exact copies.

Of a file only the first and the last 64 KB are read, which is all of most; files that are equal in these and longer are
read whole before they count as copies. What was found is kept in the user's cache folder, so that unchanged files are
read once. Shape letter: N samples.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np

from vitral.data import check_cache
from vitral.data.dataset import Array, Dataset, Split
from vitral.errors import UserError
from vitral.files import open_regular

T = TypeVar("T")

PART = 1 << 16  # bytes read at the start and at the end of a file
_TASK = 256  # images per task


class Known(NamedTuple):
    """ids_N2: 128 bits over size and content, 0, 0 for what cannot be read. first_N: where the first exact copy of each
    sample stands; its own place, where there is no other."""

    ids_N2: Array
    first_N: Array


def known(dataset: Dataset) -> Known:
    """Identities and copies of a dataset's train split; of unchanged files, and of data that a source's fingerprint
    covers, from the cache."""
    train = dataset.splits["train"]
    if train.content is not None or train.file is None:
        return _known(train)
    alone = replace(dataset, splits={"train": train}, unlabeled=None)
    folder, key = check_cache.cache_folder(), check_cache.key(alone, "identities 1")
    kept = check_cache.load_arrays(folder, key)
    if kept is not None and {"ids", "first"} <= kept.keys() and len(kept["ids"]) == len(kept["first"]) == len(train):
        return Known(kept["ids"], kept["first"])
    found = _known(train)
    check_cache.store_arrays(folder, key, {"ids": found.ids_N2, "first": found.first_N})
    return found


def _known(split: Split) -> Known:
    ids_N2 = identities(split)
    return Known(ids_N2, first_copies(split, ids_N2))


def identities(split: Split) -> Array:
    """128 bits over size and content of each sample, uint64 [N, 2]; 0, 0 for one that cannot be read. Equal files give
    equal identities; of images that are no files, equal pixels as the source holds them do."""
    digests = _each(partial(_identity, split), list(range(len(split))))
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2).copy()


def first_copies(split: Split, ids_N2: Array | None = None) -> Array:
    """Where the first exact copy of each sample stands [N]; its own place, where there is no other.

    Copies are equal files, byte by byte; of images that are no files, equal pixels as the source holds them. Files of
    more than 128 KB are read whole where their identities are equal. One that cannot be read is no copy of another.
    """
    ids_N2 = identities(split) if ids_N2 is None else ids_N2
    names = [bytes(row) for row in ids_N2.astype("<u8").view(np.uint8)]
    counts, unread = Counter(names), bytes(16)
    places = [place for place, name in enumerate(names) if counts[name] > 1 and name != unread]
    first_N = np.arange(len(split))
    seen: dict[bytes, int] = {}
    for place, rest in zip(places, _each(partial(_rest, split), places), strict=True):
        if rest is not None:
            first_N[place] = seen.setdefault(names[place] + rest, place)
    return first_N


def _each(function: Callable[[int], T], places: list[int]) -> list[T]:
    """What the function gives for each place, in threads: files are waited for together."""
    parts = [places[start : start + _TASK] for start in range(0, len(places), _TASK)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return [found for part in pool.map(lambda part: [function(place) for place in part], parts) for found in part]


def _content(split: Split, index: int) -> bytes | str:
    """Return what identifies an image; for a file on disk its path."""
    if split.content is not None:
        return split.content(index)
    return split.read(index).numpy().tobytes() if split.file is None else split.file(index)


def _identity(split: Split, index: int) -> bytes:
    try:
        found = _content(split, index)
        if isinstance(found, bytes):
            return _digest(found, len(found))
        with open_regular(found) as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(PART)
            if size > 2 * PART:
                file.seek(size - PART)
            return _digest(start + file.read(PART), size)
    except (OSError, UserError):
        return bytes(16)


def _digest(content: bytes, size: int) -> bytes:
    ends = content if size <= 2 * PART else content[:PART] + content[-PART:]
    return hashlib.blake2b(ends, digest_size=16, salt=size.to_bytes(16, "little")).digest()


def _rest(split: Split, index: int) -> bytes | None:
    """A digest of all of a file that is longer than what its identity covers, else nothing."""
    if split.content is None and split.file is None:
        return b""
    try:
        found = _content(split, index)
        if isinstance(found, str):
            with open_regular(found) as file:
                found = file.read() if os.fstat(file.fileno()).st_size > 2 * PART else b""
    except (OSError, UserError):
        return None
    return b"" if len(found) <= 2 * PART else hashlib.blake2b(found, digest_size=16).digest()
