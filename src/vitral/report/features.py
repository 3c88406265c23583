"""Sections of an evaluation of features: nearest neighbors, and pictures of what the model has learned.

Shape letters: B images, H W height and width, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from vitral.evaluate.metric import Metric
from vitral.report.sections import Note, Picture, Section, Table


def features_sections(evaluation: Mapping[str, Any], pictures: Mapping[str, NDArray[Any]]) -> list[Section]:
    """The headline first. evaluation: `top1`, `top1_interval`, `count`, `split` and `evaluated_by`, or nothing where
    the data have no classes. pictures: columns of images [B, H, W, C] in [0,1] by their captions, of equal B."""
    return [_headline(evaluation), *picture_sections(pictures)]


def picture_sections(pictures: Mapping[str, NDArray[Any]]) -> list[Section]:
    """A table of pictures, see `features_sections`; nothing without any."""
    if not pictures:
        return []
    rows = [
        [Picture(image, name) for name, image in zip(pictures, images, strict=True)]
        for images in zip(*pictures.values(), strict=True)
    ]
    return [Section("Images that the model was not trained on", [Table(list(pictures), rows)])]


def _headline(evaluation: Mapping[str, Any]) -> Section:
    if not evaluation:
        return Section("", ["Not evaluated: these data have no classes to evaluate the features by."])
    low, high = evaluation["top1_interval"]
    label = (
        f"of {evaluation['count']:,} {evaluation['split']} images classified correctly by their "
        f"{evaluation['evaluated_by']} among the train images"
    )
    note = Note("The encoder was trained with no labels; only the vote of the neighbors uses them.")
    return Section("", [Metric("top1", label, evaluation["top1"], (low, high)), note])
