"""Classes of unequal size in whole runs: a rare class is found again, and what contradicts itself is refused."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import LEARNS
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.sources import open_dataset
from vitral.errors import UserError
from vitral.run.config import load_config
from vitral.run.train import run

RARE = (3, 8, 9)  # digits that are told apart only with some care


def imbalanced() -> Dataset:
    """The digits, with 6 training images of each rare class and all of the others."""
    whole = open_dataset(DataConfig(source="digits"))
    train = whole.splits["train"]
    kept = [
        place
        for label in range(10)
        for place in np.flatnonzero(train.labels_N == label)[: 6 if label in RARE else None]
    ]
    return dataclasses.replace(whole, splits={**whole.splits, "train": train.subset(kept)})


def rare_recall(**keys: Any) -> float:
    """Mean recall of the rare classes on the test split after a short run."""
    name = "-".join(keys) or "plain"
    run(load_config("digits", {**LEARNS, "train.steps": 160, "out": name, **keys}), imbalanced())
    with Path(name, "predictions.csv").open(encoding="utf-8", newline="") as file:
        right = [row["correct"] == "true" for row in csv.DictReader(file) if int(row["label"]) in RARE]
    return float(np.mean(right))


@pytest.mark.slow
def test_every_correction_raises_the_recall_of_the_rare_classes() -> None:
    plain = rare_recall()
    for keys in (
        {"data.balance": "class"},
        {"objective.class_weights": "balanced"},
        {"objective.logit_adjustment": 1.0},
    ):
        assert rare_recall(**keys) > plain + 0.1, keys


@pytest.mark.parametrize("keys", [{"objective.class_weights": "balanced"}, {"objective.logit_adjustment": 1.0}])
def test_a_correction_without_effect_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"has no effect with data\.balance=class"):
        load_config("digits", {"data.balance": "class", **keys})


def test_wrong_factors_end_before_anything_is_written() -> None:
    with pytest.raises(UserError, match=r"(?s)objective\.class_weights.*got: +2.*expected: 10"):
        run(load_config("digits", {"objective.class_weights": [1.0, 2.0], "out": "a"}))
    assert not Path("a").exists()
