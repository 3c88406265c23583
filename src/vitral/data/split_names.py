"""Folders that are splits, folds or years, and were taken for classes: by their names, or by what they all hold."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vitral.data.findings import Finding, Sample

_WORDS = {
    "train": "train", "training": "train", "trn": "train", "tr": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "eval": "val", "evaluation": "val",
    "test": "test", "testing": "test", "tst": "test", "ts": "test", "holdout": "test", "heldout": "test",
    "pred": "", "prediction": "", "predict": "",
}  # fmt: skip
# A word of these between other letters says nothing (restaurant); set, data and images may follow directly (testset).
_WORD = re.compile(f"(?<![a-z])({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?=set|data|images?|imgs?|[^a-z]|$)")
_FOLD = re.compile(
    r"(?:cv|folds?|splits?|partition|shard|chunk|subset)[ _.-]*(?:[0-9]+|[a-z])|[0-9]+[ _-]?(?:st|nd|rd|th)?[ _-]?fold"
)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PLAIN = re.compile(
    "(?:images?|imgs?|photos?|pics?|pictures?|data|files?|raw|jpe?g|png|batch|part|session|scan|series|set)?"
    "[ _.-]*[0-9]*"
)
_SAME = 0.5  # of all folders inside the classes, that are inside every one of them
_SHOWN = 5


class _Inside(NamedTuple):
    """What lies below a class folder: the folder (below the data's) that holds more than one folder, and these."""

    path: str
    folders: frozenset[str]


def split_classes(classes: Sequence[str]) -> dict[str, str]:
    """Classes that are named like splits of one set (seg_train and seg_test; fold0 and fold1, if all are such), with
    train, val or test where the name says it, else ""."""
    alike: dict[str, dict[str, str]] = {}
    for name in classes:
        words = _CAMEL.sub("_", name).casefold()
        match = _WORD.search(words)
        if match is not None:
            alike.setdefault(words[: match.start()] + "*" + words[match.end() :], {})[name] = _WORDS[match[1]]
    found = {name: split for own in alike.values() if len(set(own.values())) > 1 for name, split in own.items()}
    if not found and len(classes) > 1 and all(_FOLD.fullmatch(name.casefold()) for name in classes):
        return dict.fromkeys(classes, "")
    return found


def split_findings(classes: Sequence[str], samples_by_class: Mapping[str, Sequence[Sample]]) -> list[Finding]:
    """The finding `split-names` for classes that are named like splits, or whose folders all hold the same folders.

    Folders with numbers or names of containers inside (cat/001, dog/001) are a warning, where the classes' own names
    say nothing: they are as often sessions or devices as classes.
    """
    inside = {name: _inside(name, samples) for name, samples in samples_by_class.items()}
    nested = {name: own for name, own in inside.items() if len(own.folders) > 1}
    shared = frozenset[str]()
    most = sum(len(samples_by_class[name]) for name in nested) * 2 > sum(map(len, samples_by_class.values()))
    if len(nested) > 1 and most:
        shared = frozenset.intersection(*(own.folders for own in nested.values()))
        together = frozenset.union(*(own.folders for own in nested.values()))
        shared = shared if len(shared) > 1 and len(shared) >= _SAME * len(together) else frozenset()
    by_name = split_classes(classes)
    if not by_name and not shared:
        return []
    if by_name:
        text = f"the classes {_some(by_name)} are named like splits of one set"
    else:
        text = f"the class folders {_some(nested)} all hold the same folders ({_some(shared)})"
    telling = bool(by_name) or all(_PLAIN.fullmatch(name.casefold()) for name in nested)
    plain = all(_PLAIN.fullmatch(name.casefold()) for name in shared)
    severity = "warning" if plain and not telling else "error"
    numbers = {"classes": len(by_name or nested), "folders": len(shared)}
    return [Finding("split-names", severity, f"{text}: {_way(by_name, inside, shared)}", (), numbers)]


def _way(by_name: Mapping[str, str], inside: Mapping[str, _Inside], shared: frozenset[str]) -> str:
    """What to do instead."""
    paths: dict[str, str] = {}
    for name, split in by_name.items():
        if split:
            paths.setdefault(split, inside[name].path if name in inside and inside[name].path else name)
    if "train" in paths and len(paths) > 1:
        listed = ", ".join(f"{split}: {path}" for split, path in paths.items())
        return f"if they are splits, a YAML file beside them reads them (data=FILE.yaml): splits: {{{listed}}}"
    if shared and all(_WORD.search(name.casefold()) for name in shared):
        return "splits belong above the classes (train/CLASS, val/CLASS, test/CLASS)"
    return (
        "if the folders inside are the classes, move these below train/ and val/ or test/, or pass one folder as data"
    )


def _inside(label: str, samples: Sequence[Sample]) -> _Inside:
    """Follows folders that hold nothing but one folder (seg_train/seg_train)."""
    below: list[tuple[str, ...]] = []
    for sample in samples:
        parts = tuple(sample.name.split("/"))
        at = next((place for place, part in enumerate(parts[:2]) if part == label), None)
        if at is None:  # labels that are no folders
            return _Inside("", frozenset())
        below.append(parts[at + 1 :])
    path = [label]
    while below and all(len(parts) > 1 for parts in below) and len({parts[0] for parts in below}) == 1:
        path.append(below[0][0])
        below = [parts[1:] for parts in below]
    return _Inside("/".join(path), frozenset(parts[0] for parts in below if len(parts) > 1))


def _some(names: Mapping[str, object] | frozenset[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:_SHOWN]) + (f" and {len(listed) - _SHOWN:,} more" if len(listed) > _SHOWN else "")
