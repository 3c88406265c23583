"""Scan a large split in parts that are saved as they finish, so that an interrupted check continues.

Shape letter: N images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from vitral.data import check_cache
from vitral.data.dataset import Split
from vitral.data.scan import Scan
from vitral.files import parse_json

Scanner = Callable[[Split, int, int | None, Callable[[int], None]], Scan]

PART = 4096  # images


def scan_in_parts(
    split: Split, channels: int, workers: int | None, keep: Path | None, name: str, scan: Scanner,
    tick: Callable[[int], None],
) -> Scan:  # fmt: skip
    """What `scan` finds in all of the split. Parts of 4,096 images are kept in the folder `keep`, and taken from there;
    a smaller split is one part, and is not kept. `tick` is called with how many more images are done."""
    if keep is None or len(split) <= PART:
        return scan(split, channels, workers, tick)
    parts: list[Scan] = []
    for start in range(0, len(split), PART):
        count = min(PART, len(split) - start)
        key = f"{name}-{start}"
        found = _read(check_cache.load_arrays(keep, key), count)
        if found is None:
            found = scan(split.subset(range(start, start + count)), channels, workers, tick)
            check_cache.store_arrays(keep, key, _arrays(found))
        else:
            tick(count)
        parts.append(found)
    return joined(parts)


def forget_parts(keep: Path) -> None:
    """Remove what an interrupted check left; the whole result is kept now."""
    shutil.rmtree(keep, ignore_errors=True)


def joined(parts: Sequence[Scan]) -> Scan:
    """One scan of the images of all parts, in order: what is known of each image one after the other, sums added."""
    sizes = [len(part.size_N2) for part in parts]
    values: dict[str, Any] = {}
    for field in fields(Scan):
        own = [getattr(part, field.name) for part in parts]
        if field.name == "damaged":
            starts = np.cumsum([0, *sizes[:-1]]).tolist()
            values["damaged"] = {
                start + place: cause for start, each in zip(starts, own, strict=True) for place, cause in each.items()
            }
        elif "_N" in field.name:
            values[field.name] = np.concatenate(own)
        else:
            values[field.name] = sum(own[1:], start=own[0])
    return Scan(**values)


def _arrays(scan: Scan) -> dict[str, Any]:
    arrays = {field.name: np.asarray(getattr(scan, field.name)) for field in fields(Scan) if field.name != "damaged"}
    text = json.dumps({str(place): cause for place, cause in scan.damaged.items()})
    return {**arrays, "damaged": np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)}


def _read(arrays: dict[str, Any] | None, count: int) -> Scan | None:
    names = {field.name for field in fields(Scan)}
    if arrays is None or arrays.keys() != names or len(arrays["size_N2"]) != count:
        return None
    text = arrays["damaged"].tobytes().decode("utf-8", "surrogatepass")
    damaged = {int(place): cause for place, cause in parse_json(text, where="damaged", max_items=2**31).items()}
    values: dict[str, Any] = {**arrays, "damaged": damaged, "pixels": int(arrays["pixels"])}
    return Scan(**values)
