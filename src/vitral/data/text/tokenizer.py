"""Tokenizers of text: text to ids and back.

All kinds share the first four ids: 0 pads, 1 starts, 2 ends, 3 stands for what has no id. Text is normalized to Unicode
NFC first, so that an accent has one form; a character is one code point (a flag or a family may be several). Text never
becomes one of the special ids, whatever it says. The kinds:

- characters: one id per code point. decode(encode(x)) = NFC(x), unless a character is unknown (U+FFFD then).
- bytes: one id per byte of UTF-8; nothing is unknown. decode(encode(x)) = NFC(x).
- bpe: byte pairs (Sennrich et al. 2016, arXiv 1508.07909) over the bytes of UTF-8 (Radford et al. 2019), by the library
  tokenizers; nothing is unknown. decode(encode(x)) = NFC(x).
- wordpiece: words between whitespace in the longest known pieces (Wu et al. 2016, arXiv 1609.08144), by the library;
  decode joins words with one blank. No lower case and no split at punctuation, other than BERT's.
- words: one id per symbol between whitespace, such as a phoneme; decode joins with one blank.

Learned vocabularies depend on the texts and the size alone, not on threads or runs.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from vitral.data.dataset import fingerprint
from vitral.data.text.config import MAX_ENTRY, MAX_VOCABULARY, TokenizerConfig
from vitral.errors import UserError, shown
from vitral.files import explained, parse_json
from vitral.optional_imports import require

PAD, START, END, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
REPLACEMENT = "\ufffd"  # what an unknown id is decoded to
_FIRST = len(SPECIAL)
# Both hold whitespace, which no word does: no text looks like them.
_CONTINUES, _NO_PIECE = "## ", " "
_WORD_LIMIT = 100  # characters of a word that wordpiece cuts into pieces; a longer one is unknown


def normalized(text: str, where: str | None = None) -> str:
    """The text in Unicode NFC. Raises UserError, with `where`, for half of a surrogate pair, which no encoding can
    hold."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError("a text that is not Unicode: half of a surrogate pair", where=where, got=ascii(text[:60]),
                        expected="UTF-8 text") from error  # fmt: skip
    return unicodedata.normalize("NFC", text)


def split_key(text: str) -> str:
    """What tells source texts apart: texts of one key never stand in two splits."""
    return normalized(text).strip()


def named(parts: Iterable[str]) -> str:
    """Characters or words for a message, blank ones in quotes."""
    return shown(" ".join(each if each.strip() else repr(each) for each in parts))


class TextTokenizer(ABC):
    """Text to ids and back. entries: the vocabulary without the special ids; the first has id 4.

    Raises UserError, on construction, for entries that this kind of tokenizer cannot have.
    """

    kind: ClassVar[str]

    def __init__(self, entries: Sequence[str]) -> None:
        self.entries = tuple(entries)
        if len(self.entries) > MAX_VOCABULARY:
            raise UserError("the vocabulary is too large", got=f"{len(self.entries):,}", expected=f"{MAX_VOCABULARY:,}")
        self._id_of = {entry: _FIRST + place for place, entry in enumerate(self.entries)}
        if len(self._id_of) < len(self.entries):
            twice = next(entry for entry, count in Counter(self.entries).items() if count > 1)
            raise UserError("an entry of the vocabulary occurs twice", got=repr(twice[:60]))
        wrong = next((entry for entry in self.entries if len(entry) > MAX_ENTRY or not self._fits(entry)), None)
        if wrong is not None:
            raise UserError(f"not an entry of a vocabulary of {self.kind}", got=repr(wrong[:60]))

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""

    @abstractmethod
    def _join(self, ids: Sequence[int]) -> str:
        """The text of ids from 3 on."""

    @abstractmethod
    def _fits(self, entry: str) -> bool:
        """Whether the vocabulary may have this entry."""

    def as_written(self, text: str) -> str:
        """The text as decode(encode(text)) gives it where nothing is unknown: what a perfect model writes."""
        return normalized(text)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The name of every id, the special ones first."""
        return (*SPECIAL, *self.entries)

    @property
    def merges(self) -> Sequence[tuple[str, str]]:
        """Pairs that are joined, in this order (bpe)."""
        return ()

    def __len__(self) -> int:
        return _FIRST + len(self.entries)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first end; pad and start are left out, an unknown id becomes U+FFFD."""
        own: list[int] = []
        for each in map(int, ids):
            assert 0 <= each < len(self), (each, len(self))
            if each == END:
                break
            if each not in (PAD, START):
                own.append(each)
        return self._join(own)

    def unknown(self, text: str) -> list[str]:
        """The parts of a text that have no id, as often as they occur."""
        return []

    def ids_within(self, allowed: str) -> list[int]:
        """Ascending ids whose text, alone, has no other characters than `allowed` (of Words: is one of its words).

        Raises UserError that names the characters or words that none of these ids can write, and where there are none.
        """
        wanted = self._parts(allowed)
        parts = {_FIRST + place: self._parts(text) for place, text in enumerate(self._texts)}
        ids = [number for number, own in parts.items() if own and own <= wanted and REPLACEMENT not in own]
        lacking = wanted.difference(*(parts[number] for number in ids))
        if lacking or not ids:
            raise UserError(
                f"no token of the model writes such {'words' if self.kind == 'words' else 'characters'}",
                where="search.allowed", got=named(sorted(lacking) or [allowed]),
            )  # fmt: skip
        return ids

    @cached_property
    def _texts(self) -> list[str]:
        """What each entry is decoded to, alone."""
        return [self._join([_FIRST + place]) for place in range(len(self.entries))]

    def _parts(self, text: str) -> set[str]:
        """What a text consists of, for `ids_within`; a part of a character (bytes, bpe) is no character."""
        return set(normalized(text))

    def to_tree(self) -> dict[str, Any]:
        """What `tokenizer_of` needs, for JSON."""
        tree: dict[str, Any] = {"kind": self.kind, "entries": list(self.entries)}
        return {**tree, "merges": [list(pair) for pair in self.merges]} if self.merges else tree

    @cached_property
    def digest(self) -> str:
        """16 hex digits over everything that decides about ids; a model's record of its tokenizer."""
        joined = (part for pair in self.merges for part in pair)
        return fingerprint(text.encode() for text in (self.kind, str(len(self.entries)), *self.entries, *joined))

    def _entry(self, number: int) -> str:
        return self.entries[number - _FIRST]


class Characters(TextTokenizer):
    """One id per Unicode code point."""

    kind = "characters"

    def encode(self, text: str) -> list[int]:
        return [self._id_of.get(sign, UNKNOWN) for sign in normalized(text)]

    def unknown(self, text: str) -> list[str]:
        return [sign for sign in normalized(text) if sign not in self._id_of]

    def _join(self, ids: Sequence[int]) -> str:
        return "".join(REPLACEMENT if each == UNKNOWN else self._entry(each) for each in ids)

    def _fits(self, entry: str) -> bool:
        return len(entry) == 1 and normalized(entry) == entry


class Bytes(TextTokenizer):
    """One id per byte of UTF-8: byte b has id b + 4."""

    kind = "bytes"

    def __init__(self, entries: Sequence[str] = ()) -> None:
        names = tuple(f"<0x{byte:02x}>" for byte in range(256))
        if tuple(entries) not in ((), names):
            raise UserError("the vocabulary of bytes is fixed", got=f"{len(entries)} entries", expected="256 bytes")
        super().__init__(names)

    def encode(self, text: str) -> list[int]:
        return [_FIRST + byte for byte in normalized(text).encode("utf-8")]

    def _join(self, ids: Sequence[int]) -> str:
        parts = (REPLACEMENT.encode() if each == UNKNOWN else bytes([each - _FIRST]) for each in ids)
        return b"".join(parts).decode("utf-8", "replace")

    def _fits(self, entry: str) -> bool:
        return True


class Words(TextTokenizer):
    """One id per symbol between whitespace."""

    kind = "words"

    def encode(self, text: str) -> list[int]:
        return [self._id_of.get(word, UNKNOWN) for word in normalized(text).split()]

    def unknown(self, text: str) -> list[str]:
        return [word for word in normalized(text).split() if word not in self._id_of]

    def as_written(self, text: str) -> str:
        return " ".join(normalized(text).split())

    def _parts(self, text: str) -> set[str]:
        return set(normalized(text).split())

    def _join(self, ids: Sequence[int]) -> str:
        return " ".join(REPLACEMENT if each == UNKNOWN else self._entry(each) for each in ids)

    def _fits(self, entry: str) -> bool:
        return normalized(entry).split() == [entry]


class Wordpiece(TextTokenizer):
    """Words in the longest known pieces. An entry that continues a word begins with "## "."""

    kind = "wordpiece"

    def __init__(self, entries: Sequence[str]) -> None:
        super().__init__(entries)
        library: Any = _library()
        vocabulary = {_NO_PIECE: UNKNOWN, **self._id_of}
        model = library.models.WordPiece(
            vocabulary, unk_token=_NO_PIECE, max_input_chars_per_word=_WORD_LIMIT, continuing_subword_prefix=_CONTINUES
        )
        self._library = library.Tokenizer(model)

    def encode(self, text: str) -> list[int]:
        return list(self._library.encode(normalized(text).split(), is_pretokenized=True).ids)

    def _parts(self, text: str) -> set[str]:
        return set(normalized(text)) - {" "}  # stands between any two words

    def unknown(self, text: str) -> list[str]:
        words = normalized(text).split()
        return [word for word in words if self._library.encode([word], is_pretokenized=True).ids == [UNKNOWN]]

    def as_written(self, text: str) -> str:
        return " ".join(normalized(text).split())

    def _join(self, ids: Sequence[int]) -> str:
        words: list[str] = []
        for each in ids:
            piece = REPLACEMENT if each == UNKNOWN else self._entry(each)
            if piece.startswith(_CONTINUES):
                words[-1:] = ["".join([*words[-1:], piece.removeprefix(_CONTINUES)])]
            else:
                words.append(piece)
        return " ".join(words)

    def _fits(self, entry: str) -> bool:
        piece = entry.removeprefix(_CONTINUES)
        return normalized(piece).split() == [piece]


class Bpe(TextTokenizer):
    """Byte pairs over the bytes of UTF-8, each written as one visible character (GPT-2's table)."""

    kind = "bpe"

    def __init__(self, entries: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        library: Any = _library()
        self._alphabet = frozenset(library.pre_tokenizers.ByteLevel.alphabet())
        super().__init__(entries)
        self._merges = tuple(merges)
        lacking = self._alphabet - set(self.entries)
        if lacking:
            raise UserError("a vocabulary of bpe has an entry for each byte", got=f"{256 - len(lacking)} of 256")
        for one, other in self._merges:
            if not {one, other, one + other} <= self._id_of.keys():
                raise UserError("a merge of bpe without an entry", got=f"{one[:30]!r} + {other[:30]!r}")
        if len(set(self._merges)) < len(self._merges):
            raise UserError("a merge of bpe occurs twice")
        self._library = library.Tokenizer(library.models.BPE(dict(self._id_of), list(self._merges)))
        self._library.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self._decoder = library.decoders.ByteLevel()

    @property
    def merges(self) -> Sequence[tuple[str, str]]:
        return self._merges

    def encode(self, text: str) -> list[int]:
        return list(self._library.encode(normalized(text)).ids)

    def _join(self, ids: Sequence[int]) -> str:
        unknown = "ï¿½"  # the three bytes of U+FFFD in the table
        return self._decoder.decode([unknown if each == UNKNOWN else self._entry(each) for each in ids])

    def _fits(self, entry: str) -> bool:
        return bool(entry) and self._alphabet.issuperset(entry)


def _library() -> Any:
    return require("tokenizers", "text", "data.tokenizer")


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> TextTokenizer:
    """The tokenizer of these training texts. Raises UserError where they hold nothing to learn, and for a `vocab_size`
    below the 256 bytes (bpe) or the number of first pieces (wordpiece)."""
    if config.kind == "bytes":
        return Bytes()
    known = [normalized(text) for text in texts]
    if config.kind == "bpe":
        return _train_bpe(known, config.vocab_size)
    words = [text.split() for text in known]
    signs = known if config.kind == "characters" else words
    entries = sorted({sign for text in signs for sign in text})
    if not entries:
        raise UserError("the training texts are empty", where="data.tokenizer")
    if config.kind == "wordpiece":
        return _train_wordpiece(words, config.vocab_size)
    return Characters(entries) if config.kind == "characters" else Words(entries)


def _train_bpe(texts: Sequence[str], size: int) -> Bpe:
    library: Any = _library()
    if size < 256:
        raise UserError("bpe starts with the 256 bytes", where="tokenizer.vocab_size", got=size, expected="256 or more")
    learner = library.Tokenizer(library.models.BPE())
    learner.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = library.pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator(
        texts,
        library.trainers.BpeTrainer(
            vocab_size=size, show_progress=False, initial_alphabet=alphabet, max_token_length=MAX_ENTRY
        ),
    )
    entries = _in_order(learner)
    return Bpe(entries, _merges_of(learner))


def _merges_of(learner: Any) -> list[tuple[str, str]]:
    model = parse_json(learner.to_str(), where="tokenizers", max_items=4 * 10**6)["model"]
    return [(one, other) for one, other in model["merges"]]


def _train_wordpiece(words: Sequence[Sequence[str]], size: int) -> Wordpiece:
    """The library numbers continuing characters in the random order of a hash table, on which equal counts depend
    later: given as special tokens, in order, they have the same numbers in every run."""
    library: Any = _library()
    words = [[word for word in text if len(word) <= _WORD_LIMIT] for text in words]
    signs = sorted({sign for text in words for word in text for sign in word})
    later = sorted({sign for text in words for word in text for sign in word[1:]})
    first = [*signs, *(_CONTINUES + sign for sign in later)]
    if size < len(first):
        raise UserError(
            "wordpiece starts with all characters, alone and as continuations", where="tokenizer.vocab_size", got=size,
            expected=f"{len(first):,} or more",
        )  # fmt: skip
    learner = library.Tokenizer(library.models.WordPiece(unk_token=_NO_PIECE))
    learner.pre_tokenizer = library.pre_tokenizers.WhitespaceSplit()
    learner.train_from_iterator(
        (" ".join(text) for text in words),
        library.trainers.WordPieceTrainer(
            vocab_size=size, show_progress=False, special_tokens=first, continuing_subword_prefix=_CONTINUES
        ),
    )
    return Wordpiece(_in_order(learner))


def _in_order(learner: Any) -> list[str]:
    return sorted(learner.get_vocab(), key=learner.get_vocab().__getitem__)


def tokenizer_of(tree: Mapping[str, Any], where: str) -> TextTokenizer:
    """The tokenizer that `to_tree` described; its parts are of the right types. Raises UserError, with `where`, for one
    that cannot be."""
    kind, entries, merges = tree["kind"], tree["entries"], tree.get("merges") or ()
    if bool(merges) and kind != "bpe":
        raise UserError("merges belong to bpe alone", where=where, got=kind)
    kinds = {each.kind: each for each in (Characters, Bytes, Words, Wordpiece)}
    try:
        with explained("not a tokenizer", where):
            return Bpe(entries, [(one, other) for one, other in merges]) if kind == "bpe" else kinds[kind](entries)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
