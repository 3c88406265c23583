"""Metrics of detection: COCO's average precision and recall, with bootstrap intervals over images.

Shape letters: N images, R resamples of the images, K classes, T overlaps, D detections, G true boxes, Q points of
recall.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitral.errors import UserError
from vitral.evaluate.box_matching import (
    AREAS,
    Array,
    Detections,
    Floats,
    Matches,
    class_ap,
    class_precisions,
    class_recall,
    match_all,
)
from vitral.evaluate.classification import check_classes
from vitral.evaluate.detection_errors import (
    best_threshold,
    confusion,
    counts_at,
    error_gains,
    found_by_size,
)

if TYPE_CHECKING:
    from vitral.data.boxes import OwnBoxes

RESAMPLES = 200
_AP75 = 5  # place of IoU 0.75


def quick_metrics(matches: Matches) -> dict[str, Any]:
    """Return COCO's twelve numbers without intervals, in [0,1], ready for JSON; None where no box is to be found.

    `ap`: average precision, the mean over classes and IoU 0.50 to 0.95; `ap50`, `ap75`: at one IoU; `ap_small`,
    `ap_medium`, `ap_large`: of boxes up to 32 x 32, up to 96 x 96 and above, in pixels of the file; `ar1`, `ar10`,
    `ar100`: recall, the mean over classes and IoU 0.50 to 0.95, with at most so many detections per image and class;
    `ar_small`, `ar_medium`, `ar_large`. Classes without a box are left out of the means. `count`: images; `boxes`: true
    boxes to be found; `crowds_and_empty`: other boxes, ignored; `detections`.
    """
    once_1N = np.ones((1, matches.images), np.int64)
    ap_KT = class_ap(matches, once_1N)[0]
    values: dict[str, Any] = {
        "ap": _mean(ap_KT), "ap50": _mean(ap_KT[:, 0]), "ap75": _mean(ap_KT[:, _AP75]),
        **{f"ap_{name}": _mean(class_ap(matches, once_1N, place)) for place, name in _SIZES},
        **{f"ar{most}": _mean(class_recall(matches, most)) for most in (1, 10, 100)},
        **{f"ar_{name}": _mean(class_recall(matches, 100, place)) for place, name in _SIZES},
    }  # fmt: skip
    counted = int(matches.counted_AG[0].sum())
    return values | {
        "count": matches.images, "boxes": counted, "crowds_and_empty": len(matches.label_G) - counted,
        "detections": len(matches.label_D),
    }  # fmt: skip


_SIZES = list(enumerate(AREAS))[1:]


def measure_detections(
    found: Sequence[Detections],
    truth: Sequence[OwnBoxes],
    labels: Sequence[str],
    *,
    score: float | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Return all metrics of detections in pixels of the files, ready for JSON: COCO's rules, equal to pycocotools.

    Those of `quick_metrics`; `ap_interval` and `ap50_interval`, percentiles 2.5 and 97.5 of bootstrap resamples of the
    images (Efron 1979); at IoU 0.5 and above a score threshold, `score` or else the one with the best F1 on these
    images: `score_threshold`, `precision`, `recall`, `f1`, `confusion` (rows: true classes, then background; columns:
    predicted classes, then missed) and `sizes` (found and missed boxes by size); `per_class` {name: {ap, ap50,
    precision, recall, f1, count, found, false}}; `curves` {name: precision at 101 points of recall, IoU 0.5}; `errors`,
    see `error_gains`. Numbers are None where they are undefined. Raises UserError as `match_all` does.
    """
    check_classes(labels, len(labels))
    matches = match_all(found, truth, len(labels))
    values = quick_metrics(matches) | _intervals(matches, resamples)
    once_1N = np.ones((1, matches.images), np.int64)
    threshold = best_threshold(matches) if score is None else score
    ap_KT = class_ap(matches, once_1N)[0]
    per_class = counts_at(matches, threshold)
    total = per_class.pop()
    values |= {"score_threshold": threshold, **{key: total[key] for key in ("precision", "recall", "f1")}}
    values["per_class"] = {
        name: {"ap": _mean(ap_T), "ap50": _mean(ap_T[:1]), **row}
        for name, ap_T, row in zip(labels, ap_KT, per_class, strict=True)
    }
    curves = (class_precisions(matches, place, once_1N)[0] for place in range(len(labels)))
    values["curves"] = {
        name: None if np.isnan(curve_Q[0]) else curve_Q.round(6).tolist()
        for name, curve_Q in zip(labels, curves, strict=True)
    }
    return values | {
        "errors": error_gains(matches), "confusion": confusion(matches, threshold).tolist(),
        "sizes": found_by_size(matches, threshold),
    }  # fmt: skip


def compare_detections(one: Matches, other: Matches, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Compare two detectors on the same images: for `ap` and `ap50` the first minus the second.

    `difference`; `difference_interval`: 95 %, of bootstrap resamples of the images that both share; `p_value`: the
    share of resamples whose difference is at least as far from the observed one as that is from 0 (two-sided; Riezler
    and Maxwell 2005, ACL workshop on evaluation measures). Without a box to be found, `difference` is None. Raises
    UserError for other counts of images.
    """
    if one.images != other.images:
        got = f"{one.images} and {other.images} images"
        raise UserError("two detectors must be compared on the same images", got=got)
    weight_RN = np.concatenate([np.ones((1, one.images), np.int64), resample_weights(one.images, resamples)])
    both = [_bootstrapped(matches, weight_RN) for matches in (one, other)]
    result: dict[str, Any] = {}
    for name, a_R in both[0].items():
        observed, *drawn = (a_R - both[1][name]).tolist()
        drawn_R = np.array(drawn)[np.isfinite(drawn)]
        if np.isnan(observed):
            result[name] = {"difference": None}
            continue
        far = int((np.abs(drawn_R - observed) >= abs(observed)).sum())
        result[name] = {
            "difference": observed, "difference_interval": _ends(drawn_R), "p_value": (1 + far) / (1 + len(drawn_R))
        }  # fmt: skip
    return result


def resample_weights(images: int, resamples: int, seed: int = 0) -> Array:
    """How often each image is drawn in each bootstrap resample, int64 [R, N]; equal on every machine."""
    import torch

    from vitral.data.counter_rng import Stream, uniform_runs

    (draw_RN,) = uniform_runs(seed, 0, 0, torch.arange(images), (Stream.RESAMPLE,), resamples)
    place_RN = (draw_RN.double() * images).long().numpy()
    return np.stack([np.bincount(place_N, minlength=images) for place_N in place_RN]) if resamples else place_RN


def _intervals(matches: Matches, resamples: int) -> dict[str, list[float]]:
    drawn = _bootstrapped(matches, resample_weights(matches.images, resamples)) if resamples else {}
    finite = {name: values_R[np.isfinite(values_R)] for name, values_R in drawn.items()}
    return {f"{name}_interval": _ends(values_R) for name, values_R in finite.items() if len(values_R)}


def _bootstrapped(matches: Matches, weight_RN: Array) -> dict[str, Floats]:
    """`ap` and `ap50` of each resample, [R]; NaN where it has no box to be found."""
    ap_RKT = class_ap(matches, weight_RN)
    known_RK = ~np.isnan(ap_RKT[..., 0])
    count_R = known_RK.sum(1)
    total_RT = np.where(known_RK[..., None], ap_RKT, 0).sum(1)
    mean_RT = np.where(count_R[:, None] > 0, total_RT / np.maximum(count_R, 1)[:, None], np.nan)
    return {"ap": mean_RT.mean(1), "ap50": mean_RT[:, 0]}


def _ends(drawn_R: Floats) -> list[float]:
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return [float(low), float(high)]


def _mean(values: Floats) -> float | None:
    """Mean of the numbers that are defined."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None
