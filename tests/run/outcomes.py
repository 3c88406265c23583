"""What a run has left, as tests that compare runs look at it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from vitral.training.metrics_log import MetricsLog


def weights(out: Path) -> object:
    """The trained weights, bit for bit."""
    return hashlib.sha256((out / "model/model.safetensors").read_bytes()).hexdigest()


def rows(out: Path) -> object:
    """The metrics_log's rows by step and kind."""
    return [(row["step"], "val_loss" in row) for row in MetricsLog.read(out)]


def summary(out: Path) -> Any:
    """Recipe, seed and steps."""
    tree = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {key: tree[key] for key in ("recipe", "seed", "steps")}


def files(out: Path) -> object:
    """Names of what the run left."""
    return sorted(path.name for path in out.iterdir()) if out.is_dir() else "nothing"


def shapes(out: Path) -> object:
    """Names and sizes of the weights, from the architecture."""
    return json.loads((out / "model/config.json").read_text(encoding="utf-8"))["architecture"]


def classes(out: Path) -> object:
    """Class names by index."""
    return json.loads((out / "model/config.json").read_text(encoding="utf-8"))["id2label"]


def card(out: Path) -> object:
    """The notes on the data."""
    return [line for line in (out / "model/README.md").read_text(encoding="utf-8").splitlines() if line[:2] == "- "]


def judged(out: Path) -> object:
    """What the nearest neighbors said."""
    tree = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return tree["evaluated_by"], tree["top1_interval"]


def logged(out: Path) -> object:
    """Names of the numbers in the rows of the metrics log."""
    return sorted({name for row in MetricsLog.read(out) for name in row})


class Case(NamedTuple):
    """Another value of a key; what must then be different; what else is set in both runs, to give the key a meaning."""

    value: object
    seen: Callable[[Path], object] = weights
    given: Mapping[str, Any] = MappingProxyType({})
