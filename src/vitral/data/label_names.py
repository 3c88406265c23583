"""Labels against names: a flat folder taken for one class, and files or folders named after another class.

Shape letters: none; names are relative to the dataset, with "/".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from vitral.data.findings import Sample

# A class of this name, perhaps with a number, is more likely a folder of all classes than a class.
_CONTAINER = re.compile(
    "(?:train|training|test|testing|val|valid|validation|eval|dev|images?|imgs?|data|dataset|photos?|pictures?|pics?|files?|"
    "all|raw|jpe?g|png|batch|part|chunk|shard|fold|folder|set|split|session|volume)[ _-]?[0-9]*"
)
_SEPARATORS = (";", "|", ",")
# What cameras, phones and programs call their files: no labels.
_MACHINE = frozenset({
    "img", "image", "images", "dsc", "dscn", "dscf", "pic", "picture", "photo", "photos", "p", "pxl", "mvi", "frame",
    "screenshot", "scan", "file", "sample",
})  # fmt: skip
_NUMBERED = re.compile(r"(?P<label>.*?[^\W\d_].*?)[ _\-.]*\d+")
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


def flat_folders(samples_by_class: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, int]]:
    """Classes whose files are named label_index with two or more labels: {class: {label in the names: files}}.

    Nine tenths of its files are named so, and each label occurs twice or more. Breeds in the names of cats say nothing;
    so it is also wanted that the class is the only one, or called like a container (train, batch_2), or that these
    labels are names of other classes, or that the files of all others, two or more, are named after their own class.
    """
    told = {name: _labels(samples) for name, samples in samples_by_class.items()}
    by_themselves = {name for name, labels in told.items() if set(labels) == {_plain(name)}}
    found: dict[str, dict[str, int]] = {}
    for name, labels in told.items():
        others = told.keys() - {name}
        if len(labels) < 2 or _plain(name) in labels:
            continue
        theirs = sum(count for label, count in labels.items() if label in map(_plain, others))
        if (
            not others
            or _CONTAINER.fullmatch(name.lower())
            or theirs >= 0.9 * sum(labels.values())
            or (len(others) >= 2 and others <= by_themselves)
        ):
            found[name] = dict(labels.most_common())
    return found


def shared_labels(samples_by_class: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Labels, two or more, that the file names of every class carry, all the same: of folders that are no classes, or
    of views of things that are (left_1, right_1). Empty where there are none."""
    told = [set(_labels(samples)) for samples in samples_by_class.values()]
    same = len(told) > 1 and len(told[0]) > 1 and all(labels == told[0] for labels in told)
    return sorted(told[0]) if same else []


def _labels(samples: Sequence[Sample]) -> Counter[str]:
    """How many files are named after which label; nothing unless that is what nine tenths of the names do."""
    matches = [_NUMBERED.fullmatch(_stem(sample.name)) for sample in samples]
    labels = Counter(_plain(match["label"]) for match in matches if match is not None)
    labels = Counter({label: n for label, n in labels.items() if n >= 2 and label not in _MACHINE})
    return labels if sum(labels.values()) >= 0.9 * len(samples) else Counter()


def joined_labels(classes: Sequence[str]) -> dict[str, list[str]]:
    """Class names that consist of others with a separator between, by the separator: cat;dog beside cat and dog, or
    beside dog;owl and owl;cat."""
    found: dict[str, list[str]] = {}
    for separator in _SEPARATORS:
        parts = {name: [part.strip() for part in name.split(separator)] for name in classes}
        times = Counter(part for own in parts.values() for part in set(own))
        joined = [name for name, own in parts.items() if len(own) > 1 and all(p and times[p] > 1 for p in own)]
        if joined:
            found[separator] = joined
    return found


def disagreements(samples: Sequence[Sample], classes: Sequence[str], labels: Sequence[Sequence[str]]) -> list[int]:
    """Places of the samples whose file name begins with another class's name, or that lie in another class's folder.

    A name that also holds one of the image's own classes says nothing. Class names that are numbers, or shorter than
    three letters, only count where half of all files are named after their own class: 3/0012.png is no zero.
    """
    names = {_plain(name): name for name in sorted(classes) if _plain(name)}
    if not names:
        return []
    alternatives = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    start = re.compile(f"({alternatives})(?![^\\W\\d_])")
    said = [_said(sample.name, start, names) for sample in samples]
    agree = sum(label in own for label, own in zip(said, labels, strict=True) if label)
    systematic = bool(samples) and agree >= 0.5 * len(samples)
    found: list[int] = []
    for place, (sample, own) in enumerate(zip(samples, labels, strict=True)):
        folders = [_plain(part) for part in sample.name.split("/")[:-1] if part.lower() not in _SPLITS]
        mine = {_plain(label) for label in own}
        label = said[place]
        weak = label is not None and (label.isdigit() or len(label) < 3)
        by_file = label is not None and label not in own and (systematic or not weak)
        by_file = by_file and not any(name and name in _plain(_stem(sample.name)) for name in mine)
        other = [part for part in folders if part in names]
        by_folder = bool(other) and not mine & set(folders)
        if by_file or by_folder:
            found.append(place)
    return found


def _said(name: str, start: re.Pattern[str], names: Mapping[str, str]) -> str | None:
    match = start.match(_plain(_stem(name)))
    return None if match is None else names[match[1]]


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _plain(text: str) -> str:
    return re.sub(r"[ _\-.]+", "_", text.casefold()).strip("_")
