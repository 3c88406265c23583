"""Names of ImageNet's classes in the order of well-known outputs. From WordNet 3.0, see NOTICE."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources

# Outputs of a head: the list that they are of. Google's ImageNet-21k has two synsets more than that of fall 2011.
LISTS = {1000: ("k", "ImageNet-1k"), 21843: ("g", "ImageNet-21k"), 21841: ("w", "ImageNet-21k of fall 2011")}


def imagenet_names(count: int) -> dict[str, str] | None:
    """Return id2label of a head of 1,000, 21,841 or 21,843 outputs; None for any other number.

    A name is all lemmas of the synset, "tench, Tinca tinca". Where several classes share it, the synset's number
    distinguishes them: "crane (n02012849)".
    """
    if count not in LISTS:
        return None
    text = gzip.decompress((resources.files("vitral") / "weights" / "imagenet.txt.gz").read_bytes()).decode()
    rows = [row.split("\t") for row in text.split("\n")]
    chosen = [(synset, name) for synset, lists, name in rows if LISTS[count][0] in lists]
    assert len(chosen) == count
    often = Counter(name for _, name in chosen)
    names = (f"{name} ({synset})" if often[name] > 1 else name for synset, name in chosen)
    return {str(index): name for index, name in enumerate(names)}


def distinct_names(names: Mapping[str, str]) -> dict[str, str]:
    """Return id2label with a number behind each name that an earlier class has already: "crane", "crane (2)"."""
    taken, found, often = set(names.values()), dict[str, str](), Counter[str]()
    for index, name in names.items():
        often[name] += 1
        if often[name] == 1:
            found[index] = name
            continue
        while (new := f"{name} ({often[name]})") in taken:
            often[name] += 1
        taken.add(new)
        found[index] = new
    return found


def numbered_of(name: str) -> str | None:
    """Return a name without the number that `distinct_names` gives: "crane" of "crane (2)". None of other names."""
    found = re.fullmatch(r"(.+) \([0-9]+\)", name, re.DOTALL)
    return found[1] if found else None


def renamed_classes(names: Sequence[str]) -> list[str]:
    """Return a line for each class that `distinct_names` gives another name than it has."""
    found = distinct_names({str(index): name for index, name in enumerate(names)})
    return [f"{found[str(i)]!r} is class {i}" for i, name in enumerate(names) if found[str(i)] != name]


def numbered_names(count: int) -> dict[str, str]:
    """Return id2label of classes without names: "class 0", "class 1" and so on."""
    return {str(index): f"class {index}" for index in range(count)}
