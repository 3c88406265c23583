"""Hold out a validation split where the data have none: stratified, deterministic.

Exact copies of an image (equal files; or equal pixels, where images are no files) stay on one side: no image that is
trained on is also evaluated on. Shape letters: N samples, U distinct ones, K classes, 2 sides (kept, held out).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vitral.data.content_ids import identities, known
from vitral.data.dataset import Array, Carved, Dataset, Labels, joined
from vitral.data.files import some
from vitral.errors import UserError, plural

VAL_SEED = 0


def stratified(labels_N: Labels, fraction: float, seed: int, first_N: Array | None = None) -> Labels:
    """Places, ascending, of round(fraction x n) samples: each class in proportion, to within one where it can be.

    Each class keeps at least one sample on both sides, so the number is raised or lowered to what that needs. With
    `first_N` (see `first_copies`) copies stay together, and count for the class of the first; a group that would exceed
    its class's share is kept, so that up to a group's size less is held out. Every class that occurs must do so twice
    or more, copies not counted.
    """
    first_N, size_N, order_U = _shuffled(len(labels_N), seed, first_N)
    occurs_K, inverse_N, counts_K = np.unique(labels_N[first_N], return_inverse=True, return_counts=True)
    assert np.bincount(inverse_N[size_N > 0]).min() >= 2, "a class with one distinct sample"
    total = min(max(round(fraction * len(labels_N)), len(occurs_K)), len(labels_N) - len(occurs_K))
    ideal_K = total * counts_K / len(labels_N)
    take_K = np.clip(np.floor(ideal_K).astype(np.int64), 1, counts_K - 1)
    while take_K.sum() < total:
        take_K[np.argmax(np.where(take_K < counts_K - 1, ideal_K - take_K, -np.inf))] += 1
    while take_K.sum() > total:
        take_K[np.argmin(np.where(take_K > 1, ideal_K - take_K, np.inf))] -= 1
    by_class_U = order_U[np.argsort(inverse_N[order_U], kind="stable")]
    taken_N = np.zeros(len(labels_N), bool)
    for own_U, take in zip(np.split(by_class_U, np.cumsum(np.bincount(inverse_N[order_U]))[:-1]), take_K, strict=True):
        taken_N[_filling(own_U, size_N[own_U], int(take))] = True
    return np.flatnonzero(taken_N[first_N])


def _shuffled(count: int, seed: int, first_N: Array | None) -> tuple[Array, Array, Array]:
    """`first_N`; how many copies stand together at each of these places; and these places in a random order [U]."""
    first_N = np.arange(count) if first_N is None else first_N
    size_N = np.bincount(first_N, minlength=count)
    order_N = np.random.RandomState(seed).permutation(count)  # RandomState: its numbers never change with NumPy
    return first_N, size_N, order_N[size_N[order_N] > 0]


def _filling(places_U: Array, size_U: Array, room: int) -> Array:
    """The first of these places, each with its group, as long as there is room for it; at least the smallest one."""
    chosen: list[int] = []
    for place, size in enumerate(size_U.tolist()):
        if not room:
            break
        if size <= room:
            chosen.append(place)
            room -= size
    return places_U[chosen or [int(np.argmin(size_U))]]


def iteratively_stratified(labels_NK: Labels, fraction: float, seed: int, first_N: Array | None = None) -> Labels:
    """The same for multi-label data: places, ascending, of about round(fraction x n) samples.

    Samples are dealt out class by class, the one with the fewest undealt samples first, each (with its copies) to the
    side that still wants more of it. Sechidis et al. 2011 (ECML PKDD, "On the stratification of multi-label data"), for
    two sides. Every class that occurs must occur twice or more, copies not counted.
    """
    count = len(labels_NK)
    first_N, size_N, order_U = _shuffled(count, seed, first_N)
    hot_UK, size_U = labels_NK[order_U], size_N[order_U]
    total = min(max(round(fraction * count), 1), count - 1)
    wanted_2K = np.outer([1 - total / count, total / count], size_U @ hot_UK)
    wanted_2 = np.array([count - total, total], np.float64)
    side_U = np.full(len(hot_UK), -1)
    while True:
        left_K = hot_UK[side_U < 0].sum(axis=0)
        if not left_K.any():
            break
        label = int(np.argmin(np.where(left_K > 0, left_K, np.inf)))
        for place in np.flatnonzero(hot_UK[:, label] & (side_U < 0)).tolist():
            side = int((wanted_2K[1, label], wanted_2[1]) > (wanted_2K[0, label], wanted_2[0]))
            side_U[place] = side
            wanted_2K[side] -= size_U[place] * hot_UK[place]
            wanted_2[side] -= size_U[place]
    bare = np.flatnonzero(side_U < 0)  # samples without any class fill up what is still expected
    side_U[bare] = np.cumsum(size_U[bare]) <= round(wanted_2[1])
    for label in np.flatnonzero(hot_UK.any(axis=0)).tolist():
        own = np.flatnonzero(hot_UK[:, label])
        for side in (0, 1):  # a rare class that ended on one side alone
            if (side_U[own] != side).all():
                side_U[own[0]] = side
    taken_N = np.zeros(count, bool)
    taken_N[order_U[side_U == 1]] = True
    return np.flatnonzero(taken_N[first_N])


def with_val_in_train(dataset: Dataset) -> Dataset:
    """The dataset with its validation images among those of train, where it has test images to evaluate on."""
    if not {"val", "test"} <= dataset.splits.keys():
        return dataset
    splits = {"train": joined(dataset.splits["train"], dataset.splits["val"]), "test": dataset.splits["test"]}
    return replace(dataset, splits=splits)


def with_validation(dataset: Dataset, fraction: float, why: str = "no validation split") -> Dataset:
    """The dataset with a part of its train split held out as "val", exact copies on one side, and a note that says so,
    and `why`. Raises UserError for classes with one image, copies not counted."""
    train = dataset.splits["train"]
    ids_N2, first_N = known(dataset)
    copies = int((first_N != np.arange(len(train))).sum())
    names, labeled, how = dataset.classes, train, "stratified"
    if dataset.task == "regression":  # numbers have no shares to keep
        names, labeled, how = ("numbers",), replace(train, labels_N=np.zeros(len(train), np.int64)), "at random"
    counts_K = labeled.class_counts(len(names))
    distinct_K = labeled.subset(np.unique(first_N)).class_counts(len(names))
    single = [name for name, n, all_n in zip(names, distinct_K, counts_K, strict=True) if all_n and n < 2]
    if single:
        raise UserError(
            f"one image is too few to train on and to hold one out for validation: {some(single)}",
            where=dataset.name,
            expected=f"2 or more {'different ' if copies else ''}images per class, or a validation split",
        )
    choose = iteratively_stratified if train.multi_label else stratified
    held = choose(labeled.labels_N, fraction, VAL_SEED, first_N)
    kept = np.setdiff1d(np.arange(len(train)), held)
    note = f"{why}: {len(held)} of {len(train)} train images held out, {how}, seed {VAL_SEED}"
    note += f"; {plural(copies, 'exact copy', 'exact copies')} on the side of their originals" if copies else ""
    divided = _divided(dataset, kept, held, Carved(ids_N2[kept, 0], ids_N2[held, 0]))
    return replace(divided, notes=(*dataset.notes, note))


def with_remembered(dataset: Dataset, carved: Carved) -> tuple[Dataset, Sequence[str]]:
    """The dataset with its train split divided as it was then, by content: what was trained on, and what was held out
    as "val"; and the names of the images that were not there, which are in neither. Raises UserError where none of the
    held-out images is left."""
    train = dataset.splits["train"]
    ids_N = identities(train)[:, 0]
    held_N = np.isin(ids_N, carved.val_N)
    trained_N = np.isin(ids_N, carved.train_N) & ~held_N
    if not held_N.any():
        raise UserError(
            "none of the images that were held out of the training is there any more", where=dataset.name,
            hint="data=DIR names other images to measure.",
        )  # fmt: skip
    new = [train.names[place] for place in np.flatnonzero(~held_N & ~trained_N).tolist()]
    return _divided(dataset, np.flatnonzero(trained_N), np.flatnonzero(held_N), carved), new


def _divided(dataset: Dataset, kept: Array, held: Array, carved: Carved) -> Dataset:
    """With these train images in train and in val, in place of a validation split."""
    train = dataset.splits["train"]
    splits = {"train": train.subset(kept), "val": train.subset(held)}
    splits |= {name: split for name, split in dataset.splits.items() if name not in splits}
    return replace(dataset, splits=splits, carved=carved)
