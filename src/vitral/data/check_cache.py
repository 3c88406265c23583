"""Cache of check results in the user's cache folder: a second check of the same files decodes none."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vitral.atomic_files import write_cache
from vitral.data.dataset import Array, Dataset
from vitral.data.findings import CheckReport
from vitral.files import parse_json, read_text

VERSION = 3  # of the rules: raised with every change of what a check finds


def cache_folder(kind: str = "checks") -> Path:
    """$XDG_CACHE_HOME/vitral/checks, or ~/.cache/vitral/checks; likewise for another kind. Need not exist."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vitral" / kind


def key(dataset: Dataset, variant: str) -> str:
    """What a result depends on, as 32 hex digits: rules, classes, labels, names, and of files size and time of change.

    Images that are no files of their own are known by the dataset's fingerprint, which covers their content.
    """
    digest = hashlib.sha256(
        repr(
            (
                VERSION,
                variant,
                dataset.name,
                dataset.whole_fingerprint,
                dataset.channels,
                dataset.classes,
                dataset.unpaired,
            )
        ).encode("utf-8", "backslashreplace")
    )
    for name, split in dataset.parts.items():
        digest.update(f"\0{name}\0{len(split)}\0{split.labels_N.shape}".encode())
        digest.update(split.labels_N.tobytes())
        digest.update(split.boxes.content() if split.boxes is not None else b"")
        digest.update("\0".join(map(str, split.names)).encode("utf-8", "surrogatepass"))
        if split.file is not None and len(split) and isinstance(split.file(0), str):
            for index in range(len(split)):
                digest.update(_state(split.file(index)))
    return digest.hexdigest()[:32]


def _state(path: str | bytes) -> bytes:
    assert isinstance(path, str)
    try:
        status = os.stat(path)
    except OSError:
        return b"missing"
    return b"%d %d " % (status.st_size, status.st_mtime_ns)


def load(folder: Path, name: str) -> CheckReport | None:
    """The result kept under this key, if there is one that can be read."""
    try:
        tree = parse_json(read_text(folder / f"{name}.json"), where=name, max_items=10_000_000)
        return replace(CheckReport.from_json(tree), cached=True)
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        return None


def load_arrays(folder: Path, name: str) -> dict[str, Array] | None:
    """Arrays kept under this key, if they are there and whole."""
    try:
        content = (folder / f"{name}.npz").read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as found:
            return {each: found[each] for each in found.files}
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def store_arrays(folder: Path, name: str, arrays: Mapping[str, Array]) -> None:
    """Keep arrays, as `store_tree` does a tree."""
    content = io.BytesIO()
    np.savez(content, **dict(arrays))  # pyright: ignore[reportArgumentType]  (its own keyword is no array)
    write_cache(folder / f"{name}.npz", content.getvalue())


def forget(folder: Path, dataset: Dataset, variant: str) -> None:
    """Drop what is kept about these images."""
    (folder / f"{key(dataset, variant)}.json").unlink(missing_ok=True)


def store_tree(folder: Path, name: str, tree: Mapping[str, Any]) -> None:
    """Keep what JSON can hold: written under a name of this process alone, then renamed. A folder that can't be written
    is no error: the next check then takes its time again."""
    write_cache(folder / f"{name}.json", json.dumps(tree).encode())
