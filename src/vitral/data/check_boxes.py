"""Check boxes: units, rotation, sizes, duplicates, classes and files without a counterpart.

Shape letters: N images of a split, X boxes, 4 a box (x0, y0, x1, y1), 2 width and height, M chosen places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from vitral.data.boxes import MIN_SIDE, Boxes
from vitral.data.dataset import Array, Dataset, Split
from vitral.data.decode import pixels
from vitral.data.files import some
from vitral.data.findings import MOST, Finding, Sample, Severity, finding
from vitral.data.scan import Scan
from vitral.errors import UserError, plural

HALF = 0.5  # share of the boxes that are outside or empty from which their unit is taken for wrong
_FITS = 0.95  # share of the boxes that another reading must put inside, to be named
_FAR = 8.0  # widths of the image at which a box ends whose pixels were taken for shares
_SLACK = 1.0  # pixels that a box may reach out of its image


class _Part:
    """The boxes of one split, and the sizes (width, height) of their images as decoded; 0, 0 of damaged ones."""

    def __init__(self, split: Split, scan: Scan, first: int) -> None:
        assert split.boxes is not None
        self.split, self.boxes, self.first = split, split.boxes, first
        self.size_N2 = scan.size_N2[:, ::-1].astype(np.float64)
        self.size_X2 = self.size_N2[self.boxes.image_X]
        self.known_X = (self.size_X2 > 0).all(1)


def annotation_numbers(dataset: Dataset) -> Array:
    """A number for each image of all splits, equal where the boxes and their classes are."""
    seen: dict[bytes, int] = {}
    numbers: list[int] = []
    for split in dataset.splits.values():
        assert split.boxes is not None
        for place in range(len(split)):
            own = split.boxes.of(place)
            rows = sorted(zip(own.boxes_M4.tolist(), own.label_M.tolist(), own.crowd_M.tolist(), strict=True))
            numbers.append(seen.setdefault(repr(rows).encode(), len(seen)))
    return np.array(numbers, np.int64)


def box_findings(dataset: Dataset, scans: Mapping[str, Scan], samples: Sequence[Sample]) -> Iterator[Finding]:
    """All that is wrong or odd with the boxes of a dataset. scans: of its splits; samples: their images in order."""
    firsts = np.cumsum([0, *map(len, dataset.splits.values())]).tolist()
    parts = [
        _Part(split, scans[name], first) for (name, split), first in zip(dataset.splits.items(), firsts, strict=False)
    ]
    yield from _files(dataset)
    yield from _classes(dataset)

    def of_boxes(code: str, which: Callable[[_Part], Array], text: str) -> Iterator[Finding]:
        masks = [which(part) for part in parts]
        count = sum(int(mask_X.sum()) for mask_X in masks)
        if count:
            places = [
                part.first + place
                for part, mask_X in zip(parts, masks, strict=True)
                for place in dict.fromkeys(part.boxes.image_X[mask_X].tolist())
            ]
            groups = [[samples[place]] for place in places[:MOST]]
            words = f"{plural(count, 'box', 'boxes')} on {plural(len(places), 'image')} {text}"
            yield finding(code, words, groups, boxes=count, images=len(places))

    rotated = [_rotated(part) for part in parts]
    yield from _of_images("box-rotated", parts, rotated, samples, (
        "turned by its EXIF data, with boxes that fit only the stored picture",
        "turned by their EXIF data, with boxes that fit only the stored picture",
    ), "; boxes are read in pixels of the turned image")  # fmt: skip
    other = [_other_size(part) & ~turned_N for part, turned_N in zip(parts, rotated, strict=True)]
    yield from _of_images("box-size", parts, other, samples, (
        "of another size than its annotations state", "of other sizes than their annotations state",
    ), _size_example(parts, other))  # fmt: skip
    wrong = list(_wrong_unit(parts))
    yield from wrong
    if not wrong:
        text = f"reach out of their images by more than {_SLACK:g} pixel; what is outside is cut off in training"
        yield from of_boxes("box-outside", _outside, text)
        text = f"are under {MIN_SIDE:g} pixel wide or high, and are not trained on"
        yield from of_boxes("box-degenerate", lambda part: part.boxes.degenerate(), text)
    yield from of_boxes("box-duplicate", _twice, "are there twice, with the same class")
    bare = [part.boxes.counts_N == 0 for part in parts]
    yield from _of_images("no-boxes", parts, bare, samples, ("without boxes", "without boxes"), ", kept as negatives")


def _files(dataset: Dataset) -> Iterator[Finding]:
    labels, images, kept = dataset.unpaired
    if labels:
        what = plural(len(labels), "label file or annotation", "label files or annotations")
        yield finding("label-no-image", f"{what} without an image, not read: {some(labels, 5)}", labels=len(labels))
    if images:
        become = "without a label file, kept as images without boxes" if kept else "that no file lists, not read"
        yield finding(
            "image-no-label", f"{plural(len(images), 'image')} {become}: {some(images, 5)}", images=len(images)
        )


def _classes(dataset: Dataset) -> Iterator[Finding]:
    counts = {
        name: np.bincount(split.boxes.label_X, minlength=len(dataset.classes))
        for name, split in dataset.splits.items() if split.boxes is not None
    }  # fmt: skip
    total_K, train_K = np.sum(list(counts.values()), axis=0), counts["train"]
    kinds: tuple[tuple[Array, str, Severity], ...] = (
        (total_K == 0, "no box of", "warning"),
        ((train_K == 0) & (total_K > 0), "no box for training of", "error"),
    )
    for empty_K, text, severity in kinds:
        names = [dataset.classes[place] for place in np.flatnonzero(empty_K).tolist()]
        if names:
            text = f"{text} {plural(len(names), 'class', 'classes')}: {some(names)}"
            yield finding("unused-class", text, (), severity, classes=len(names))


def _of_images(
    code: str,
    parts: Sequence[_Part],
    masks: Sequence[Array],
    samples: Sequence[Sample],
    words: tuple[str, str],
    end: str,
) -> Iterator[Finding]:
    places = [
        part.first + place for part, mask_N in zip(parts, masks, strict=True)
        for place in np.flatnonzero(mask_N).tolist()
    ]  # fmt: skip
    if places:
        text = f"{plural(len(places), 'image')} {words[len(places) > 1]}{end}"
        yield finding(code, text, [[samples[place]] for place in places[:MOST]], images=len(places))


def _inside(boxes_X4: Array, size_X2: Array, slack: float = _SLACK) -> Array:
    """Which boxes lie in images of these sizes (width, height)."""
    inside_X2: Array = (boxes_X4[:, :2] >= -slack) & (boxes_X4[:, 2:] <= size_X2 + slack)
    return np.all(inside_X2, axis=1)


def _outside(part: _Part) -> Array:
    return part.known_X & ~_inside(part.boxes.boxes_X4, part.size_X2)


def _each(boxes: Boxes, mask_X: Array) -> Array:
    """Which images have such a box."""
    return np.bincount(boxes.image_X[mask_X], minlength=len(boxes)) > 0


def _rotated(part: _Part) -> Array:
    """Which images are shown on their side by EXIF data, while their boxes, some of which are outside now, or the size
    that is stated, are those of the picture as it is stored."""
    boxes, swapped_X2 = part.boxes, part.size_X2[:, ::-1]
    fits_N = ~_each(boxes, part.known_X & ~_inside(boxes.boxes_X4, swapped_X2))
    stated_N2 = boxes.size_N2[:, ::-1]
    stored_N = (stated_N2 == part.size_N2[:, ::-1]).all(1) & (stated_N2 > 0).all(1)
    suspects_N = (part.size_N2[:, 0] != part.size_N2[:, 1]) & fits_N & (_each(boxes, _outside(part)) | stored_N)
    for place in np.flatnonzero(suspects_N).tolist():
        suspects_N[place] = _is_turned(part, place)
    return suspects_N


def _is_turned(part: _Part, place: int) -> bool:
    if part.split.file is None:
        return False
    try:
        stored = pixels(part.split.file(place))
    except UserError:
        return False
    return stored == tuple(part.size_N2[place, ::-1].astype(int).tolist())


def _other_size(part: _Part) -> Array:
    stated_N2 = part.boxes.size_N2[:, ::-1]
    known_N = (stated_N2 > 0).all(1) & (part.size_N2 > 0).all(1)
    return known_N & (stated_N2 != part.size_N2).any(1)


def _size_example(parts: Sequence[_Part], masks: Sequence[Array]) -> str:
    for part, mask_N in zip(parts, masks, strict=True):
        for place in np.flatnonzero(mask_N)[:1].tolist():
            height, width = part.boxes.size_N2[place].tolist()
            wide, high = part.size_N2[place].astype(int).tolist()
            return f" ({part.split.names[place]} is {high} x {wide}, stated are {height} x {width})"
    return ""


def _twice(part: _Part) -> Array:
    """Which boxes repeat an earlier one of their image and class."""
    boxes = part.boxes
    rows_X6 = np.column_stack([boxes.image_X, boxes.label_X, boxes.boxes_X4])
    _, first_X = np.unique(rows_X6, axis=0, return_index=True)
    again_X = np.ones(len(rows_X6), bool)
    again_X[first_X] = False
    return again_X


def _wrong_unit(parts: Sequence[_Part]) -> Iterator[Finding]:
    """Where more than half of the boxes are outside or empty: which other reading of the numbers fits."""
    boxes_X4 = np.concatenate([part.boxes.boxes_X4[part.known_X] for part in parts])
    size_X2 = np.concatenate([part.size_X2[part.known_X] for part in parts])
    if not len(boxes_X4):
        return
    good = _good(boxes_X4, size_X2)
    if good >= HALF:
        return
    size_X4 = np.concatenate([size_X2, size_X2], axis=1)
    x0, y0, x1, y1 = boxes_X4.T
    readings = {
        "normalized: shares of the sides": boxes_X4 * size_X4,
        "pixels: they were multiplied by the sides": boxes_X4 / size_X4,
        "xywh: a corner and a size": np.stack([x0, y0, x0 + x1, y0 + y1], axis=1),
        "xyxy: corners": np.stack([x0, y0, x1 - x0, y1 - y0], axis=1),
        "cxcywh: a center and a size": np.stack([x0 - x1 / 2, y0 - y1 / 2, x0 + x1 / 2, y0 + y1 / 2], axis=1),
        "normalized corners": np.stack([x0, y0, x1 - x0, y1 - y0], axis=1) * size_X4,
    }
    if np.median(boxes_X4[:, 2:] / size_X2) < _FAR:
        del readings["pixels: they were multiplied by the sides"]
    shares = {name: _good(other_X4, size_X2) for name, other_X4 in readings.items()}
    best = max(shares, key=lambda name: shares[name])
    text = f"{1 - good:.0%} of {len(boxes_X4):,} boxes lie outside of their images or have no area: wrong unit?"
    if shares[best] >= _FITS:
        text += f" Read as {best}, {shares[best]:.0%} would be inside (data.box_format, data.box_unit)"
    yield finding("box-unit", text, (), boxes=len(boxes_X4), share=1 - good)


def _good(boxes_X4: Array, size_X2: Array) -> float:
    fine_X = _inside(boxes_X4, size_X2) & (boxes_X4[:, 2:] - boxes_X4[:, :2] >= MIN_SIDE).all(1)
    return float(fine_X.mean())
