"""Keys of text in data: source, tokenizer, lengths and batches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from vitral.config import Config, Pair, reject_unused

TokenizerKind = Literal["characters", "bytes", "bpe", "wordpiece", "words"]
TextSourceName = Literal[
    "pairs", "reverse", "copy", "pronounce", "translate_de_en", "image_table", "image_text_files", "image_names",
    "digits_read",
]  # fmt: skip
MAX_VOCABULARY = 250_000  # entries; the largest of public models have 256,000 with their special ones
MAX_ENTRY = 1000  # characters of an entry
MAX_LENGTH = 65_536  # symbols of a generated text, ids of any text
Length = Annotated[int, Field(ge=1, le=MAX_LENGTH)]


def _rising(pair: tuple[int, int]) -> tuple[int, int]:
    if not 1 <= pair[0] <= pair[1] <= MAX_LENGTH:
        raise ValueError(f"two lengths from 1 to {MAX_LENGTH:,}, the smaller one first, are expected, got {list(pair)}")
    return pair


class TokenizerConfig(Config):
    """How text becomes ids."""

    kind: TokenizerKind = Field(
        default="characters",
        description="characters: one id per Unicode code point; bytes: one per UTF-8 byte; words: one per symbol "
        "between whitespace (phonemes); bpe and wordpiece: pieces learned from the training split",
    )
    vocab_size: Annotated[int, Field(ge=1, le=MAX_VOCABULARY)] = Field(
        default=8000, description="number of pieces that bpe and wordpiece learn, without the four special ids"
    )

    @model_validator(mode="after")
    def _is_read(self) -> TokenizerConfig:
        reject_unused(self, {"vocab_size": self.kind in ("bpe", "wordpiece")})
        return self


class TextSource(Config):
    """Which texts are read: pairs of texts, or images with a text each."""

    source: TextSourceName = Field(
        default="pairs",
        description="pairs: a table or two parallel files; reverse, copy: generated symbols; pronounce: spelling to "
        "phonemes (CMUdict); translate_de_en: a German-English dictionary; image_table: manifest with image and text; "
        "image_text_files: name.gt.txt or name.txt beside each image; image_names: text in file names; digits_read: "
        "strips of handwritten digits",
    )
    path: str | None = Field(
        default=None,
        description="CSV, TSV, JSONL, Parquet or text file with the source texts, or folder with images, or with one "
        "table per split (train.tsv, val.tsv, test.tsv)",
    )
    target_path: str | None = Field(
        default=None, description="text file with the target of each line of `path`; null: the table has both"
    )
    columns: Annotated[tuple[str, str], Strict(False)] | None = Field(
        default=None,
        description="names of two columns: source and target of text pairs, image and text of a manifest; null: by "
        "their usual names",
    )
    split_column: str | None = Field(
        default=None, description="column with train, val or test; null: the column `split` if there is one"
    )
    pattern: str | None = Field(
        default=None, description="image_names: regular expression with a group (?P<text>...) and maybe (?P<split>...)"
    )
    count: Annotated[int, Field(ge=8, le=10_000_000)] = Field(
        default=8000, description="number of training samples that reverse, copy and digits_read generate; validation "
        "and test get an eighth of it each",
    )  # fmt: skip
    lengths: Annotated[Pair, AfterValidator(_rising)] = Field(
        default=(4, 12), description="shortest and longest generated text, in symbols (reverse, copy)"
    )
    symbols: Annotated[int, Field(ge=2, le=26)] = Field(
        default=10, description="number of different symbols of reverse and copy: letters from a on"
    )
    seed: int = Field(default=0, ge=0, description="seed of generated samples and of held-out splits")

    @model_validator(mode="after")
    def _is_read(self) -> TextSource:
        toy, made = self.source in ("reverse", "copy"), self.source in ("reverse", "copy", "digits_read")
        table = self.source in ("pairs", "image_table")
        reject_unused(
            self,
            {
                "path": not made, "target_path": self.source == "pairs", "pattern": self.source == "image_names",
                "columns": table and self.target_path is None, "split_column": table and self.target_path is None,
                "count": made, "lengths": toy, "symbols": toy,
            },
        )  # fmt: skip
        return self

    @property
    def place(self) -> Path:
        """The path of a source that has one, with ~ replaced."""
        assert self.path is not None
        return Path(self.path).expanduser()


class TextConfig(Config):
    """Lengths and batches of text."""

    max_source: Length = Field(default=512, description="longest source text, in ids with its end")
    max_target: Length = Field(default=256, description="longest target text, in ids with its end (decoder positions)")
    truncate: bool = Field(
        default=False,
        description="shorten longer texts, with a warning; a shortened target has no end; false: a longer text is an "
        "error",
    )
    window: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=100, description="number of batches whose samples are sorted by length together; 1: no sorting"
    )
    pad_multiple: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1,
        description="batches are padded to a multiple of so many ids; 8 or more for long texts and compiled steps: few "
        "shapes occur then, with more padding",
    )
