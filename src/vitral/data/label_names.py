"""Compare labels with names: a flat folder read as one class, and files or folders named after another class.

Shape letters: none; names are relative to the dataset, with "/".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from vitral.data.findings import Sample
from vitral.data.folder_names import CONTAINERS, FOLDS, SPLIT_OF, SPLIT_WORDS, any_of

# A class of this name, perhaps with a number, is more likely a folder of all classes than a class.
_CONTAINER = re.compile(f"(?:{any_of(SPLIT_WORDS)}|{FOLDS}|{CONTAINERS})[ _-]?[0-9]*")
_SEPARATORS = (";", "|", ",")
# What cameras, phones and programs call their files: no labels.
_MACHINE = frozenset({
    "img", "image", "images", "dsc", "dscn", "dscf", "pic", "picture", "photo", "photos", "p", "pxl", "mvi", "frame",
    "screenshot", "scan", "file", "sample",
})  # fmt: skip
_NUMBERED = re.compile(r"(?P<label>.*?[^\W\d_].*?)[ _\-.]*\d+")


def flat_folders(samples_by_class: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, int]]:
    """Classes whose files are named label_index with two or more labels: {class: {label in the names: files}}.

    Nine tenths of its files are named so, and each label occurs twice or more. Breeds in the names of cats say nothing,
    nor do labels that hold the class's own name (steam_train); so it is also expected that the class is the only one,
    or called like a container (train, batch_2) while no class of another kind has files named by several labels, or
    that these labels are names of other classes, or that the files of all others, two or more, are named after their
    own class.
    """
    labels_of = {name: _labels(samples) for name, samples in samples_by_class.items()}
    names = {_plain(name) for name in labels_of}
    by_themselves = sum(set(labels) == {_plain(name)} for name, labels in labels_of.items())
    kinds = any(len(labels) > 1 and not _CONTAINER.fullmatch(name.lower()) for name, labels in labels_of.items())
    found: dict[str, dict[str, int]] = {}
    for name, labels in labels_of.items():
        own = sum(count for label, count in labels.items() if _plain(name) in label.split("_"))
        if len(labels) < 2 or _plain(name) in labels or 2 * own >= sum(labels.values()):
            continue
        theirs = sum(count for label, count in labels.items() if label in names)
        if (
            len(labels_of) == 1
            or (_CONTAINER.fullmatch(name.lower()) and not kinds)
            or theirs >= 0.9 * sum(labels.values())
            or (len(labels_of) > 2 and by_themselves == len(labels_of) - 1)
        ):
            found[name] = dict(labels.most_common())
    return found


def shared_labels(samples_by_class: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Labels, two or more, that the file names of every class carry, all the same: of folders that are no classes, or
    of views of things that are (left_1, right_1). Empty where there are none."""
    labels_of = [set(_labels(samples)) for samples in samples_by_class.values()]
    same = len(labels_of) > 1 and len(labels_of[0]) > 1 and all(labels == labels_of[0] for labels in labels_of)
    return sorted(labels_of[0]) if same else []


def _labels(samples: Sequence[Sample]) -> Counter[str]:
    """How many files are named after which label; nothing unless that is what nine tenths of the names do."""
    matches = (_NUMBERED.fullmatch(_stem(sample.name)) for sample in samples)
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

    A name that also holds one of the image's own classes says nothing. Nor does one that nine tenths of the files of
    both classes bear (a0001 in A and in B), and a number before further digits is part of a running number (0 of
    00003). Class names that are numbers, or shorter than three letters, only count where half of the class's files are
    named after it, or lie in a folder of its name: 3/0012.png is no zero.
    """
    names = {_plain(name): name for name in sorted(classes) if _plain(name)}
    if not names:
        return []
    alternatives = "|".join(
        re.escape(name) + (r"(?!\d)" if name[-1].isdigit() else "") for name in sorted(names, key=len, reverse=True)
    )
    start = re.compile(f"({alternatives})(?![^\\W\\d_])")
    by_file = [_said(sample.name, start, names) for sample in samples]
    by_folder = [_folders(sample.name, names) for sample in samples]
    file, folder = _Evidence(by_file, labels), _Evidence(by_folder, labels)
    found: list[int] = []
    for place, (sample, own) in enumerate(zip(samples, labels, strict=True)):
        mine = {_plain(label) for label in own}
        stem = _plain(_stem(sample.name))
        in_name = file.against(by_file[place], own) and not any(name and name in stem for name in mine)
        if in_name or folder.against(by_folder[place], own):
            found.append(place)
    return found


class _Evidence:
    """What names say about labels: how many samples of each class have a name that says which class."""

    def __init__(self, named: Sequence[frozenset[str]], labels: Sequence[Sequence[str]]) -> None:
        self.size: Counter[str] = Counter(label for own in labels for label in own)
        self.pairs: Counter[tuple[str, str]] = Counter(
            (label, each) for own, names in zip(labels, named, strict=True) for label in own for each in names
        )

    def against(self, named: frozenset[str], own: Sequence[str]) -> bool:
        """Whether this name says another class than its sample's own, and is to be believed."""
        return bool(named) and not named & set(own) and any(self._believed(each, own) for each in named)

    def _believed(self, named: str, own: Sequence[str]) -> bool:
        if own and all(self._share(label, named) >= 0.9 for label in (*own, named)):
            return False
        weak = named.isdigit() or len(named) < 3
        return not weak or (bool(own) and all(self._share(label, label) >= 0.5 for label in own))

    def _share(self, label: str, named: str) -> float:
        return self.pairs[label, named] / self.size[label] if self.size[label] else 0.0


def _folders(name: str, names: Mapping[str, str]) -> frozenset[str]:
    """Classes that the folders above a file are named after."""
    parts = (_plain(part) for part in name.split("/")[:-1] if part.lower() not in SPLIT_OF)
    return frozenset(names[part] for part in parts if part in names)


def _said(name: str, start: re.Pattern[str], names: Mapping[str, str]) -> frozenset[str]:
    match = start.match(_plain(_stem(name)))
    return frozenset() if match is None else frozenset({names[match[1]]})


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _plain(text: str) -> str:
    return re.sub(r"[ _\-.]+", "_", text.casefold()).strip("_")
