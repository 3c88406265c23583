"""Read numbers as annotations, from columns of a table or of Parquet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vitral.data.dataset import Dataset, Labels
from vitral.data.files import known_column
from vitral.errors import UserError


def check_targets(targets: Sequence[str], known: Iterable[str]) -> None:
    """Raise UserError for target columns that are named twice or are not there."""
    names = list(known)
    for name in targets:
        known_column("target", name, names)
    if len(set(targets)) < len(targets):
        raise UserError("a column that is named twice", where="data.target", got=", ".join(targets))


def refuse_numbers(dataset: Dataset) -> None:
    """Raise UserError for a dataset of numbers where only classes have a place."""
    if dataset.task == "regression":
        hint = "Leave out data.target to read labels."
        raise UserError("numbers instead of classes", where="data.target", got=", ".join(dataset.classes), hint=hint)


def as_number(value: Any, column: str, where: str) -> float:
    """The number in a cell. Raises UserError, which names the row, for text, NaN and infinity."""
    try:
        found = float("nan" if value is None or isinstance(value, bool | bytes) else value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError("not a number", where=where, got=f"{column} = {value!r}"[:80], expected="a finite number")
    return found


def as_targets(rows: Iterable[Sequence[float]], count: int) -> Labels:
    """Rows of numbers as the annotations of a split, float64 [N, count]."""
    return np.array(list(rows), np.float64).reshape(-1, count)
