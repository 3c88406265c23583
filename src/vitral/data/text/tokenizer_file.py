"""The file `tokenizer.json` of a model folder: the tokenizers of source and target text.

A file is untrusted: size, depth and number of items are limited before anything is built, and every entry is checked.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, Strict

from vitral.atomic_files import write_json
from vitral.config import Config, build
from vitral.data.text.config import MAX_ENTRY, MAX_VOCABULARY, TokenizerConfig, TokenizerKind
from vitral.data.text.tokenizer import TextTokenizer, tokenizer_of, train_tokenizer
from vitral.errors import UserError, shown
from vitral.files import MIB, read_json

NAME = "tokenizer.json"
_BYTES = 64 * MIB

_Entry = Annotated[str, Field(min_length=1, max_length=MAX_ENTRY)]
_Merge = Annotated[tuple[_Entry, _Entry], Strict(False)]


class _Saved(Config):
    kind: TokenizerKind
    entries: Annotated[tuple[_Entry, ...], Strict(False), Field(max_length=MAX_VOCABULARY)]
    merges: Annotated[tuple[_Merge, ...], Strict(False), Field(max_length=MAX_VOCABULARY)] = ()


class _File(Config):
    version: Literal[1]
    target: _Saved
    source: _Saved | None = None
    shared: bool = False


class Tokenizers(NamedTuple):
    """Tokenizers of the target and of the source text; no source where it is an image; the same one where they share a
    vocabulary."""

    target: TextTokenizer
    source: TextTokenizer | None = None

    @property
    def digest(self) -> str:
        """What a model's record says about its vocabularies: their digests, joined by a hyphen."""
        return self.target.digest if self.source is None else f"{self.target.digest}-{self.source.digest}"

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json` into a model folder."""
        shared = self.source is self.target
        tree: dict[str, Any] = {"version": 1, "shared": shared, "target": self.target.to_tree()}
        write_json(folder / NAME, tree if shared or not self.source else {**tree, "source": self.source.to_tree()})

    def require(self, digest: str, where: str) -> None:
        """Raise UserError unless these are the tokenizers that a model was trained with."""
        if self.digest != digest:
            raise UserError(
                "the tokenizer is another model's: its ids mean other text", where=where, got=self.digest,
                expected=digest, hint="Take tokenizer.json from the folder that the weights come from.",
            )  # fmt: skip


def train_tokenizers(
    target: TokenizerConfig, target_texts: list[str], source: TokenizerConfig | None = None,
    source_texts: list[str] | None = None, *, shared: bool = False,
) -> Tokenizers:  # fmt: skip
    """Tokenizers of the training split. shared: one vocabulary, of both texts, by the target's configuration."""
    if source_texts is None:
        return Tokenizers(train_tokenizer(target, target_texts))
    if shared:
        both = train_tokenizer(target, [*target_texts, *source_texts])
        return Tokenizers(both, both)
    return Tokenizers(train_tokenizer(target, target_texts), train_tokenizer(source or target, source_texts))


def load_tokenizers(folder: str | os.PathLike[str]) -> Tokenizers:
    """Read `tokenizer.json` of a model folder. Raises UserError for a file that is missing, too large, of wrong types,
    or that describes no tokenizer."""
    path = os.path.join(folder, NAME)
    where = shown(path)
    found = build(_File, read_json(path, _BYTES), where=where)
    if found.shared and found.source is not None:
        raise UserError("a shared vocabulary and one of the source exclude each other", where=where)
    target = tokenizer_of(found.target.model_dump(), f"{where}: target")
    if found.source is None:
        return Tokenizers(target, target if found.shared else None)
    return Tokenizers(target, tokenizer_of(found.source.model_dump(), f"{where}: source"))
