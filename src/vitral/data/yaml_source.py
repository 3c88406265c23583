"""A YAML file that describes data: which source, where, by which columns or pattern, which classes in which order.

Shape letters: N samples, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitral.config import build, load_yaml
from vitral.data.config import DataConfig, Description
from vitral.data.dataset import Dataset, Labels, Split, fingerprint
from vitral.data.files import class_map
from vitral.errors import UserError

Opener = Callable[[DataConfig], Dataset]


def open_description(config: DataConfig, opener: Opener) -> Dataset:
    """The data that the YAML file `config.path` describes, each part opened by `opener`.

    Keys are those of `Description`; paths are relative to the file. What the run's configuration sets itself wins over
    the file. With `splits`, each path is opened separately and class indices come from one map over all of them. Raises
    UserError for unknown keys, for a path that has splits of its own under `splits`, and as `opener` does.
    """
    file = config.place
    tree = load_yaml(file)
    described = build(Description, tree, where=str(file))
    merged = _merged(config, described, tree)
    if described.splits is None:
        assert described.path is not None
        return replace(opener(merged.model_copy(update={"path": _below(file, described.path)})), name=file.stem)
    return _joined(merged, {split: _below(file, path) for split, path in described.splits.items()}, file, opener)


def _merged(config: DataConfig, described: Description, tree: Mapping[str, object]) -> DataConfig:
    """The run's configuration with the file's keys in place of those that it leaves at their defaults."""
    if described.source == "yaml":
        raise UserError("a description can't describe another one", where="source")
    mine = {key for key in described.model_dump() if key in tree and key not in ("source", "path", "splits")}
    default = DataConfig()
    taken = {key: getattr(described, key) for key in mine if getattr(config, key) == getattr(default, key)}
    return config.model_copy(update={**taken, "source": described.source})


def _below(file: Path, path: str) -> str:
    """A path that is relative to the file. What isn't there may be a name on the hub or a pattern of shards."""
    near = file.parent / Path(path).expanduser()
    plain = "://" not in path and (near.exists() or any(sign in path for sign in "*?[{") or path.startswith("."))
    return str(near) if plain else path


def _joined(config: DataConfig, paths: Mapping[str, str], file: Path, opener: Opener) -> Dataset:
    """One dataset of one path per split."""

    def opened(path: str, channels: int | None = None) -> Dataset:
        update = {"path": path, "classes": None, **({"channels": channels} if channels else {})}
        part = opener(config.model_copy(update=update))
        if set(part.splits) != {"train"}:
            raise UserError(
                "this path has splits of its own", where=str(file), got=f"{path}: {', '.join(part.splits)}",
                expected="path: instead of splits:, or a path to the images of one split",
            )  # fmt: skip
        return part

    parts = {split: opened(path) for split, path in paths.items()}
    channels = max(part.channels for part in parts.values())
    parts = {s: part if part.channels == channels else opened(paths[s], channels) for s, part in parts.items()}
    if len({part.task for part in parts.values()}) > 1:
        what = "one label per image in one split, several in another"
        what = (
            "boxes in one split, none in another" if any(part.task == "detection" for part in parts.values()) else what
        )
        raise UserError(what, where=str(file))
    targets = config.target  # numbers, not classes: the same columns in the same order in every part
    index_of = class_map(
        (name for part in parts.values() for name in part.classes), targets or _order(config, parts), str(file)
    )
    return Dataset(
        name=file.stem,
        classes=tuple(index_of),
        splits={split: _renumbered(split, part, index_of) for split, part in parts.items()},
        channels=channels,
        notes=tuple(f"{split}: {note}" for split, part in parts.items() for note in part.notes),
        fingerprint=fingerprint(f"{split}\0{part.fingerprint}".encode() for split, part in parts.items()),
        left_out={name: count for part in parts.values() for name, count in part.left_out.items()},
    )


def _order(config: DataConfig, parts: Mapping[str, Dataset]) -> tuple[str, ...] | None:
    """The configured order; else train's order, if it has all classes (that of a ClassLabel, say); else sorted."""
    if config.classes is not None:
        return config.classes
    train = parts["train"].classes
    return train if all(set(part.classes) <= set(train) for part in parts.values()) else None


def _renumbered(split: str, part: Dataset, index_of: Mapping[str, int]) -> Split:
    own = part.splits["train"]
    place_K = np.array([index_of[name] for name in part.classes], np.int64)
    if own.task == "regression":
        return replace(own, names=[f"{split}/{name}" for name in own.names])
    if own.multi_label:
        labels: Labels = np.zeros((len(own), len(index_of)), np.bool_)
        labels[:, place_K] = own.labels_N
    else:
        labels = place_K[own.labels_N]
    boxes = own.boxes and own.boxes.relabeled(place_K)
    return replace(own, labels_N=labels, names=[f"{split}/{name}" for name in own.names], boxes=boxes)
