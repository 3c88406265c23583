"""Images known by content: copies, cached between starts, with the reads counted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.config import build
from vitral.data import content_ids
from vitral.data.config import DataConfig
from vitral.data.content_ids import PART, first_copies, identities
from vitral.data.dataset import Dataset
from vitral.data.sources import open_dataset
from vitral.data.splits import with_remembered, with_validation
from vitral.errors import UserError


def write_raw(root: Path, sizes: dict[str, int]) -> Path:
    """Files of these sizes that are no real images: identities are of bytes."""
    for name, size in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(np.random.default_rng([*name.encode()]).bytes(size))
    return root


def opened(root: Path) -> Dataset:
    return open_dataset(build(DataConfig, {"path": str(root), "channels": 3}), hold_out=False)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Two classes of 12 files of 150 to 161 KB, of which two are equal in their ends alone, and two are copies."""
    root = write_raw(tmp_path / "d", {f"{label}/{n}.png": 150_000 + 1000 * n for label in "ab" for n in range(12)})
    content = bytearray((root / "a/3.png").read_bytes())
    (root / "a/copy.png").write_bytes(content)
    content[PART + 1000] ^= 1
    (root / "a/middle.png").write_bytes(content)
    return root


def test_copies_are_equal_files_whatever_their_ends(large: Path) -> None:
    split = opened(large).splits["train"]
    place = {name: at for at, name in enumerate(split.names)}
    first_N = first_copies(split)
    others = [at for name, at in place.items() if name != "a/copy.png"]
    assert first_N[place["a/copy.png"]] == place["a/3.png"]
    assert first_N[others].tolist() == others
    ids_N2 = identities(split)
    assert (ids_N2[place["a/middle.png"]] == ids_N2[place["a/3.png"]]).all(), "which is why they are read whole"
    assert len(np.unique(ids_N2, axis=0)) == 24


def test_unchanged_files_are_read_once(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, str]] = []
    for name in ("_identity", "_rest"):
        inner = getattr(content_ids, name)

        def counted(*args: Any, name: str = name, inner: Any = inner) -> Any:
            reads.append((name, str(args[-1])))
            return inner(*args)

        monkeypatch.setattr(content_ids, name, counted)
    first = with_validation(opened(large), 0.2)
    assert sum(kind == "_identity" for kind, _ in reads) == 26
    assert sum(kind == "_rest" for kind, _ in reads) == 3, "only those that are equal in their ends"
    reads.clear()
    again = with_validation(opened(large), 0.2)
    assert reads == []
    assert again.splits["val"].names == first.splits["val"].names
    assert again.notes == first.notes
    os.utime(large / "a/0.png", ns=(1, 1))
    with_validation(opened(large), 0.2)
    assert sum(kind == "_identity" for kind, _ in reads) == 26


def test_a_damaged_cache_is_no_harm(large: Path) -> None:
    first = with_validation(opened(large), 0.2)
    for file in content_ids.check_cache.cache_folder().glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    assert with_validation(opened(large), 0.2).splits["val"].names == first.splits["val"].names


def test_what_was_held_out_is_known_again(tmp_path: Path) -> None:
    root = write_raw(tmp_path / "d", {f"{label}/{n}.png": 100 + n for label in "ab" for n in range(20)})
    dataset = with_validation(opened(root), 0.2)
    assert dataset.carved is not None
    write_raw(root, {"a/new.png": 50, "b/new.png": 60})
    (root / dataset.splits["val"].names[0]).rename(root / "a/other.png")
    found, new = with_remembered(opened(root), dataset.carved)
    assert len(found.splits["val"]) == 8
    assert len(found.splits["train"]) == 32
    assert list(new) == ["a/new.png", "b/new.png"]
    for name in found.splits["val"].names:
        (root / name).unlink()
    with pytest.raises(UserError, match="none of the images that were held out"):
        with_remembered(opened(root), dataset.carved)
