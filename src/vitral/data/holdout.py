"""A validation split where the data bring none: held out of train, each class in proportion, always the same.

Shape letters: N samples, K classes, 2 sides (kept, held out).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitral.data.dataset import Dataset, Labels, joined
from vitral.data.files import some
from vitral.errors import UserError

VAL_SEED = 0


def stratified(labels_N: Labels, fraction: float, seed: int) -> Labels:
    """Places, ascending, of round(fraction x n) samples: each class in proportion, to within one where it can be.

    Each class keeps at least one sample on both sides, so the number is raised or lowered to what that needs. Every
    class that occurs must occur twice or more.
    """
    occurs_K, inverse_N, counts_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    assert counts_K.min() >= 2, "a class with one sample"
    total = min(max(round(fraction * len(labels_N)), len(occurs_K)), len(labels_N) - len(occurs_K))
    ideal_K = total * counts_K / len(labels_N)
    take_K = np.clip(np.floor(ideal_K).astype(np.int64), 1, counts_K - 1)
    while take_K.sum() < total:
        take_K[np.argmax(np.where(take_K < counts_K - 1, ideal_K - take_K, -np.inf))] += 1
    while take_K.sum() > total:
        take_K[np.argmin(np.where(take_K > 1, ideal_K - take_K, np.inf))] -= 1
    order_N = np.random.RandomState(seed).permutation(len(labels_N))  # RandomState: its numbers never change with NumPy
    by_class_N = order_N[np.argsort(inverse_N[order_N], kind="stable")]
    first_K = np.cumsum(counts_K) - counts_K
    taken = [by_class_N[first : first + take] for first, take in zip(first_K, take_K, strict=True)]
    return np.sort(np.concatenate(taken)).astype(np.int64)


def iteratively_stratified(labels_NK: Labels, fraction: float, seed: int) -> Labels:
    """The same for multi-label data: places, ascending, of about round(fraction x n) samples.

    Samples are dealt out class by class, the one with the fewest undealt samples first, each to the side that still
    wants more of it. Sechidis et al. 2011 (ECML PKDD, "On the stratification of multi-label data"), for two sides.
    Every class that occurs must occur twice or more.
    """
    order_N = np.random.RandomState(seed).permutation(len(labels_NK))
    hot_NK = labels_NK[order_N]
    total = min(max(round(fraction * len(hot_NK)), 1), len(hot_NK) - 1)
    wanted_2K = np.outer([1 - total / len(hot_NK), total / len(hot_NK)], hot_NK.sum(axis=0))
    wanted_2 = np.array([len(hot_NK) - total, total], np.float64)
    side_N = np.full(len(hot_NK), -1)
    while True:
        left_K = hot_NK[side_N < 0].sum(axis=0)
        if not left_K.any():
            break
        label = int(np.argmin(np.where(left_K > 0, left_K, np.inf)))
        for place in np.flatnonzero(hot_NK[:, label] & (side_N < 0)).tolist():
            side = int((wanted_2K[1, label], wanted_2[1]) > (wanted_2K[0, label], wanted_2[0]))
            side_N[place] = side
            wanted_2K[side] -= hot_NK[place]
            wanted_2[side] -= 1
    bare = np.flatnonzero(side_N < 0)  # samples without any class fill up what is still wanted
    side_N[bare] = np.arange(len(bare)) < round(wanted_2[1])
    for label in np.flatnonzero(hot_NK.any(axis=0)).tolist():
        own = np.flatnonzero(hot_NK[:, label])
        for side in (0, 1):  # a rare class that ended on one side alone
            if (side_N[own] != side).all():
                side_N[own[0]] = side
    return np.sort(order_N[side_N == 1]).astype(np.int64)


def with_val_in_train(dataset: Dataset) -> Dataset:
    """The dataset with its validation images among those of train, where it has test images to be judged by."""
    if not {"val", "test"} <= dataset.splits.keys():
        return dataset
    splits = {"train": joined(dataset.splits["train"], dataset.splits["val"]), "test": dataset.splits["test"]}
    return replace(dataset, splits=splits)


def with_validation(dataset: Dataset, fraction: float, why: str = "no validation split") -> Dataset:
    """The dataset with a part of its train split held out as "val", and a note that says so, and `why`."""
    train = dataset.splits["train"]
    counts_K = train.class_counts(len(dataset.classes))
    single = [name for name, count in zip(dataset.classes, counts_K, strict=True) if count == 1]
    if single:
        raise UserError(
            f"one image is too few to train on and to hold one out for validation: {some(single)}",
            where=dataset.name,
            wanted="2 or more images a class, or a validation split",
        )
    choose = iteratively_stratified if train.multi_label else stratified
    held_out = choose(train.labels_N, fraction, VAL_SEED)
    kept = np.setdiff1d(np.arange(len(train)), held_out)
    splits = {"train": train.subset(kept), "val": train.subset(held_out)}
    splits |= {name: split for name, split in dataset.splits.items() if name not in splits}
    note = f"{why}: {len(held_out)} of {len(train)} train images held out, stratified, seed {VAL_SEED}"
    return replace(dataset, splits=splits, notes=(*dataset.notes, note))
