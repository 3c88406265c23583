"""Verify two images with similar hashes on thumbnails, invariant to brightness, contrast and tint.

A hash sees coarse shapes only, so that skies, lawns and two pictures of one kind of garment are near. A copy also
agrees in its details: the smaller of two correlations is taken, of the colors and of what a high-pass filter leaves of
the grays. Copies have 0.9 or more, the same kind of thing hardly more than 0.6. Where a picture has no details, nothing
can be compared, and the likeness is 0.
Shape letters: P pairs, C channels, S a side of 32, X places.
"""

from __future__ import annotations

import numpy as np

from vitral.data.dataset import Array
from vitral.data.perceptual_hash import SIDE, WINDOWS, seen_through

# Of 500 CIFAR-10 images each resized, cropped by 2 % and saved as JPEG 70, 99 % have more.
SAME = 0.85
SAME_PART = 0.85  # of a cropped copy, which is aligned by whole pixels of a thumbnail
LEAST_DETAIL = 2.0  # root mean square of the high-passed grays, levels of 255; rounding alone has 0.3
_BOX = 7  # pixels of a thumbnail: the high-pass filter leaves what differs from the mean over so many
_SHARES = (0.80, 0.83, 0.86, 0.89, 0.92, 0.95, 0.98)  # of each side that a cropped copy shows
_NEAR = 0.3  # of the way from edge to edge: how far a part may lie from the window that its hash was near to


def likeness(colors: tuple[Array, Array], grays: tuple[Array, Array]) -> Array:
    """The smaller correlation [P] of pairs: of the colors, uint8 [P, C, T, T], and of the high-passed grays, uint8
    [P, S, S]; 0 where one of them has no details."""
    one_PSS, other_PSS = (_high_pass(gray_PSS.astype(np.float32)) for gray_PSS in grays)
    return np.minimum(similarity(*colors), _correlation(one_PSS, other_PSS)) * (
        _detailed(one_PSS) & _detailed(other_PSS)
    )


def part_likeness(whole_PSS: Array, part_PSS: Array, window: int) -> Array:
    """The same of a cropped copy `part`, of the grays alone: the best over sizes and places near WINDOWS[window]."""
    whole_PSS, part_PSS = whole_PSS.astype(np.float32), part_PSS.astype(np.float32)
    fine_PSS = _high_pass(part_PSS)
    best_P = np.zeros(len(part_PSS), np.float32)
    _, top, left = WINDOWS[window]
    for share in _SHARES:
        count = int(np.ceil(SIDE * (1 - share))) + 1
        places = np.linspace(0, 1, count)
        for y in places[np.abs(places - top) <= _NEAR]:
            rows_PSS = seen_through(share, y).astype(np.float32) @ whole_PSS
            for x in places[np.abs(places - left) <= _NEAR]:
                seen_PSS = rows_PSS @ seen_through(share, x).astype(np.float32).T
                found_P = _correlation(_high_pass(seen_PSS), fine_PSS)
                better = np.flatnonzero(found_P > best_P)
                coarse_P = _correlation(seen_PSS[better], part_PSS[better])
                best_P[better] = np.maximum(best_P[better], np.minimum(found_P[better], coarse_P))
    return best_P * (_detailed(_high_pass(whole_PSS)) & _detailed(fine_PSS))


def similarity(one_PCHW: Array, other_PCHW: Array) -> Array:
    """Correlation of uint8 or float thumbnails, each channel about its own mean: -1 to 1; 0 where one of them is of one
    color.

    Blind to brightness, contrast and tint, as recompression and conversions change them."""
    one, other = (
        each.astype(np.float32) - each.mean((2, 3), keepdims=True, dtype=np.float32) for each in (one_PCHW, other_PCHW)
    )
    axes = (1, 2, 3)
    scale_P = np.sqrt((one * one).sum(axes) * (other * other).sum(axes))
    return (one * other).sum(axes) / np.where(scale_P > 0, scale_P, np.inf)


def _correlation(one_PSS: Array, other_PSS: Array) -> Array:
    return similarity(one_PSS[:, None], other_PSS[:, None])


# [S, S]: each pixel's mean over _BOX of an axis, the edge repeated.
_NEIGHBORS_SK = np.arange(SIDE)[:, None] + np.arange(-(_BOX // 2), _BOX // 2 + 1)
_BOX_SS = np.eye(SIDE, dtype=np.float32)[np.clip(_NEIGHBORS_SK, 0, SIDE - 1)].mean(1)


def _high_pass(gray_PSS: Array) -> Array:
    return gray_PSS - _BOX_SS @ gray_PSS @ _BOX_SS.T


def _detailed(fine_PSS: Array) -> Array:
    return np.sqrt((fine_PSS * fine_PSS).mean((1, 2))) >= LEAST_DETAIL
