"""Boxes as annotations: any number of them per image, with their classes.

Shape letters: N images, X boxes of all images, 4 a box (x0, y0, x1, y1), M boxes of one image, B images of
a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor

from vitral.data.box_ops import from_cxcywh, from_xywh
from vitral.data.geometry import boxes_within
from vitral.errors import UserError
from vitral.structs import View

Array = np.ndarray[Any, np.dtype[Any]]
Size = tuple[int, int]

MAX_BOXES = 10_000  # of one image
MIN_SIDE = 1.0  # pixels: boxes that are narrower or lower are not trained on
_LARGEST = 1e9  # of a coordinate


class OwnBoxes(NamedTuple):
    """Annotations of one image: boxes [M, 4], their classes [M], which of them are crowds [M]."""

    boxes_M4: Array
    label_M: Array
    crowd_M: Array


@dataclass(frozen=True)
class Boxes:
    """The boxes of the images of a split, exactly as the source gives them: also outside of the image, without area.

    ends_N: where the boxes of each image end among all, which are ordered by image. boxes_X4: corners, float64, in
    pixels of the upright image (EXIF orientation applied): its left edge is 0, its right edge is its width. label_X:
    class indices. crowd_X: one box around many objects, which is not trained on and is ignored in evaluation.
    size_N2: height and width of each image as the annotations state them; 0, 0 where they don't.
    """

    ends_N: Array
    boxes_X4: Array
    label_X: Array
    crowd_X: Array
    size_N2: Array

    def __len__(self) -> int:
        return len(self.ends_N)

    @property
    def counts_N(self) -> Array:
        """Boxes of each image."""
        return np.diff(self.ends_N, prepend=0)

    @property
    def image_X(self) -> Array:
        """The place of each box's image."""
        return np.repeat(np.arange(len(self)), self.counts_N)

    def of(self, index: int) -> OwnBoxes:
        """The annotations of one image."""
        own = slice(int(self.ends_N[index - 1]) if index else 0, int(self.ends_N[index]))
        return OwnBoxes(self.boxes_X4[own], self.label_X[own], self.crowd_X[own])

    def hot(self, classes: int) -> Array:
        """Which classes each image has, bool [N, K]."""
        hot_NK = np.zeros((len(self), classes), np.bool_)
        hot_NK[self.image_X, self.label_X] = True
        return hot_NK

    def degenerate(self) -> Array:
        """Which boxes are too narrow or too low to be trained on, or inverted, bool [X]."""
        side_X2: Array = self.boxes_X4[:, 2:] - self.boxes_X4[:, :2]
        return np.any(side_X2 < MIN_SIDE, axis=1)

    def subset(self, places: Sequence[int]) -> Boxes:
        """The boxes of these images, in this order."""
        index_M = np.array(places, np.int64)
        counts = self.counts_N[index_M]
        starts = (self.ends_N - self.counts_N)[index_M]
        box_X = np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        return Boxes(
            np.cumsum(counts), self.boxes_X4[box_X], self.label_X[box_X], self.crowd_X[box_X], self.size_N2[index_M]
        )

    def relabeled(self, place_K: Array) -> Boxes:
        """With class k called place_K[k]."""
        return Boxes(self.ends_N, self.boxes_X4, place_K[self.label_X], self.crowd_X, self.size_N2)

    def content(self) -> bytes:
        """All of it as bytes, for fingerprints."""
        arrays = (self.ends_N, self.boxes_X4, self.label_X, self.crowd_X, self.size_N2)
        return b"".join(np.ascontiguousarray(each).tobytes() for each in arrays)


class BoxRow(NamedTuple):
    """One box as a source reads it: corners, the name of its class, whether it is a crowd."""

    corners: tuple[float, float, float, float]
    label: str
    crowd: bool = False


class Unpaired(NamedTuple):
    """labels: label files (or entries) without an image, which are not read. images: images without a label file.
    kept: whether these are images without boxes, or are left out too."""

    labels: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    kept: bool = True


def as_boxes(rows: Sequence[Sequence[BoxRow]], sizes: Sequence[Size], index_of: Mapping[str, int]) -> Boxes:
    """The annotations of a split from the boxes of each of its images, and the sizes that are stated for them."""
    flat = [row for own in rows for row in own]
    return Boxes(
        np.cumsum([len(own) for own in rows], dtype=np.int64),
        np.array([row.corners for row in flat], np.float64).reshape(-1, 4),
        np.array([index_of[row.label] for row in flat], np.int64),
        np.array([row.crowd for row in flat], np.bool_),
        np.array(sizes, np.int64).reshape(-1, 2),
    )


def joined_boxes(one: Boxes, other: Boxes) -> Boxes:
    """The boxes of two splits, those of the first one first."""
    last = int(one.ends_N[-1]) if len(one) else 0
    return Boxes(
        np.concatenate([one.ends_N, other.ends_N + last]),
        *(
            np.concatenate([getattr(one, name), getattr(other, name)])
            for name in ("boxes_X4", "label_X", "crowd_X", "size_N2")
        ),
    )


def corners(numbers: Iterable[Any], where: str, form: str = "xyxy") -> tuple[float, float, float, float]:
    """Four numbers of an annotation, in the format `xyxy`, `xywh` or `cxcywh`, as corners. Raises UserError, which
    names the place, for another count of them, for what is no number, and for NaN, infinity and numbers beyond 1e9."""
    given = list(numbers)
    try:
        found = [float("nan") if isinstance(each, bool) else float(each) for each in given]
    except (TypeError, ValueError, OverflowError):
        found = []
    if len(found) != 4 or not all(abs(each) <= _LARGEST for each in found):
        raise UserError("not a box", where=where, got=repr(given)[:80], expected=f"four finite numbers, {form}")
    if form == "xyxy":
        return found[0], found[1], found[2], found[3]
    convert = {"xywh": from_xywh, "cxcywh": from_cxcywh}[form]
    x0, y0, x1, y1 = convert(torch.tensor(found, dtype=torch.float64)).tolist()
    return x0, y0, x1, y1


def refuse_many(count: int, where: str) -> None:
    """Raise UserError for more boxes on one image than any detector's targets hold."""
    if count > MAX_BOXES:
        raise UserError("too many boxes on one image", where=where, got=f"{count:,}", expected=f"at most {MAX_BOXES:,}")


def refuse_boxes(name: str) -> NoReturn:
    """Raise UserError for boxes where there is no use for them."""
    raise UserError(
        "the annotations are boxes", where=name, got="data for detection",
        expected="one or several classes per image, numbers, or no labels",
        hint="objective.kind=detection learns boxes. data.source=images reads the images of a folder without them, for "
        "objectives without labels.",
    )  # fmt: skip


class BoxTargets:
    """The boxes of a split as targets of batches: equal for any number of workers and processes.

    M, the room for boxes of one image, is the largest number of them in the split, so that shapes never change.
    """

    def __init__(self, boxes: Boxes, min_visible: float) -> None:
        used_X = ~(boxes.crowd_X | boxes.degenerate())
        image_X, self.min_visible = boxes.image_X[used_X], min_visible
        counts_N = np.bincount(image_X, minlength=len(boxes))
        place_X = np.arange(len(image_X)) - (np.cumsum(counts_N) - counts_N)[image_X]
        room = max(1, int(counts_N.max(initial=0)))
        self.place_NM = np.full((len(boxes), room), -1)
        self.place_NM[image_X, place_X] = np.flatnonzero(used_X)
        self.boxes_X4 = torch.from_numpy(np.concatenate([boxes.boxes_X4, np.zeros((1, 4))])).float()
        self.label_X = torch.from_numpy(np.append(boxes.label_X, -1))

    def __call__(self, place_B: Tensor, view: View) -> dict[str, Tensor]:
        """`boxes` float32 [B, M, 4], corners in pixels of the view, clipped to it, and `box_class` int64 [B, M], for
        the samples at these places. Rows without a box have class -1 and coordinates 0: padding, boxes of which a view
        shows less than `min_visible` of the area (of the hull, if the view is turned) or less than one pixel, crowds,
        and boxes of less than one pixel in the file."""
        height, width = view.images_BCHW.shape[-2:]
        whole_4 = torch.tensor([0.0, 0.0, width, height], device=view.matrix_B33.device)
        return self.within(place_B, view.matrix_B33, whole_4.expand(len(place_B), 4))

    def within(self, place_B: Tensor, matrix_B33: Tensor, window_B4: Tensor) -> dict[str, Tensor]:
        """The same for a part of the view, a box, that shows the samples by these matrices."""
        place_BM, device = torch.from_numpy(self.place_NM[place_B.numpy()]), matrix_B33.device
        boxes_BM4, class_BM = self.boxes_X4[place_BM].to(device), self.label_X[place_BM].to(device)
        boxes_BM4, visible_BM = boxes_within(matrix_B33, boxes_BM4, window_B4)
        large_BM = ((boxes_BM4[..., 2:] - boxes_BM4[..., :2]) >= MIN_SIDE).all(2)
        seen_BM = (class_BM >= 0) & large_BM & (visible_BM >= self.min_visible)
        return {"boxes": boxes_BM4 * seen_BM[..., None], "box_class": torch.where(seen_BM, class_BM, -1)}
