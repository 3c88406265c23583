"""The search for near hashes misses nothing that brute force finds; the hash itself against SciPy's transform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.fft import dctn

from vitral.data.near_duplicates import similarity
from vitral.data.perceptual_hash import BITS, hash_pairs, perceptual_hash


def brute_force(hashes_N: np.ndarray, radius: int) -> np.ndarray:
    distance_NN = np.bitwise_count(hashes_N[:, None] ^ hashes_N[None])
    return np.argwhere(np.triu(distance_NN <= radius, 1))


def planted(count: int, families: int, random: np.random.Generator) -> np.ndarray:
    """Random hashes, and families of them that differ in a few bits."""
    hashes_N = random.integers(0, 2**64, count, dtype=np.uint64)
    for member in range(families):
        flips = random.choice(BITS, random.integers(0, 16), replace=False)
        mask = np.bitwise_or.reduce(np.uint64(1) << flips.astype(np.uint64), initial=np.uint64(0))
        hashes_N[random.integers(count)] = hashes_N[member % count] ^ mask
    return hashes_N


@pytest.mark.parametrize("radius", [0, 1, 5, 7, 9, 11])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 37, 700, 3000])
def test_pairs_are_those_of_brute_force(count: int, radius: int) -> None:
    random = np.random.default_rng([count, radius])
    hashes_N = planted(count, count // 2, random) if count else np.zeros(0, np.uint64)
    pairs_P2, complete = hash_pairs(hashes_N, radius)
    assert complete
    np.testing.assert_array_equal(pairs_P2, brute_force(hashes_N, radius).reshape(-1, 2))


@pytest.mark.slow
def test_large_sets_lose_no_pair() -> None:
    """Large sets get three bands: pairs planted among many random hashes are all found."""
    random = np.random.default_rng(0)
    hashes_N = random.integers(0, 2**64, 400_000, dtype=np.uint64)
    masks = [
        np.uint64(sum(1 << int(b) for b in random.choice(64, k, replace=False))) for k in range(10) for _ in range(20)
    ]
    places = random.choice(400_000, 200, replace=False)
    others = np.setdiff1d(np.arange(400_000), places)[:200]
    hashes_N[others] = hashes_N[places] ^ np.array(masks)
    pairs_P2, complete = hash_pairs(hashes_N, 9)
    assert complete
    expected = {(min(a, b), max(a, b)) for a, b in zip(places.tolist(), others.tolist(), strict=True)}
    assert expected <= set(map(tuple, pairs_P2.tolist()))
    assert (np.bitwise_count(hashes_N[pairs_P2[:, 0]] ^ hashes_N[pairs_P2[:, 1]]) <= 9).all()
    assert len(pairs_P2) == pytest.approx(200 + 144, abs=48)  # four sigma: one of 5.5e8 random pairs is as near


def test_a_set_of_look_alikes_ends_early_and_says_so() -> None:
    pairs_P2, complete = hash_pairs(np.zeros(5000, np.uint64), most=1000)
    assert not complete
    assert len(pairs_P2) == 1000
    assert (pairs_P2[:, 0] < pairs_P2[:, 1]).all()


def test_hash_is_the_signs_of_the_lowest_cosines() -> None:
    random = np.random.default_rng(1)
    thumbs_NCSS = random.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    gray_NSS = np.tensordot(thumbs_NCSS.astype(float), [0.299, 0.587, 0.114], axes=(1, 0))
    waves_NSS: np.ndarray = np.asarray(dctn(gray_NSS, axes=(1, 2)))
    waves = [(u, v) for u in range(12) for v in range(12)]
    order = sorted(waves, key=lambda p: (sum(p), abs(p[0] - p[1]), p))[1:65]
    bits_NK = np.stack([waves_NSS[:, u, v] > 0 for u, v in order], axis=1)
    got_NK = np.unpackbits(perceptual_hash(thumbs_NCSS).astype("<u8")[:, None].view(np.uint8), axis=1)
    assert (got_NK != bits_NK).mean() < 0.002  # whole-number waves differ where a coefficient is nearly 0
    gray = perceptual_hash(thumbs_NCSS[:, :1])
    assert (gray == perceptual_hash(np.repeat(thumbs_NCSS[:, :1], 3, axis=1))).all()


def test_similarity_is_the_correlation_about_each_channels_mean() -> None:
    random = np.random.default_rng(2)
    one, other = random.integers(0, 256, (2, 5, 3, 16, 16), dtype=np.uint8)
    for i, value in enumerate(similarity(one, other)):
        a, b = (x[i].reshape(3, -1) - x[i].reshape(3, -1).mean(1, keepdims=True) for x in (one, other))
        assert value == pytest.approx(np.corrcoef(a.ravel(), b.ravel())[0, 1], abs=1e-5)
    np.testing.assert_allclose(similarity(one, one), 1, rtol=1e-5)
    darker = (one // 2 + 20).astype(np.uint8)
    assert (similarity(one, darker) > 0.99).all()
    assert similarity(np.full_like(one, 7), other).tolist() == [0] * 5
