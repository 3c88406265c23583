"""Find folders that are splits, folds or years but were read as classes, by names and contents."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from vitral.data.files import some
from vitral.data.findings import Finding, Sample
from vitral.data.folder_names import CONTAINERS, FOLDS, SPLIT_WORDS, any_of

# A word of these between other letters says nothing (restaurant); set, data and images may follow directly (testset).
_WORD = re.compile(f"(?<![a-z])({any_of(SPLIT_WORDS)})(?=set|data|images?|imgs?|[^a-z]|$)")
_SHORT = {"tr": "train", "ts": "test"}  # behind one of these words alone (imagesTr); else codes of languages
_SHORT_WORD = re.compile(f"(?<=images_|labels_)({'|'.join(_SHORT)})$")
_FOLD = re.compile(rf"(?:{FOLDS})[ _.-]*(?:[0-9]+|[a-z])")
_NUMBERED_FOLD = re.compile(r"(?:cv|folds?)[ _.-]*[0-9]+")
_YEAR = re.compile("(?:19|20)[0-9]{2}")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_BATCH = re.compile(f"(?:{CONTAINERS})[ _.-]*[0-9]*")
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
        match = _SHORT_WORD.search(words) or _WORD.search(words)
        if match is not None:
            split = (_SHORT | SPLIT_WORDS)[match[1]]
            others = re.sub("[0-9]+", "#", words[: match.start()] + "*" + words[match.end() :])
            alike.setdefault(others, {})[name] = split
    found = {name: split for own in alike.values() if len(set(own.values())) > 1 for name, split in own.items()}
    if not found and len(classes) > 1 and all(_FOLD.fullmatch(name.casefold()) for name in classes):
        return dict.fromkeys(classes, "")
    return found


def split_findings(
    classes: Sequence[str], samples_by_class: Mapping[str, Sequence[Sample]], *, is_divided: bool = False
) -> list[Finding]:
    """Return the finding `split-names` for classes that are named like splits, or whose folders all hold the same
    folders.

    An error where a name says train, where numbered folds, years or batches hold the same folders, and where names of
    splits are what every class holds (cat/train, cat/test). Otherwise a warning: the shared folders of cat/day and
    dog/day are views, patients or devices as often as classes. is_divided: the data have several splits already, in
    which shared folders say nothing.
    """
    inside = {name: _inside(name, samples) for name, samples in samples_by_class.items()}
    nested = {name: own for name, own in inside.items() if len(own.folders) > 1}
    shared = frozenset[str]()
    most = sum(len(samples_by_class[name]) for name in nested) * 2 > sum(map(len, samples_by_class.values()))
    if len(nested) > 1 and most and not is_divided:
        shared = frozenset.intersection(*(own.folders for own in nested.values()))
        together = frozenset.union(*(own.folders for own in nested.values()))
        shared = shared if len(shared) > 1 and len(shared) >= _SAME * len(together) else frozenset()
    by_name, splits_inside = split_classes(classes), split_classes(sorted(shared))
    if not by_name and not shared:
        return []
    if by_name:
        text = f"the classes {_some(by_name)} are named like splits of one set"
        is_sure = bool(shared) or "train" in by_name.values() or _all(_NUMBERED_FOLD, by_name)
    else:
        text = f"the class folders {_some(nested)} all hold the same folders ({_some(shared)})"
        is_sure = "train" in splits_inside.values() or _all(_YEAR, nested) or _all(_BATCH, nested)
    numbers = {"classes": len(by_name or nested), "folders": len(shared)}
    way = _way(by_name, inside, bool(splits_inside))
    return [Finding("split-names", "error" if is_sure else "warning", f"{text}: {way}", (), numbers)]


def _all(pattern: re.Pattern[str], names: Iterable[str]) -> bool:
    return all(pattern.fullmatch(name.casefold()) for name in names)


def _way(by_name: Mapping[str, str], inside: Mapping[str, _Inside], has_splits: bool) -> str:
    """What to do instead."""
    paths: dict[str, str] = {}
    for name, split in by_name.items():
        if split:
            paths.setdefault(split, inside[name].path if name in inside and inside[name].path else name)
    if "train" in paths and 1 < len(paths) == sum(map(bool, by_name.values())):
        listed = ", ".join(f"{split}: {path}" for split, path in paths.items())
        return f"if they are splits, a YAML file beside them reads them (data=FILE.yaml): splits: {{{listed}}}"
    if has_splits:
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


def _some(names: Iterable[str]) -> str:
    return some(sorted(names), _SHOWN)
