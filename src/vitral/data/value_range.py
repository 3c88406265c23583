"""Black and white level of images with more than 8 bits: one rule per data set.

A camera's 10 or 12 bits in files of 16, reflectances, depths and heights in floats: a file does not state its range,
and the least and largest sample of one image are not those of the next.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from pydantic import TypeAdapter

from vitral.data import check_cache
from vitral.data.channels import Decoding, Extent, Range
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset, Split
from vitral.data.decode import is_deep, sample_extent
from vitral.data.files import any_image
from vitral.errors import UserError
from vitral.files import read_json

_CONVENTIONS = (1, 255, 65535)  # where floats usually end
_USED = 4  # a convention counts if the largest sample is above this part of it
_LEVELS = 255
_FEWEST = 16  # gray levels that the bulk of all samples has to fill


def find_value_range(dataset: Dataset, config: DataConfig) -> Range | None:
    """Black and white of this data set's images of more than 8 bits; None where there is none among the headers of up
    to 2,000 files of each split, evenly spaced.

    Integers from 0 on: to 2^bits - 1, with the bits that the largest sample needs, at least 8. Floats from 0 on: to 1,
    255 or 65535 if the largest sample is in its upper three quarters, else to the largest. With negative samples: from
    the least to the largest. Images that can't be read don't count. Raises UserError where integers and floats are
    mixed, where the range of all leaves less than one gray level to a float image, and where extreme samples make the
    range so wide that the others fill less than 16 gray levels.
    """
    if not any(each.file and any_image(len(each), each.file, is_deep) for each in dataset.splits.values()):
        return None
    workers = config.workers if config.workers != "auto" else None
    extents = _extents(dataset, Decoding.of(config), workers or os.cpu_count() or 1)
    return range_of(extents, config.path) if extents else None


def range_of(extents: dict[str, Extent], where: str | None) -> Range:
    """Return the same of images whose extents are known, by name."""
    scale = _ends(extents, where)
    _refuse_few_levels(extents, scale, where)
    return scale


def _ends(extents: dict[str, Extent], where: str | None) -> Range:
    floats = [name for name, found in extents.items() if found.is_float]
    if 0 < len(floats) < len(extents):
        other = next(name for name in extents if name not in set(floats))
        raise UserError(
            f"images of different ranges: {floats[0]} holds floats, {other} integers", where=where,
            hint="Convert them to one type, or set data.value_range=LOW,HIGH to the values of black and white.",
        )  # fmt: skip
    low = min(found.low for found in extents.values())
    high = max(found.high for found in extents.values())
    if low < 0:
        return low, high if high > low else low + 1
    if not floats:
        return 0, (1 << max(int(high).bit_length(), 8)) - 1
    top = next((float(top) for top in _CONVENTIONS if top / _USED < high <= top), high) or 1.0
    lost = [name for name, found in extents.items() if found.high - found.low > 0 and found.high < top / _LEVELS]
    if lost:
        found = extents[lost[0]]
        raise UserError(
            f"{len(lost)} float images of another range than the others: {lost[0]} ends at {found.high:g}, the largest "
            f"value of all is {high:g}", where=where,
            hint="Scale them alike, or set data.value_range=LOW,HIGH to the values of black and white.",
        )  # fmt: skip
    return 0, top


def _refuse_few_levels(extents: dict[str, Extent], scale: Range, where: str | None) -> None:
    """Raise UserError where a few extreme samples (a hot pixel, -9999 for no data) make the range so wide that the
    others fill less than 16 of 255 gray levels. The outermost tenth of the images at either end counts as extreme."""
    low, high = scale
    if high - low <= _LEVELS and not any(found.is_float for found in extents.values()):
        return  # a level of its own for each integer
    bodies = [found.body or (found.low, found.high) for found in extents.values() if found.high > found.low]
    if not bodies:
        return
    cut = math.ceil(len(bodies) / 10) if len(bodies) > 3 else 0
    least = sorted(body[0] for body in bodies)[cut]
    most = sorted(body[1] for body in bodies)[-1 - cut]
    if (most - least) * _LEVELS >= _FEWEST * (high - low):
        return
    extreme = max(extents, key=lambda name: max(least - extents[name].low, extents[name].high - most))
    found = extents[extreme]
    raise UserError(
        f"extreme samples leave less than {_FEWEST} of {_LEVELS} gray levels to the images: {extreme} has values from "
        f"{found.low:.9g} to {found.high:.9g}, nearly all samples lie between {least:.6g} and {most:.6g}", where=where,
        hint=f"Set data.value_range=LOW,HIGH to the values of black and white, such as {least:.6g},{most:.6g}; samples "
        "beyond are clipped.",
    )  # fmt: skip


def _extents(dataset: Dataset, rules: Decoding, workers: int) -> dict[str, Extent]:
    """Of every image of more than 8 bits, by split and name; from the cache while the files stay the same."""
    folder, key = check_cache.cache_folder(), check_cache.key(dataset, f"value_range 2, max_pixels {rules.max_pixels}")
    with suppress(OSError, ValueError):
        return TypeAdapter(dict[str, Extent]).validate_python(read_json(folder / f"{key}.json", constants=True))
    found: dict[str, Extent] = {}
    with ThreadPoolExecutor(workers) as pool:
        for split, own in dataset.splits.items():
            extents = zip(own.names, pool.map(partial(_extent, own, rules), range(len(own))), strict=True)
            found |= {f"{split}: {name}": extent for name, extent in extents if extent is not None}
    check_cache.store_tree(folder, key, found)
    return found


def _extent(split: Split, rules: Decoding, index: int) -> Extent | None:
    assert split.file is not None
    try:
        return sample_extent(split.file(index), rules=rules)
    except UserError:  # the check, or reading it, names it
        return None
