"""A scan in parts: equal to the whole one, and an interrupted check goes on where it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitral.data import scan as scan_module
from vitral.data.check import check_dataset
from vitral.data.dataset import Dataset, Split, memory_split
from vitral.data.scan import Scan, scan, scan_in_parts
from vitral.errors import UserError


def of_noise(count: int) -> Split:
    images_NCHW = np.random.default_rng(0).integers(0, 256, (count, 3, 6, 5), dtype=np.uint8)
    split = memory_split(images_NCHW, np.arange(count) % 2, [str(i) for i in range(count)], 3)

    def read(index: int) -> Any:
        if index in (4, 11):
            raise UserError(f"damage {index}")
        return split.read(index)

    return Split(split.labels_N, split.names, read)


def assert_equal(one: Scan, other: Scan) -> None:
    for field in fields(Scan):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        np.testing.assert_array_equal(mine, theirs) if field.name != "damaged" else None
    assert one.damaged == other.damaged


def test_parts_give_what_the_whole_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "PART", 4)
    split, calls, ticks = of_noise(14), list[int](), list[int]()

    def counted(part: Split, channels: int, workers: int | None, tick: Callable[[int], None]) -> Scan:
        calls.append(len(part))
        return scan(part, channels, workers, tick)

    whole = scan(split, 3, 2)
    monkeypatch.setattr(scan_module, "scan", counted)
    assert whole.damaged == {4: "damage 4", 11: "damage 11"}
    assert_equal(scan_in_parts(split, 3, 2, tmp_path, "train", ticks.append), whole)
    assert calls == [4, 4, 4, 2]
    assert_equal(scan_in_parts(split, 3, 2, tmp_path, "train", ticks.append), whole)
    assert calls == [4, 4, 4, 2], "all parts are kept"
    (tmp_path / "train-4.npz").write_bytes(b"PK damaged")
    assert_equal(scan_in_parts(split, 3, 2, tmp_path, "train", ticks.append), whole)
    assert calls == [4, 4, 4, 2, 4]
    assert sum(ticks) == 3 * 14, "kept parts count as done"


def test_an_interrupted_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "PART", 4)
    calls: list[int] = []

    def stopped(part: Split, channels: int, workers: int | None, tick: Callable[[int], None]) -> Scan:
        calls.append(len(part))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scan(part, channels, workers, tick)

    monkeypatch.setattr(scan_module, "scan", stopped)
    dataset = Dataset("noise", ("a", "b"), {"train": of_noise(14)}, 3, (), "00")
    with pytest.raises(KeyboardInterrupt):
        check_dataset(dataset, cache=tmp_path)
    report = check_dataset(dataset, cache=tmp_path)
    assert calls == [4, 4, 4, 4, 2], "the first two parts were kept"
    assert report.to_json() == check_dataset(dataset).to_json()
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"], "the parts go when the whole is kept"
