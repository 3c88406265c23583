"""Which sample stands where: exact counts over epochs, classes and repeats."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitral.data.counter_rng import permutation
from vitral.data.sampling import Index, Sampler, class_shares
from vitral.errors import UserError


def labels(*counts: int) -> Index:
    """So many samples of each class, in a fixed disorder."""
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)


def run(sampler: Sampler, start: int, stop: int) -> list[tuple[int, int]]:
    """(sample, draw) of every row of these steps."""
    rows = [sampler.rows(step, 0, sampler.batch_size) for step in range(start, stop)]
    return [pair for places in rows for pair in zip(places.index_B.tolist(), places.draw_B.tolist(), strict=True)]


def test_without_balancing_an_epoch_is_one_permutation() -> None:
    sampler = Sampler(labels(7, 13), 8, 3)
    pairs = run(sampler, 0, 10)
    for epoch in range(4):
        part = pairs[epoch * 20 : (epoch + 1) * 20]
        assert [index for index, _ in part] == permutation(3, epoch, 20).tolist()
        assert {draw for _, draw in part} == {epoch}


@pytest.mark.parametrize(
    ("balance", "expected"),
    [("none", [0.0, 0.01, 0.09, 0.9]), ("class", [0, 1 / 3, 1 / 3, 1 / 3]), ("sqrt", [0, 1 / 14, 3 / 14, 10 / 14])],
)
def test_shares_of_the_classes(balance: str, expected: list[float]) -> None:
    """sqrt of 1, 9 and 100 samples: 1, 3 and 10 of 14 parts."""
    counts = [0, 1, 9, 90] if balance == "none" else [0, 1, 9, 100]
    np.testing.assert_allclose(class_shares(labels(*counts), 4, balance), expected)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 0),
    st.sampled_from(["class", "sqrt"]),
    st.integers(1, 25),
)
def test_after_every_epoch_each_class_has_its_share_to_within_one(
    counts: list[int], balance: str, batch_size: int
) -> None:
    labels_N = labels(*counts)
    count = len(labels_N)
    shares = class_shares(labels_N, len(counts), balance)
    pairs = run(Sampler(labels_N, batch_size, 5, balance=balance), 0, 7 * count // batch_size + 1)
    assert len(set(pairs)) == len(pairs), "a sample is never looked at twice in the same way"
    for epoch in range(1, 8):
        seen = Counter(index for index, _ in pairs[: epoch * count])
        for label, share in enumerate(shares):
            own = [seen[place] for place in np.flatnonzero(labels_N == label).tolist()]
            assert abs(sum(own) - epoch * count * share) < 1 + 1e-4, (epoch, label)
            assert not own or max(own) - min(own) <= 1, "inside a class all come equally often"


def test_equal_shares_of_a_whole_number_are_equal_in_every_epoch() -> None:
    labels_N = labels(3, 50, 37)
    pairs = run(Sampler(labels_N, 90, 0, balance="class"), 0, 40)
    for epoch in range(40):
        own = Counter(labels_N[index].item() for index, _ in pairs[epoch * 90 : (epoch + 1) * 90])
        assert own == {0: 30, 1: 30, 2: 30}


def test_repeats_are_counted() -> None:
    """Batches of 24 hold 8 samples, 3 times each; in 3 epochs of 40 images every sample has come 3 times."""
    sampler = Sampler(labels(15, 25), 24, 1, repeats=3)
    for step in range(20):
        rows = sampler.rows(step, 0, 24)
        assert set(Counter(rows.index_B.tolist()).values()) == {3}
        assert np.array_equal(rows.index_B[:8], rows.index_B[16:]), "copies stand 8 places apart"
        assert len(set(zip(rows.index_B.tolist(), rows.draw_B.tolist(), strict=True))) == 24
    pairs = run(sampler, 0, 5)
    assert len(pairs) == 120
    assert Counter(index for index, _ in pairs) == Counter(dict.fromkeys(range(40), 3))
    assert len(set(run(sampler, 0, 50))) == 50 * 24


def test_a_row_is_the_same_whenever_it_is_asked_for() -> None:
    asked = Sampler(labels(5, 30), 16, 2, balance="class", repeats=2)
    whole = [asked.rows(step, 0, 16) for step in range(30)]
    for step in (29, 3, 17, 0):
        for start, stop in ((0, 8), (8, 16), (5, 6)):
            part = Sampler(labels(5, 30), 16, 2, balance="class", repeats=2).rows(step, start, stop)
            assert np.array_equal(part.index_B, whole[step].index_B[start:stop])
            assert np.array_equal(part.draw_B, whole[step].draw_B[start:stop])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"(?s)augment\.repeated_aug.*divisor of train\.batch_size=16"):
        Sampler(labels(5, 5), 16, 0, repeats=3)
    with pytest.raises(UserError, match=r"data\.balance"):
        Sampler(np.ones((4, 3), np.bool_), 2, 0, balance="class")  # type: ignore[arg-type]
