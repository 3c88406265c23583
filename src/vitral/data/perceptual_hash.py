"""Perceptual hashes: 64 bits that change little when an image is resized, recompressed or slightly cropped.

The hash is the signs of the 64 lowest frequencies of a 32 x 32 gray thumbnail's cosine transform, after Zauner 2010,
"Implementation and Benchmarking of Perceptual Image Hash Functions"; in whole numbers, so that it is the same on every
machine. Pairs within a Hamming radius are found by multi-index hashing (Norouzi, Punjani and Fleet 2014, "Fast Exact
Search in Hamming Space With Multi-Index Hashing"), which misses none and compares few. Ours differs from the paper in
that the first search of a band is joined with itself, and in the choice of the number of bands by the size of the set.
Shape letters: N images, P pairs, C channels, H height, W width, K frequencies, S a side of 32.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

Hashes = np.ndarray[Any, np.dtype[np.uint64]]
Pairs = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 32  # of the thumbnail that is hashed, pixels
BITS = 64
# Of 600 CIFAR-10 images each resized, cropped by 2 % and saved as JPEG 70, 99.7 % stay within 9 bits of the original.
RADIUS = 9
RADIUS_OF_PARTS = 9
CROPS_UP_TO = 100_000  # images among which cropped copies are looked for: the search takes ten times as long
_EFFORT = 4000  # comparisons per image after which the search ends
_CHUNK = 1 << 20  # candidate pairs looked at together: about 50 MB


# The (vertical, horizontal) frequencies of the bits.
_LOWEST = sorted(itertools.product(range(12), repeat=2), key=lambda uv: (sum(uv), abs(uv[0] - uv[1]), uv))[1 : BITS + 1]
# Parts of a picture that a cropped copy may show: share of each side, then top and left as shares of what is left over.
WINDOWS = tuple((0.88, top, left) for top in (0.0, 0.5, 1.0) for left in (0.0, 0.5, 1.0))


def _planes(vertical_KS: Array, horizontal_KS: Array) -> Array:
    """2-D waves [K, S * S], as whole numbers."""
    planes = [np.outer(vertical_KS[u], horizontal_KS[v]).ravel() for u, v in _LOWEST]
    return np.rint(np.stack(planes) * 4096)


def seen_through(share: float, start: float) -> Array:
    """The matrix [S, S] that makes S pixels of an axis of a part of it, by linear interpolation: a share of its length,
    start of what is left over before it."""
    place_S = np.clip(start * (1 - share) * SIDE + share * (np.arange(SIDE) + 0.5) - 0.5, 0, SIDE - 1)
    low_S = np.minimum(place_S.astype(int), SIDE - 2)
    taken_SS = np.zeros((SIDE, SIDE))
    taken_SS[np.arange(SIDE), low_S] = 1 - (place_S - low_S)
    taken_SS[np.arange(SIDE), low_S + 1] = place_S - low_S
    return taken_SS


_WAVES_US = np.cos(np.arange(12)[:, None] * (np.arange(SIDE) + 0.5) * np.pi / SIDE)
_FREQUENCIES_KX = _planes(_WAVES_US, _WAVES_US)
_WINDOWED_XWK = np.stack(
    [
        _planes(_WAVES_US @ seen_through(share, top), _WAVES_US @ seen_through(share, left)).T
        for share, top, left in WINDOWS
    ],
    axis=1,
)
_MIRROR = np.packbits([v % 2 == 1 for _, v in _LOWEST]).view("<u8")[0].astype(np.uint64)


def perceptual_hash(thumbs_NCSS: Array) -> Hashes:
    """uint8 thumbnails [N, 1 or 3, 32, 32] to 64-bit hashes [N]."""
    assert thumbs_NCSS.shape[2:] == (SIDE, SIDE), thumbs_NCSS.shape
    # Whole numbers below 2^53: exact in whatever order the products are summed.
    return _packed(_gray(thumbs_NCSS) @ _FREQUENCIES_KX.T > 0)


def _gray(thumbs_NCSS: Array) -> Array:
    """1000 times the luma, whole numbers as float64 [N, S * S]."""
    weight_C = np.array([1000.0]) if thumbs_NCSS.shape[1] == 1 else np.array([299.0, 587.0, 114.0])
    return np.tensordot(thumbs_NCSS.astype(np.float64), weight_C, axes=(1, 0)).reshape(len(thumbs_NCSS), -1)


def hash_pairs(hashes_N: Hashes, radius: int = RADIUS, *, most: int = 10**6) -> tuple[Pairs, bool]:
    """All pairs i < j whose hashes differ in at most `radius` bits, [P, 2] in ascending order; and whether it is all.

    The search ends early, with False, after more than `most` pairs or 4,000 comparisons an image on average (and
    1e8 more): sets in which nearly all images look alike would otherwise take quadratic time.
    """
    candidates = _candidates(hashes_N, hashes_N, radius)
    ordered = ((one_P[one_P < other_P], other_P[one_P < other_P]) for one_P, other_P in candidates)
    return _pairs(ordered, hashes_N, hashes_N, radius, most)


def cross_pairs(queries_N: Hashes, hashes_N: Hashes, radius: int = RADIUS) -> tuple[Pairs, bool]:
    """All (i, j), i not j, with query i within `radius` bits of hash j, [P, 2] ascending; and whether it is all. Ends
    early like `hash_pairs`."""
    return _pairs(_candidates(hashes_N, queries_N, radius), queries_N, hashes_N, radius, 10**6)


def _pairs(
    candidates: Iterator[tuple[Array, Array]], queries_N: Hashes, hashes_N: Hashes, radius: int, most: int
) -> tuple[Pairs, bool]:
    count = len(hashes_N)
    found: list[Array] = [np.zeros(0, np.int64)]
    seen, budget, stopped = 0, _EFFORT * count + 10**8, False
    for one_P, other_P in candidates:
        budget -= len(one_P)
        near_P = (np.bitwise_count(queries_N[one_P] ^ hashes_N[other_P]) <= radius) & (one_P != other_P)
        codes_P = one_P[near_P] * count + other_P[near_P]
        found.append(codes_P)
        seen += len(codes_P)
        if seen > 4 * most or budget < 0:  # a pair is met once a band at most
            stopped = True
            break
    pairs_P2 = np.stack(np.divmod(np.unique(np.concatenate(found)), max(count, 1)), axis=1)
    return pairs_P2[:most], not stopped and len(pairs_P2) <= most


def mirrored(hashes: Hashes) -> Hashes:
    """The hashes of the same pictures seen in a mirror, left for right: odd horizontal waves change their sign."""
    return hashes ^ _MIRROR


def window_hashes(thumbs_NCSS: Array) -> Hashes:
    """uint8 thumbnails [N, 1 or 3, 32, 32] to the hashes [N, 9] of what is seen of them through each of WINDOWS."""
    gray_NX = _gray(thumbs_NCSS)
    bits_NWK = (gray_NX @ _WINDOWED_XWK.reshape(len(_WINDOWED_XWK), -1) > 0).reshape(len(gray_NX), len(WINDOWS), BITS)
    return _packed(bits_NWK)


def _packed(bits: Array) -> Hashes:
    """64 bits in the last axis as one number."""
    return np.ascontiguousarray(np.packbits(bits, axis=-1)).view("<u8")[..., 0].astype(np.uint64)


def _candidates(hashes_N: Hashes, queries_N: Hashes, radius: int) -> Iterator[tuple[Array, Array]]:
    """Pairs (query, hash) that agree nearly in one of the bands, in pieces: every pair within `radius` is among them.

    With radius = bands * near + rest, such a pair differs in at most `near` bits in one of the first rest + 1 bands, or
    in at most near - 1 in one of the others (or else it would differ in more than radius bits in all).
    """
    count = len(hashes_N)
    bands = min(max(round(BITS / np.log2(max(count, 4))), 3), 8)
    edges = [BITS * band // bands for band in range(bands + 1)]
    near, rest = divmod(radius, bands)
    for band, (low, high) in enumerate(itertools.pairwise(edges)):
        reach = near if band <= rest else near - 1
        keys_N, asked_N = (
            ((each >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)).astype(np.int64)
            for each in (hashes_N, queries_N)
        )
        order_N = np.argsort(keys_N, kind="stable")
        first_V = np.concatenate([[0], np.cumsum(np.bincount(keys_N, minlength=1 << (high - low)))])
        for flips in range(reach + 1):
            for places in itertools.combinations(range(high - low), flips):
                partner_N = asked_N ^ sum(1 << place for place in places)
                yield from _join(order_N, first_V[partner_N], first_V[partner_N + 1])


def _join(order_N: Array, start_N: Array, stop_N: Array) -> Iterator[tuple[Array, Array]]:
    """(i, order[start_i : stop_i]), in pieces of about _CHUNK pairs."""
    has = np.flatnonzero(stop_N > start_N)
    length_M = (stop_N - start_N)[has]
    ends_M = np.cumsum(length_M)
    done, total = 0, int(ends_M[-1]) if len(ends_M) else 0
    while done < total:
        stop = min(done + _CHUNK, total)
        pair_P = np.arange(done, stop)
        row_P = np.searchsorted(ends_M, pair_P, side="right")
        one_P = has[row_P]
        other_P = order_N[start_N[one_P] + pair_P - (ends_M - length_M)[row_P]]
        yield one_P, other_P
        done = stop
