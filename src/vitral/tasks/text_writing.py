"""Write texts with a model: search or CTC, ids to text, and how likely the right texts are.

Shape letters: B batch, T positions of the target, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from vitral.config import changed_keys
from vitral.data.text.batches import shifted
from vitral.data.text.tokenizer import END, PAD, START, UNKNOWN
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError
from vitral.evaluate.text import Floats, token_sums
from vitral.models.ctc import ctc_beam, ctc_greedy
from vitral.models.generate import Hypothesis, StepModel, generate, stream
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel

log = logging.getLogger("vitral")


class TextWriter(StepModel, Protocol):
    """What writes texts: a `SequenceModel`, or the same function in another runtime."""

    @property
    def config(self) -> SequenceConfig:
        """The model's configuration."""
        ...

    def encode(self, source: Tensor) -> Any:
        """The source, read once, as `start` takes it."""
        ...

    def __call__(self, source: Tensor) -> Tensor:
        """Logits of CTC; only models that do not decode step by step are called so."""
        ...


class Written(NamedTuple):
    """A text, the score that n-best lists are ordered by, its log-probability, and whether it has an end."""

    text: str
    score: float
    log_prob: float
    finished: bool
    tokens: tuple[int, ...]


@torch.no_grad()
def write(
    model: TextWriter, tokenizers: Tokenizers, source: Tensor, search: SearchConfig,
    samples: Sequence[int] | None = None,
) -> list[list[Written]]:  # fmt: skip
    """Return the texts of each source (images, or ids), best first. Call it with the model in evaluation mode.

    samples: numbers of the sources, for sampling. Raises UserError for more beams than the vocabulary has tokens, for a
    search that CTC does not know, and for allowed characters that no token has.
    """
    check_search(search, model.config, tokenizers)
    allowed = _allowed(search, model.config, tokenizers)
    if model.config.decodes_steps:
        found = generate(
            model, model.encode(source), len(source), search, start=START, end=END, allowed=allowed, samples=samples,
            device=source.device,
        )  # fmt: skip
    else:
        found = _ctc(model, source, search, allowed)
    return [[_written(each, tokenizers) for each in outputs] for outputs in found]


def write_stream(
    model: TextWriter, tokenizers: Tokenizers, source_1: Tensor, search: SearchConfig
) -> Generator[str, None, Written]:
    """Yield the text of one source in pieces, as its tokens are chosen, greedily or by sampling; return the whole.

    Raises UserError for CTC and for beam search, which do not write from left to right.
    """
    if not model.config.decodes_steps:
        raise UserError("CTC gives all tokens at once, so nothing is streamed", where="model.decoder", got="ctc")
    check_search(search, model.config, tokenizers)
    tokens, shown = list[int](), ""
    chosen = stream(
        model, model.encode(source_1), search, start=START, end=END,
        allowed=_allowed(search, model.config, tokenizers), device=source_1.device,
    )  # fmt: skip
    while True:
        try:
            tokens.append(next(chosen))
        except StopIteration as end:
            written = _written(end.value, tokenizers)
            break
        text = tokenizers.target.decode(tokens)
        if text.startswith(shown) and not text.endswith("\ufffd"):  # bytes of a character may still be missing
            yield text[len(shown) :]
            shown = text
    if len(written.text) > len(shown) and written.text.startswith(shown):
        yield written.text[len(shown) :]
    return written


def check_search(search: SearchConfig, config: SequenceConfig, tokenizers: Tokenizers) -> None:
    """Raise UserError for a search that the model cannot do."""
    if search.allowed is not None:
        tokenizers.target.ids_within(search.allowed)
    if search.length_penalty < 0:
        _warn_of_short_texts()
    if search.search == "beam" and search.beams > config.vocabulary:
        raise UserError(
            "more beams than tokens", where="search.beams", got=search.beams,
            expected=f"at most {config.vocabulary}, the size of the vocabulary",
        )  # fmt: skip
    if not config.decodes_steps:
        if search.search == "sample":
            raise UserError("CTC does not sample", where="search", got="sample", expected="greedy or beam")
    elif search.max_length > config.max_length:
        raise UserError(
            "longer than the model's texts", where="search.max_length", got=search.max_length,
            expected=f"at most {config.max_length}",
        )  # fmt: skip


@cache
def _warn_of_short_texts() -> None:
    """Once, not for each batch."""
    log.warning("search.length_penalty is below 0: scores, and so beam search and n-best lists, favor short texts")


# What is read where a decoder writes one token after the other.
_OF_STEPS = ("max_length", "min_length", "no_repeat_ngram", "length_penalty", "length_penalty_kind", "early_stopping")


def unread_keys(search: SearchConfig, config: SequenceConfig) -> list[str]:
    """The keys of a search that are set and have no effect with this model: CTC gives all tokens at once."""
    return [] if config.decodes_steps else changed_keys(search, _OF_STEPS)


def _allowed(search: SearchConfig, config: SequenceConfig, tokenizers: Tokenizers) -> Tensor:
    """The tokens that may be written, bool [V]: those of text, of `search.allowed` where it is set, with the end; of
    CTC with the blank, which is the last, instead."""
    ends = END if config.decodes_steps else -1
    allowed_V = torch.zeros(config.vocabulary + (not config.decodes_steps), dtype=torch.bool)
    if search.allowed is None:
        allowed_V[:] = True
        allowed_V[[PAD, START, END, UNKNOWN]] = False
    else:
        allowed_V[tokenizers.target.ids_within(search.allowed)] = True
    allowed_V[ends] = True
    return allowed_V


def _ctc(model: TextWriter, source: Tensor, search: SearchConfig, allowed_V: Tensor) -> list[list[Hypothesis]]:
    logits_BFV, blank = model(source), model.config.vocabulary
    if search.search == "beam":
        return ctc_beam(logits_BFV, blank=blank, beams=search.beams, n_best=search.n_best, allowed_V=allowed_V)
    return [[each] for each in ctc_greedy(logits_BFV, blank=blank, allowed_V=allowed_V)]


def _written(found: Hypothesis, tokenizers: Tokenizers) -> Written:
    return Written(
        tokenizers.target.decode(found.tokens), found.score, found.log_prob, found.finished, tuple(found.tokens)
    )


@torch.no_grad()
def likelihood(model: SequenceModel, source: Tensor, text_BT: Tensor) -> Floats:
    """Rows of `token_sums` of the right texts, float64 [B, 3]; of CTC, which has no tokens of its own, zeros."""
    if not model.config.decodes_steps:
        return np.zeros((len(text_BT), 3))
    target_in_BT, target_BT = shifted(text_BT)
    return token_sums(model(source, target_in_BT), target_BT, PAD)
