"""Configuration of search: how an output sequence is chosen from the probabilities of a decoder."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vitral.config import Config, Share, build, changed_keys, reject_unused
from vitral.data.text.config import Length

Outputs = Annotated[int, Field(ge=1, le=1024)]  # of one sample: each has a row of every batch and cache
_SAMPLED = ("temperature", "top_k", "top_p", "seed")


class SearchConfig(Config):
    """Keys of search. Lengths count tokens after the start token, the end token included."""

    search: Literal["greedy", "beam", "sample"] = Field(
        default="greedy",
        description="greedy: the most probable token at each step; beam: the best of several partial outputs; sample: "
        "random tokens by their probabilities",
    )
    max_length: Length = Field(
        default=128, description="most tokens per output, the end token included; longer outputs are cut, unfinished"
    )
    min_length: int = Field(default=0, ge=0, description="least tokens before the end token; less than max_length")
    allowed: str | None = Field(
        default=None, min_length=1, max_length=4096,
        description="characters (of a vocabulary of words: words, with blanks between) that outputs may hold, as "
        "0123456789; null: all",
    )  # fmt: skip
    beams: Outputs = Field(default=5, description="partial outputs per sample in beam search; 1 is greedy search")
    length_penalty: float = Field(
        default=1.0,
        ge=-10,
        le=10,
        description="alpha of the length normalization, -10 to 10: scores are sums of log-probabilities divided by "
        "length^alpha. 0 compares plain sums; larger values favor longer outputs, values below 0 shorter ones",
    )
    length_penalty_kind: Literal["power", "gnmt"] = Field(
        default="power",
        description="power: length^alpha, as transformers; gnmt: ((5 + length) / 6)^alpha (Wu et al. 2016, eq. 14), "
        "which most papers mean",
    )
    early_stopping: Literal["never"] | bool = Field(
        default="never",
        description="when beam search ends. never: when no partial output can still win (exact); false: the same, but "
        "taking their present length as final, which may miss longer outputs; true: with the first `beams` outputs",
    )
    n_best: Outputs = Field(default=1, description="outputs per sample, best first")
    no_repeat_ngram: int = Field(
        default=0, ge=0, description="n-grams of this length occur at most once per output; 0: no limit"
    )
    temperature: float = Field(
        default=1.0,
        ge=1e-6,
        le=1e6,
        description="sampling divides logits by it, 1e-6 to 1e6; below 1 favors probable tokens",
    )
    top_k: int = Field(default=0, ge=0, description="sample from the k most probable tokens; 0: from all")
    top_p: Share = Field(
        default=1.0, gt=0, description="sample from the smallest set of tokens with this probability (nucleus)"
    )
    seed: int = Field(default=0, ge=0, description="seed of sampling")

    @model_validator(mode="after")
    def _nothing_ignored(self) -> SearchConfig:
        sampled, beam = self.search == "sample", self.search == "beam"
        reject_unused(
            self,
            {"beams": beam, "early_stopping": beam} | dict.fromkeys(_SAMPLED, sampled),
        )
        if self.length_penalty == 0 and self.length_penalty_kind != "power":
            raise ValueError("length_penalty_kind has no effect with length_penalty=0")
        if self.min_length >= self.max_length:
            raise ValueError(
                f"min_length={self.min_length} leaves no place for the end token within max_length={self.max_length}"
            )
        most = {"greedy": 1, "beam": self.beams}.get(self.search, self.n_best)
        if self.n_best > most:
            raise ValueError(f"n_best={self.n_best} exceeds the {most} outputs of search={self.search}")
        return self

    def with_length(self, max_length: int) -> SearchConfig:
        """Return the same search with this `max_length`, unless it has one of its own. Raises UserError where
        `min_length` is longer."""
        if "max_length" in self.model_fields_set:
            return self
        return build(SearchConfig, {**self.model_dump(exclude_unset=True), "max_length": max_length}, where="search")

    def as_beam(self, beams: int) -> SearchConfig:
        """Return beam search for the `beams` best outputs, with all other keys of this search but those of sampling."""
        kept = {name: getattr(self, name) for name in changed_keys(self, SearchConfig.model_fields)}
        own = {"search": "beam", "beams": beams, "n_best": beams, "max_length": self.max_length}
        return build(SearchConfig, {name: kept[name] for name in kept.keys() - {*_SAMPLED}} | own, where="search")

    def divisor(self, length: int) -> float:
        """Return what a sum of log-probabilities of `length` tokens (at least 1) is divided by."""
        size = float(length) if self.length_penalty_kind == "power" else (5 + length) / 6
        return size**self.length_penalty
