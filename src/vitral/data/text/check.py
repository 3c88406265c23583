"""Check data with text before training: empty and long texts, unknown and odd characters, copies across splits."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import median

import numpy as np

from vitral.data.check import check_dataset, decoding
from vitral.data.config import DataConfig
from vitral.data.dataset import Dataset
from vitral.data.files import some
from vitral.data.findings import CheckReport, Finding, Sample, finding, in_order
from vitral.data.text.config import TextConfig
from vitral.data.text.dataset import TextDataset, TextSplit
from vitral.data.text.tokenizer import TextTokenizer, split_key
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import plural, shown

OUTLIER = 8  # times the median length of the training texts
CHANCE = 16  # characters; images with an equal text that is shorter are no copies
# Hebrew, Arabic and their neighbors, with presentation forms, and the scripts of the second plane.
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff]")
_SHOWN = 20  # characters that a message names
_HARMLESS = "\t\n\r\u200c\u200d"  # the last two join letters of Indic and Arabic scripts, and emoji
_BRIEF = 60  # characters of a text beside its name


def check_text(dataset: TextDataset, tokenizers: Tokenizers, config: TextConfig) -> tuple[Finding, ...]:
    """All that is wrong or odd with the texts of a dataset, errors first, by the tokenizers of its training split.

    Codes: `text-empty`, `text-unknown`, `text-long`, `text-across` (errors), `text-length`, `text-equal`,
    `text-direction`, `text-form`, `text-control` (warnings); see `findings.CODES`. With `config.truncate` text that is
    too long is a warning.
    """
    sides: list[tuple[str, TextTokenizer, int]] = [("target", tokenizers.target, config.max_target)]
    if not dataset.has_images:
        assert tokenizers.source is not None, "source texts need a tokenizer"
        sides.append(("source", tokenizers.source, config.max_source))
    found = [_across(dataset), _equal(dataset)]
    for side, tokenizer, longest in sides:
        found += [
            _unknown(dataset, side, tokenizer), _too_long(dataset, side, tokenizer, longest, config.truncate),
            _outliers(dataset, side), _empty(dataset, side), _forms(dataset, side), _controls(dataset, side),
            _direction(dataset, side),
        ]  # fmt: skip
    return in_order(chain.from_iterable(found))


def check_images(
    dataset: TextDataset,
    images: DataConfig,
    cache: Path | None = None,
    tick: Callable[[int], None] = lambda count: None,
) -> CheckReport:
    """What `check_dataset` finds in the images of a dataset that has some: damaged ones, copies within and across
    splits, look-alikes with the same text, copies with different texts, odd sizes. images: how they are read. cache,
    tick: as there."""
    texts = tuple(dict.fromkeys(text for split in dataset.splits.values() for text in split.targets))
    place_of = {text: place for place, text in enumerate(texts)}
    splits = {
        name: replace(split.images, labels_N=np.array([place_of[text] for text in split.targets], np.int64))
        for name, split in dataset.splits.items()
        if split.images is not None
    }
    labeled = Dataset(dataset.name, texts, splits, dataset.channels, (), dataset.fingerprint)
    workers = images.workers if images.workers != "auto" else None
    variant = f"texts, {decoding(images)}"
    return check_dataset(labeled, workers=workers, variant=variant, cache=cache, tick=tick, texts=True)


def _texts(split: TextSplit, side: str) -> Sequence[str]:
    texts = split.targets if side == "target" else split.sources
    assert texts is not None
    return texts


def _sample(name: str, split: TextSplit, place: int, text: str) -> Sample:
    return Sample(name, place, shown(split.names[place]), shown(text[:_BRIEF]))


def _where(dataset: TextDataset, side: str, test: Callable[[str], object]) -> list[tuple[Sample]]:
    """The samples whose text of this side passes a test."""
    return [
        (_sample(name, split, place, text),)
        for name, split in dataset.splits.items()
        for place, text in enumerate(_texts(split, side))
        if test(text)
    ]


def _named(counts: Counter[str]) -> str:
    """The most frequent characters or words, with their counts."""
    return some((f"{ascii(sign)[1:-1]} ({count:,})" for sign, count in counts.most_common()), _SHOWN)


def _empty(dataset: TextDataset, side: str) -> Iterator[Finding]:
    if found := _where(dataset, side, lambda text: not text.strip()):
        yield finding("text-empty", f"{plural(len(found), f'empty {side} text')}", found, texts=len(found))


def _unknown(dataset: TextDataset, side: str, tokenizer: TextTokenizer) -> Iterator[Finding]:
    """What has no id: characters, or words of kinds that learn words, that training texts lack."""
    counts: Counter[str] = Counter()
    groups: list[tuple[Sample]] = []
    for name, split in dataset.splits.items():
        for place, text in enumerate(_texts(split, side)):
            if parts := tokenizer.unknown(text):
                counts.update(parts)
                groups.append((_sample(name, split, place, text),))
    if counts:
        what = "characters" if tokenizer.kind == "characters" else "words"
        text = f"{what} of {side} texts that training lacks, each encoded as <unknown> (id 3): {_named(counts)}"
        yield finding("text-unknown", text, groups, different=len(counts), occurrences=counts.total())


def _too_long(
    dataset: TextDataset, side: str, tokenizer: TextTokenizer, longest: int, truncate: bool
) -> Iterator[Finding]:
    lengths: list[int] = []
    groups: list[tuple[Sample]] = []
    for name, split in dataset.splits.items():
        for place, text in enumerate(_texts(split, side)):
            length = len(tokenizer.encode(text)) + 1
            if length > longest:
                lengths.append(length)
                groups.append((_sample(name, split, place, text),))
    if lengths:
        (first,) = groups[0]
        text = (
            f"{plural(len(lengths), f'{side} text')} of more than {longest:,} ids with the end (max_{side}), up to "
            f"{max(lengths):,}; the first is {first.name} ({first.split}) of {lengths[0]:,}"
        )
        text += "; each is shortened" if truncate else ""
        severity = "warning" if truncate else None
        yield finding("text-long", text, groups, severity, texts=len(lengths), longest=max(lengths))


def _outliers(dataset: TextDataset, side: str) -> Iterator[Finding]:
    usual = median(map(len, _texts(dataset.splits.get("train") or next(iter(dataset.splits.values())), side)))
    found = _where(dataset, side, lambda text: len(text) > OUTLIER * max(usual, 1))
    if found:
        text = f"{plural(len(found), f'{side} text')} of more than {OUTLIER} times the median of {usual:g} characters"
        yield finding("text-length", text, found, texts=len(found), median=usual)


def _across(dataset: TextDataset) -> Iterator[Finding]:
    """The same source text in two splits; of images the same text, a warning, where it is too long for a chance."""
    side, shortest = ("target", CHANCE) if dataset.has_images else ("source", 0)
    first: dict[str, Sample] = {}
    groups: list[tuple[Sample, Sample]] = []
    for name, split in dataset.splits.items():
        for place, text in enumerate(_texts(split, side)):
            own = _sample(name, split, place, text)
            other = first.setdefault(split_key(text), own)
            if other.split != name and len(text) >= shortest:
                groups.append((other, own))
    if groups:
        text = f"{plural(len(groups), f'{side} text is', f'{side} texts are')} in more than one split"
        severity = "warning" if dataset.has_images else None
        yield finding("text-across", text, groups, severity, texts=len(groups))


def _equal(dataset: TextDataset) -> Iterator[Finding]:
    if dataset.has_images:
        return
    splits = dataset.splits.values()
    total = sum(map(len, splits))
    equal = sum(one == other for each in splits for one, other in zip(each.sources or (), each.targets, strict=True))
    if 2 * equal > total:
        text = f"{equal:,} of {total:,} targets equal their source: are both columns the same?"
        yield finding("text-equal", text, pairs=equal)


def _forms(dataset: TextDataset, side: str) -> Iterator[Finding]:
    if found := _where(dataset, side, lambda text: not unicodedata.is_normalized("NFC", text)):
        text = f"{plural(len(found), f'{side} text')} with accents in another form than NFC, which is applied"
        yield finding("text-form", text, found, texts=len(found))


def _direction(dataset: TextDataset, side: str) -> Iterator[Finding]:
    if found := _where(dataset, side, _RIGHT_TO_LEFT.search):
        text = f"{plural(len(found), f'{side} text')} in a script that is written from right to left: the first letter "
        text += "comes first, in memory as in what is written"
        text += "; CTC, which goes through images from left to right, cannot learn it" if dataset.has_images else ""
        yield finding("text-direction", text, found, texts=len(found))


def _controls(dataset: TextDataset, side: str) -> Iterator[Finding]:
    """Control characters (Cc) and characters without width (Cf), but for the harmless ones."""
    counts: Counter[str] = Counter()

    def odd(text: str) -> bool:
        if text.isprintable():
            return False
        signs = [sign for sign in text if sign not in _HARMLESS and unicodedata.category(sign) in ("Cc", "Cf")]
        counts.update(signs)
        return bool(signs)

    if found := _where(dataset, side, odd):
        text = f"{plural(len(found), f'{side} text')} with control characters: {_named(counts)}"
        yield finding("text-control", text, found, texts=len(found))
