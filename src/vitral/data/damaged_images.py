"""Find images that cannot be decoded, report them, and leave them out up to a limit. They are never replaced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from vitral.data.dataset import Dataset, Split
from vitral.data.files import some
from vitral.errors import UserError, plural

Damage = Mapping[str, Mapping[int, str]]  # by split, then by place in it: what is wrong


def find_damage(dataset: Dataset, workers: int | None = None) -> dict[str, dict[int, str]]:
    """What can't be read, after decoding every image of every split once in `workers` threads (None: one a core)."""
    return {name: find_damaged(split, workers) for name, split in dataset.parts.items()}


def find_damaged(split: Split, workers: int | None = None) -> dict[int, str]:
    """What is wrong, by place, with every image of the split that cannot be decoded; nothing else is computed."""

    def cause(index: int) -> str | None:
        try:
            split.read(index)
        except UserError as error:
            return error.what
        return None

    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        causes = list(pool.map(cause, range(len(split))))
    return {index: what for index, what in enumerate(causes) if what is not None}


def describe_damage(split: Split, damage: Mapping[int, str]) -> list[str]:
    """'name: cause' of each damaged image."""
    return [f"{split.names[index]}: {cause}" for index, cause in damage.items()]


def without_damage(dataset: Dataset, damage: Damage, max_bad: int) -> Dataset:
    """The dataset without the damaged images, and a note that counts and names them.

    Raises UserError, naming them, where they are more than `max_bad` over all splits, and where a class of train or a
    whole split goes with them. Everything that `find_damage` found, or a check that decoded every image, may come in.
    """
    problems = [text for name, found in damage.items() for text in describe_damage(dataset.parts[name], found)]
    if not problems:
        return dataset
    first = "\n    ".join(problems[:10])
    more = f"\n    and {len(problems) - 10} more" if len(problems) > 10 else ""
    if len(problems) > max_bad:
        raise UserError(
            f"{plural(len(problems), 'damaged image')}:\n    {first}{more}", where=dataset.name,
            expected=f"at most {max_bad} (data.max_bad)", hint="Repair or remove them, or pass data.max_bad=N.",
        )  # fmt: skip
    parts = {
        name: split.subset(index for index in range(len(split)) if index not in damage.get(name, {}))
        for name, split in dataset.parts.items()
    }
    empty = [name for name, split in parts.items() if not len(split)]
    if empty:
        raise UserError(f"nothing but damaged images in {' and '.join(empty)}", where=dataset.name)
    whole = dataset.with_parts(parts)
    lost = set(whole.absent().get("train", ())) - set(dataset.absent().get("train", ()))
    if lost:
        raise UserError(f"nothing but damaged images of {some(sorted(lost))} in train", where=dataset.name)
    note = f"{plural(len(problems), 'damaged image')} left out: {some(problems, 20)}"
    return replace(whole, notes=(*dataset.notes, note))
