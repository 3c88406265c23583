"""Find duplicates and near-duplicates over all splits.

Shape letters: N images of all splits, P pairs, R images that stand for all that are equal to them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from vitral.data.dataset import Array
from vitral.data.findings import MOST, Finding, Sample, finding
from vitral.data.near_duplicates import SAME, SAME_PART, likeness, part_likeness
from vitral.data.perceptual_hash import CROPS_UP_TO, RADIUS_OF_PARTS, SIDE, WINDOWS, cross_pairs, hash_pairs, mirrored
from vitral.data.scan import Scan, joined
from vitral.errors import plural

Sampler = Callable[[int], Sample]


def duplicate_findings(
    scan: Scan, split_N: Array, labels_N: Array, sample: Sampler, exact_N: Array | None = None
) -> Iterator[Finding]:
    """Exact duplicates (equal decoded pixels and shape), then look-alikes among images that are not equal.

    `scan` is of the images of all splits; `split_N` numbers their splits; `labels_N` (or label rows) and `sample` go by
    the place in all of them together. exact_N: numbers of annotations that equal images must have equal, where these
    are more than the labels.
    """
    places_R, groups = _equal(scan.digest_N2, np.flatnonzero(scan.size_N2[:, 0] > 0))
    yield from _exact(groups, split_N, labels_N if exact_N is None else exact_N, sample)
    yield from _near(scan, places_R, split_N, labels_N, sample)


def leaks(evaluated: Sequence[Scan], unlabeled: Scan, samples: Sequence[Sample]) -> list[Finding]:
    """Unlabeled images with the pixels of validation or test images, or that look like them. `samples`: those of the
    `evaluated` scans in order, then the unlabeled ones."""
    if not evaluated:
        return []
    split_N = np.repeat([0, 1], [len(samples) - len(unlabeled.size_N2), len(unlabeled.size_N2)])
    labels_N = np.zeros(len(samples), np.int64)
    found = duplicate_findings(joined([*evaluated, unlabeled]), split_N, labels_N, samples.__getitem__)
    across = {each.code: each for each in found if each.code in ("duplicates-across", "near-across")}
    if not across:
        return []
    equal = across["duplicates-across"].numbers["groups"] if "duplicates-across" in across else 0
    alike = across["near-across"].numbers["pairs"] if "near-across" in across else 0
    text = f"validation or test images among the unlabeled ones: {equal:,} with equal pixels, {alike:,} that look alike"
    groups = [group for each in across.values() for group in each.groups]
    return [finding("unlabeled-leak", text, groups, equal=equal, alike=alike)]


def _equal(digest_N2: Array, places_M: Array) -> tuple[Array, list[Array]]:
    """Of these places the first of each content, ascending; and the groups of two or more, by their first place."""
    order_M = places_M[np.lexsort((places_M, digest_N2[places_M, 1], digest_N2[places_M, 0]))]
    fresh_M = np.ones(len(order_M), bool)
    fresh_M[1:] = (digest_N2[order_M[1:]] != digest_N2[order_M[:-1]]).any(1)
    starts = np.flatnonzero(fresh_M)
    lengths = np.diff(np.append(starts, len(order_M)))
    groups = [order_M[start : start + n] for start, n in zip(starts[lengths > 1], lengths[lengths > 1], strict=True)]
    return np.sort(order_M[starts]), sorted(groups, key=lambda group: int(group[0]))


def _exact(groups: list[Array], split_N: Array, labels_N: Array, sample: Sampler) -> Iterator[Finding]:
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
            text = f"{plural(len(some), 'group')} of images ({images:,} in all): {what}"
            yield finding(code, text, shown, groups=len(some), images=images)


def _near(scan: Scan, places_R: Array, split_N: Array, labels_N: Array, sample: Sampler) -> Iterator[Finding]:
    """Look-alikes, the likest first, those with different labels before all others. Not looked for under 32 pixels or
    in images of one color."""
    places_R = places_R[(scan.size_N2[places_R].min(1) >= SIDE) & ~scan.constant_N[places_R]]
    pairs_P2, likeness_P, kind_P, complete = _alike(scan, places_R)
    labels_NK = labels_N if labels_N.ndim == 2 else labels_N[:, None]
    contrary_P = (labels_NK[pairs_P2[:, 0]] != labels_NK[pairs_P2[:, 1]]).any(1)
    order_P = np.lexsort((pairs_P2[:, 1], pairs_P2[:, 0], -likeness_P, ~contrary_P))
    pairs_P2, contrary_P, kind_P = pairs_P2[order_P], contrary_P[order_P], kind_P[order_P]
    across_P = split_N[pairs_P2[:, 0]] != split_N[pairs_P2[:, 1]]
    for code, some_P, where in (
        ("near-across", across_P, "in different splits"),
        ("near", ~across_P, "inside a split"),
    ):
        if some_P.any():
            count = int(some_P.sum())
            numbers = {"pairs": count, "different_labels": int(contrary_P[some_P].sum())}
            numbers |= {name: int((kind_P[some_P] == kind).sum()) for kind, name in ((1, "mirrored"), (2, "cropped"))}
            shown = [[sample(int(one)), sample(int(other))] for one, other in pairs_P2[some_P][:MOST]]
            text = f"{plural(count, 'pair looks', 'pairs look')} alike {where}"
            words = {"different_labels": "of them with different labels", "mirrored": "mirrored", "cropped": "cropped"}
            parts = [f"{numbers[key]:,} {word}" for key, word in words.items() if numbers[key]]
            yield finding(code, ", ".join([text, *parts]), shown, **numbers)
    if not complete:
        text = "so many images look alike that not all pairs were compared: the look-alikes named are only a part"
        yield finding("near-stopped", text, images=len(places_R))


def _alike(scan: Scan, places_R: Array) -> tuple[Array, Array, Array, bool]:
    """Pairs i < j of these places [P, 2], their likeness, their kind (0 as they are, 1 one of them mirrored, 2 one of
    them a part of the other), and whether all were compared."""
    hash_R, windows_RW, colors_NCTT, gray_NSS = (
        scan.hash_N[places_R], scan.windows_NW[places_R], scan.thumbs_NCTT, scan.gray_NSS,
    )  # fmt: skip
    direct_P2, whole = hash_pairs(hash_R)
    mirrored_P2, also = cross_pairs(mirrored(hash_R), hash_R)
    searches = [(0, 0, direct_P2), (1, 0, mirrored_P2[mirrored_P2[:, 0] < mirrored_P2[:, 1]])]
    complete = whole and also
    if len(places_R) <= CROPS_UP_TO:
        for window in range(len(WINDOWS)):
            pairs_P2, all_of_them = cross_pairs(windows_RW[:, window], hash_R, RADIUS_OF_PARTS)
            searches.append((2, window, pairs_P2))
            complete = complete and all_of_them
    best: dict[tuple[int, int], tuple[float, int]] = {}
    for kind, window, pairs_P2 in searches:
        pairs_P2 = places_R[pairs_P2]
        if kind == 2:  # what is the same as a whole needs no search for its place
            fresh = [(min(pair), max(pair)) not in best for pair in pairs_P2.tolist()]
            pairs_P2 = pairs_P2[np.array(fresh, bool)]
        for part_P2 in np.array_split(pairs_P2, len(pairs_P2) // 2048 + 1):
            one_P, other_P = part_P2[:, 0], part_P2[:, 1]
            if kind == 2:
                likeness_P = part_likeness(gray_NSS[one_P], gray_NSS[other_P], window)
            else:
                step = -1 if kind else 1
                colors = colors_NCTT[one_P][..., ::step], colors_NCTT[other_P]
                likeness_P = likeness(colors, (gray_NSS[one_P][..., ::step], gray_NSS[other_P]))
            for place in np.flatnonzero(likeness_P >= (SAME_PART if kind == 2 else SAME)):
                pair = (int(min(part_P2[place])), int(max(part_P2[place])))
                best[pair] = max(best.get(pair, (0.0, 0)), (float(likeness_P[place]), kind))
    pairs_P2 = np.array(list(best), np.int64).reshape(-1, 2)
    likeness_P = np.array([value for value, _ in best.values()])
    return pairs_P2, likeness_P, np.array([kind for _, kind in best.values()], np.int64), complete
