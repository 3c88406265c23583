"""Words in folder names that stand for splits, folds, or containers of images of all classes."""

from __future__ import annotations

from collections.abc import Iterable

# What the folders of a split are called, by the split, where data are read.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLIT_OF = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}

# Further words that mean a split ("" for none of the three), where data are checked.
SPLIT_WORDS = SPLIT_OF | {
    "trn": "train", "dev": "val", "eval": "val", "evaluation": "val", "tst": "test", "holdout": "test",
    "heldout": "test", "pred": "", "prediction": "", "predict": "",
}  # fmt: skip
FOLDS = "cv|folds?|splits?|partition|shard|chunk|subset"  # with a number or a letter
CONTAINERS = (
    "images?|imgs?|photos?|pics?|pictures?|data|files?|raw|jpe?g|png|batch|part|session|scan|series|set|all|dataset|"
    "folder|volume"
)


def any_of(words: Iterable[str]) -> str:
    """Return the words as alternatives of a regular expression, longer ones first."""
    return "|".join(sorted(words, key=len, reverse=True))
