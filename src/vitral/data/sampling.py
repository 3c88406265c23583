"""Order of samples in a run: shuffled epochs, balanced classes, repeated augmentation.

A pure function of seed and place, so a resume needs the step number alone. Every appearance of a sample has a draw
number of its own, which takes the epoch's place in its random numbers: a sample that comes twice in an epoch is varied
twice. Shape letters: B places, N samples of the split, K classes, C batches of a window,
M samples of it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from vitral.data.counter_rng import Stream, bits, permutation
from vitral.errors import UserError

Index = np.ndarray[Any, np.dtype[np.int64]]
Shares = np.ndarray[Any, np.dtype[np.float64]]
_EPOCHS_KEPT = 3


class Buckets(NamedTuple):
    """Samples of similar length stand in one batch: length_N of each sample, sorted inside windows of so many
    batches."""

    length_N: Index
    window: int


class Places(NamedTuple):
    """index_B: places in the split. draw_B: how manieth look at this sample it is, counted over the run."""

    index_B: Index
    draw_B: Index


def class_shares(labels_N: Index, classes: int, balance: str) -> Shares:
    """The share of each class [K] among the training samples as they are drawn; they sum to 1.

    balance "none": n_k / n as the data are; "class": equal for every class that occurs; "sqrt": in proportion to
    sqrt(n_k), half-way between (Mahajan et al. 2018, arXiv 1805.00932, section 2.2). Classes without samples get 0.
    """
    counts_K = np.bincount(labels_N, minlength=classes).astype(np.float64)
    power = {"none": 1.0, "class": 0.0, "sqrt": 0.5}[balance]
    weights_K = np.where(counts_K > 0, np.maximum(counts_K, 1) ** power, 0.0)
    return weights_K / weights_K.sum()


class Sampler:
    """Samples by their place in the run.

    An epoch is N draws, N the number of samples. Without balancing it is a keyed permutation: every sample once. With
    it, after e epochs class k has been drawn e * N * share_k times, to within one; inside a class every sample comes
    equally often, to within one. With `repeats` R (Hoffer et al. 2020, arXiv 1901.09335) a batch of B holds B / R
    samples, R times each and varied differently; an epoch stays N images, of N / R samples: each sample comes in one of
    R epochs. Copies stand B / R places apart, so that mixing inside groups of 8 seldom meets its own copy.
    The random numbers are those of samples numbered from `first`. With `buckets` the same samples of an epoch stand in
    the order of `bucket_order`. Raises UserError for a batch that R does not divide, and for balancing without one
    class per sample.
    """

    def __init__(
        self, labels_N: Index, batch_size: int, seed: int, *, balance: str = "none", repeats: int = 1, first: int = 0,
        buckets: Buckets | None = None,
    ) -> None:  # fmt: skip
        if batch_size % repeats:
            raise UserError(
                "repeated augmentation needs a batch that it divides", where="augment.repeated_aug", got=repeats,
                expected=f"a divisor of train.batch_size={batch_size}",
            )  # fmt: skip
        if balance != "none" and labels_N.ndim != 1:
            raise UserError("balancing needs data with one class per image", where="data.balance", got=balance)
        self.count, self.batch_size, self.seed, self.repeats = len(labels_N), batch_size, seed, repeats
        self.first, self._buckets = first, buckets
        self._classes = _ClassStreams(labels_N, seed, balance, first) if balance != "none" else None
        self._epoch = lru_cache(_EPOCHS_KEPT)(self._draw_epoch)

    def rows(self, step: int, start: int, stop: int) -> Places:
        """Rows start..stop of the global batch of this step (counted from 0)."""
        distinct = self.batch_size // self.repeats
        copy_B, place_B = np.divmod(np.arange(start, stop, dtype=np.int64), distinct)
        epoch_B, place_B = np.divmod(step * distinct + place_B, self.count)
        index_B, draw_B = np.empty_like(place_B), np.empty_like(place_B)
        for epoch in np.unique(epoch_B).tolist():
            here_B, places = epoch_B == epoch, self._epoch(epoch)
            index_B[here_B], draw_B[here_B] = places.index_B[place_B[here_B]], places.draw_B[place_B[here_B]]
        return Places(index_B, draw_B * self.repeats + copy_B)

    def _draw_epoch(self, epoch: int) -> Places:
        order_N = permutation(self.seed, epoch, self.count, self.first)
        places = Places(np.arange(self.count), np.full(self.count, epoch, np.int64))
        index_N, draw_N = places if self._classes is None else self._classes.epoch(epoch)
        if self._buckets is not None:
            length_N, distinct = self._buckets.length_N[index_N], self.batch_size // self.repeats
            order_N = bucket_order(order_N, length_N, distinct, self._buckets.window, self.seed, epoch, self.first)
        return Places(index_N[order_N], draw_N[order_N])


def bucket_order(
    order_N: Index, length_N: Index, batch_size: int, window: int, seed: int, epoch: int, stream_first: int = 0
) -> Index:
    """The places of an epoch's random order, put so that batches hold samples of similar length.

    The whole batches of the epoch are cut into windows of `window` batches; a window's samples are sorted by length
    (equal ones stay in random order), cut into batches, and these put in a random order. The samples at both ends,
    which share a batch with the epoch before or after, stay where they are. Every place comes exactly once.
    """
    count = len(order_N)
    start = min(-epoch * count % batch_size, count)
    stop = start + (count - start) // batch_size * batch_size
    parts = [order_N[:start]]
    for first in range(start, stop, window * batch_size):
        own_M = order_N[first : min(first + window * batch_size, stop)]
        sorted_CB = own_M[np.argsort(length_N[own_M], kind="stable")].reshape(-1, batch_size)
        number_C = (first - start) // batch_size + np.arange(len(sorted_CB), dtype=np.int64)
        words_C = bits(seed, epoch, 0, number_C + stream_first, int(Stream.BUCKET))
        parts.append(sorted_CB[np.argsort(words_C, kind="stable")].reshape(-1))
    return np.concatenate([*parts, order_N[stop:]])


class _ClassStreams:
    """For each class an endless row of keyed permutations of its samples, of which every epoch takes the next piece."""

    def __init__(self, labels_N: Index, seed: int, balance: str, first: int) -> None:
        self.seed, self.count, self.first = seed, len(labels_N), first
        self.members = [np.flatnonzero(labels_N == label) for label in np.unique(labels_N)]
        shares_K = class_shares(labels_N, int(labels_N.max()) + 1, balance)
        self.ends_K = np.cumsum(shares_K[shares_K > 0]) * self.count
        self.ends_K[-1] = self.count

    def drawn(self, epochs: int) -> Index:
        """How often each class that occurs has been drawn in so many epochs. The last bits of the exact ends (2^-20 of
        a sample) are rounded away, so that equal shares of a whole number stay equal."""
        ends_K = np.floor(epochs * self.ends_K + 2.0**-20).astype(np.int64)
        return np.diff(ends_K, prepend=0)

    def epoch(self, epoch: int) -> Places:
        index: list[Index] = []
        draw: list[Index] = []
        for members_M, start, stop in zip(self.members, self.drawn(epoch), self.drawn(epoch + 1), strict=True):
            cycle_D, place_D = np.divmod(np.arange(start, stop, dtype=np.int64), len(members_M))
            picked_D = np.empty_like(place_D)
            for cycle in np.unique(cycle_D).tolist():
                words_M = bits(self.seed, cycle, 0, members_M + self.first, int(Stream.CLASS_SHUFFLE))
                picked_D[cycle_D == cycle] = members_M[np.argsort(words_M, kind="stable")][place_D[cycle_D == cycle]]
            index.append(picked_D)
            draw.append(cycle_D)
        return Places(np.concatenate(index), np.concatenate(draw))
