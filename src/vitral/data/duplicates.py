"""Which images are the same, or nearly: findings over all splits at once.

Shape letters: N images of all splits, P pairs, R images that stand for all that are equal to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vitral.data.findings import CODES, Finding, Groups, Sample
from vitral.data.hashes import SAME, SIDE, hash_pairs, similarity
from vitral.data.scan import Scan

Array = np.ndarray[Any, np.dtype[Any]]
Sampler = Callable[[int], Sample]

MOST = 10_000  # groups that a finding names


def duplicate_findings(scans: Mapping[str, Scan], labels_N: Array, sample: Sampler) -> list[Finding]:
    """Exact duplicates (equal decoded pixels and shape), then look-alikes among images that are not equal.

    Splits in the order of `scans`; `labels_N` (or label rows) and `sample` go by the place in all of them together.
    """
    digest_N2 = np.concatenate([scan.digest_N2 for scan in scans.values()])
    split_N = np.repeat(np.arange(len(scans)), [len(scan.digest_N2) for scan in scans.values()])
    whole_N = np.concatenate([scan.size_N2[:, 0] > 0 for scan in scans.values()])
    places_R, groups = _equal(digest_N2, np.flatnonzero(whole_N))
    return [*_exact(groups, split_N, labels_N, sample), *_near(scans, places_R, split_N, labels_N, sample)]


def finding(code: str, message: str, groups: Sequence[Sequence[Sample]], /, **numbers: float) -> Finding:
    """A finding of the severity that its code has, with the first 10,000 groups."""
    kept: Groups = tuple(tuple(group) for group in groups[:MOST])
    return Finding(code, CODES[code][0], message, kept, numbers)


def _equal(digest_N2: Array, places_M: Array) -> tuple[Array, list[Array]]:
    """Of these places the first of each content, ascending; and the groups of two or more, by their first place."""
    order_M = places_M[np.lexsort((places_M, digest_N2[places_M, 1], digest_N2[places_M, 0]))]
    fresh_M = np.ones(len(order_M), bool)
    fresh_M[1:] = (digest_N2[order_M[1:]] != digest_N2[order_M[:-1]]).any(1)
    starts = np.flatnonzero(fresh_M)
    lengths = np.diff(np.append(starts, len(order_M)))
    groups = [order_M[start : start + n] for start, n in zip(starts[lengths > 1], lengths[lengths > 1], strict=True)]
    return np.sort(order_M[starts]), sorted(groups, key=lambda group: int(group[0]))


def _exact(groups: list[Array], split_N: Array, labels_N: Array, sample: Sampler) -> list[Finding]:
    found: list[Finding] = []
    contrary = [group for group in groups if (labels_N[group] != labels_N[group[0]]).any()]
    across = [group for group in groups if len(np.unique(split_N[group])) > 1]
    inside = [
        group[split_N[group] == split]
        for group in groups
        for split in np.unique(split_N[group])
        if (split_N[group] == split).sum() > 1
    ]
    for code, some, what in (
        ("duplicates-labels", contrary, "the same pixels with different labels"),
        ("duplicates-across", across, "the same pixels in more than one split, so that results would be too good"),
        ("duplicates", inside, "the same pixels more than once in one split"),
    ):
        if some:
            images = sum(map(len, some))
            shown = [list(map(sample, group.tolist())) for group in some[:MOST]]
            text = f"{len(some):,} {'group' if len(some) == 1 else 'groups'} of images ({images:,} in all): {what}"
            found.append(finding(code, text, shown, groups=len(some), images=images))
    return found


def _near(
    scans: Mapping[str, Scan], places_R: Array, split_N: Array, labels_N: Array, sample: Sampler
) -> list[Finding]:
    """Look-alikes: hashes near and thumbnails correlated. Not looked for under 32 pixels or in images of one colour."""
    size_N2 = np.concatenate([scan.size_N2 for scan in scans.values()])
    plain_N = np.concatenate([scan.constant_N for scan in scans.values()])
    places_R = places_R[(size_N2[places_R].min(1) >= SIDE) & ~plain_N[places_R]]
    hash_N = np.concatenate([scan.hash_N for scan in scans.values()])
    thumbs_NCTT = np.concatenate([scan.thumbs_NCTT for scan in scans.values()])
    pairs_P2, complete = hash_pairs(hash_N[places_R])
    pairs_P2 = places_R[pairs_P2]
    parts = [
        similarity(thumbs_NCTT[part[:, 0]], thumbs_NCTT[part[:, 1]]) >= SAME
        for part in np.array_split(pairs_P2, len(pairs_P2) // 4096 + 1)
    ]
    pairs_P2 = pairs_P2[np.concatenate(parts)]
    across_P = split_N[pairs_P2[:, 0]] != split_N[pairs_P2[:, 1]]
    found: list[Finding] = []
    for code, some_P2, where in (
        ("near-across", pairs_P2[across_P], "in different splits"),
        ("near", pairs_P2[~across_P], "inside a split"),
    ):
        if len(some_P2):
            rows = labels_N[some_P2]
            contrary = int((rows[:, 0] != rows[:, 1]).reshape(len(rows), -1).any(1).sum())
            shown = [[sample(int(one)), sample(int(other))] for one, other in some_P2[:MOST]]
            text = f"{len(some_P2):,} {'pair looks' if len(some_P2) == 1 else 'pairs look'} alike {where}"
            text += f", {contrary:,} of them with different labels" if contrary else ""
            found.append(finding(code, text, shown, pairs=len(some_P2), different_labels=contrary))
    if not complete:
        text = "so many images look alike that not all pairs were compared: the look-alikes named are only a part"
        found.append(finding("near-stopped", text, [], images=len(places_R)))
    return found
