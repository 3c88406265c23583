"""Boxes in a column of a Hugging Face dataset: a record of lists (bbox, category), or a list of such records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vitral.data.boxes import Boxes, BoxRow, Size, as_boxes, corners, refuse_many
from vitral.data.config import DataConfig
from vitral.data.files import class_map, some
from vitral.errors import UserError

_BOXES = ("bbox", "bboxes", "boxes", "box")
_LABELS = ("category", "categories", "label", "labels", "class", "classes", "category_id")
_CROWD = ("iscrowd", "is_crowd", "crowd")


class BoxColumn(NamedTuple):
    """The column with the boxes of an image, and the fields of its records. names: of a ClassLabel, in its order."""

    column: str
    boxes: str
    label: str
    crowd: str | None
    names: tuple[str, ...] | None


def box_column(features: Mapping[str, Any], wanted: str | None) -> BoxColumn | None:
    """The column of boxes: `wanted`, or the only one whose records have boxes and classes; None where there is none."""
    found = [each for name, feature in features.items() if (each := _as_column(name, feature)) is not None]
    chosen = [each for each in found if wanted in (None, each.column)]
    return chosen[0] if len(chosen) == 1 else None


def _as_column(name: str, feature: Any) -> BoxColumn | None:
    inner = getattr(feature, "feature", feature)
    if not isinstance(inner, Mapping):
        return None
    boxes, label, crowd = (next((each for each in usual if each in inner), None) for usual in (_BOXES, _LABELS, _CROWD))
    if boxes is None or label is None:
        return None
    names = getattr(getattr(inner[label], "feature", inner[label]), "names", None)
    return BoxColumn(name, boxes, label, crowd, None if names is None else tuple(names))


def read_boxes(
    values: Mapping[str, Sequence[Any]], sizes: Mapping[str, Sequence[Size]], column: BoxColumn, config: DataConfig
) -> tuple[tuple[str, ...], dict[str, Boxes]]:
    """Classes, and the boxes of each split, from the values of the column and the (height, width) of the images.

    The numbers are (x0, y0, width, height) in pixels, as in COCO, or what `config.box_format` and `box_unit` say.
    Raises UserError with split and row for boxes that are none and for unknown classes.
    """
    rows = {
        split: [_rows(value, column, config, f"{split}, row {place}") for place, value in enumerate(own)]
        for split, own in values.items()
    }
    used = {row.label for own in rows.values() for each in own for row in each}
    numbers = column.names is None and all(name.isdecimal() for name in used)
    order = config.classes or column.names or (tuple(sorted(used, key=int)) if numbers else None)
    index_of = class_map(used | set(column.names or ()), order, column.column)
    if config.box_unit == "normalized":
        for split, own in rows.items():
            for each, (height, width) in zip(own, sizes[split], strict=True):
                each[:] = [
                    row._replace(corners=(x0 * width, y0 * height, x1 * width, y1 * height))
                    for row in each for x0, y0, x1, y1 in [row.corners]
                ]  # fmt: skip
    return tuple(index_of), {split: as_boxes(own, [(0, 0)] * len(own), index_of) for split, own in rows.items()}


def _rows(value: Any, column: BoxColumn, config: DataConfig, where: str) -> list[BoxRow]:
    form = config.box_format or "xywh"
    if value is None:
        return []
    records = value if isinstance(value, list) else _records(value, column, where)
    refuse_many(len(records), where)
    found: list[BoxRow] = []
    for record in records:
        box, label = record.get(column.boxes), record.get(column.label)
        if column.names is not None and not isinstance(label, str):
            if not isinstance(label, int) or not 0 <= label < len(column.names):
                raise UserError("unknown class", where=where, got=repr(label)[:60], expected=some(column.names))
            label = column.names[label]
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise UserError("not a label", where=where, got=repr(label)[:60])
        crowd = column.crowd is not None and record.get(column.crowd) in (1, True)
        found.append(BoxRow(corners(box if isinstance(box, list) else [box], where, form), str(label), crowd))
    return found


def _records(value: Mapping[str, Any], column: BoxColumn, where: str) -> list[dict[str, Any]]:
    """A record of lists as a list of records."""
    fields = [name for name in (column.boxes, column.label, column.crowd) if name is not None]
    lists = [value.get(name) or [] for name in fields]
    if len({len(each) for each in lists}) > 1:
        raise UserError("lists of different lengths", where=where, got=", ".join(f"{len(each)}" for each in lists))
    return [dict(zip(fields, each, strict=True)) for each in zip(*lists, strict=True)]
