"""Decoding of connectionist temporal classification (Graves et al. 2006, ICML): frames of logits to tokens.

An alignment is one token or blank per frame. Merging its repeats and then dropping its blanks gives the output, and
the probability of an output is the sum over all of its alignments. `ctc_greedy` takes the best alignment, `ctc_beam`
sums over alignments with common prefixes (section 3.2; the recursion is of Hannun et al. 2014, arXiv 1408.2873,
algorithm 1, without a language model).

Shape letters: B batch, T frames, V vocabulary with the blank, K prefixes, C candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vitral.errors import UserError
from vitral.models.generate import Hypothesis, Tokens

Floats = NDArray[np.float64]


def ctc_greedy(
    logits_BTV: Tensor, lengths_B: Tensor | None = None, *, blank: int = 0, allowed_V: Tensor | None = None
) -> list[Hypothesis]:
    """Return the output of the most probable alignment of each sample; `log_prob` is that of the alignment.

    lengths_B: frames per sample (default: T); later frames are not read. allowed_V: bool, the tokens that are written,
    the blank among them; probabilities of others are not redistributed. Raises UserError for logits that are NaN.
    """
    found: list[Hypothesis] = []
    for log_probs_TV in _samples(logits_BTV, lengths_B, allowed_V):
        path_T = log_probs_TV.argmax(1)
        new_T = np.concatenate([[True], path_T[1:] != path_T[:-1]])[: len(path_T)]
        log_prob = float(log_probs_TV.max(1).sum())
        tokens = tuple(path_T[new_T & (path_T != blank)].tolist())
        found.append(Hypothesis(tokens, log_prob, log_prob, finished=True))
    return found


def ctc_beam(
    logits_BTV: Tensor, lengths_B: Tensor | None = None, *, blank: int = 0, beams: int = 10, n_best: int = 1,
    allowed_V: Tensor | None = None,
) -> list[list[Hypothesis]]:  # fmt: skip
    """Return the `n_best` most probable outputs of each sample, best first, by prefix beam search.

    `log_prob` is the sum over the alignments whose prefixes all stayed among the best `beams`: the exact
    log-probability of the output if `beams` is at least the number of prefixes, else a lower bound. lengths_B:
    frames per sample (default: T). allowed_V: as in `ctc_greedy`. Raises UserError for logits that are NaN and
    unless 1 <= n_best <= beams.
    """
    if not 1 <= n_best <= beams:
        raise UserError("n_best outputs need as many beams", got=f"n_best={n_best}, beams={beams}", where="ctc_beam")
    found: list[list[Hypothesis]] = []
    for log_probs_TV in _samples(logits_BTV, lengths_B, allowed_V):
        prefixes: list[Tokens] = [()]
        # Log-probabilities of the alignments of each prefix that end in a blank, and in its last token.
        blank_K, token_K = np.zeros(1), np.full(1, -np.inf)
        for log_probs_V in log_probs_TV:
            prefixes, blank_K, token_K = _advance(prefixes, blank_K, token_K, log_probs_V, blank, beams)
        total_K = np.logaddexp(blank_K, token_K)
        order = np.argsort(-total_K, kind="stable")[:n_best]
        found.append([Hypothesis(prefixes[at], float(total_K[at]), float(total_K[at]), finished=True) for at in order])
    return found


def _advance(
    prefixes: list[Tokens], blank_K: Floats, token_K: Floats, log_probs_V: Floats, blank: int, beams: int
) -> tuple[list[Tokens], Floats, Floats]:
    """One frame: every prefix stays, by a blank or its last token again, or gets one more token; the best continue."""
    total_K = np.logaddexp(blank_K, token_K)
    last_K = np.array([prefix[-1] if prefix else blank for prefix in prefixes])
    some_K = np.array([len(prefix) > 0 for prefix in prefixes])
    stay_blank_K = total_K + log_probs_V[blank]
    stay_token_K = np.where(some_K, token_K + log_probs_V[last_K], -np.inf)
    longer_KV = total_K[:, None] + log_probs_V
    # The same token twice in a row needs a blank in between.
    longer_KV[some_K, last_K[some_K]] = blank_K[some_K] + log_probs_V[last_K[some_K]]
    longer_KV[:, blank] = -np.inf
    # A longer prefix that exists already is one candidate, not two.
    place = {prefix: at for at, prefix in enumerate(prefixes)}
    for at, prefix in enumerate(prefixes):
        parent = place.get(prefix[:-1]) if prefix else None
        if parent is not None:
            stay_token_K[at] = np.logaddexp(stay_token_K[at], longer_KV[parent, prefix[-1]])
            longer_KV[parent, prefix[-1]] = -np.inf
    count, vocabulary = longer_KV.shape
    score_C = np.concatenate([np.logaddexp(stay_blank_K, stay_token_K), longer_KV.ravel()])
    best = _highest(score_C, beams)
    stays = best[best < count]
    parents, tokens = np.divmod(best[best >= count] - count, vocabulary)
    grown = [(*prefixes[at], token) for at, token in zip(parents.tolist(), tokens.tolist(), strict=True)]
    return (
        [prefixes[at] for at in stays] + grown,
        np.concatenate([stay_blank_K[stays], np.full(len(grown), -np.inf)]),
        np.concatenate([stay_token_K[stays], longer_KV[parents, tokens]]),
    )


def _highest(score_C: Floats, most: int) -> NDArray[np.int64]:
    """Return the places of the `most` highest finite scores, in rising order of place."""
    if len(score_C) > most:
        chosen = np.argpartition(-score_C, most - 1)[:most]
    else:
        chosen = np.arange(len(score_C))
    return np.sort(chosen[score_C[chosen] > -np.inf])


def _samples(
    logits_BTV: Tensor, lengths_B: Tensor | None, allowed_V: Tensor | None
) -> list[NDArray[Any]]:  # fmt: skip
    """Return log-probabilities float64 [T, V] of each sample's own frames, -inf for tokens that are not allowed."""
    log_probs_BTV = F.log_softmax(logits_BTV.detach().double(), -1).cpu().numpy()
    lengths = [logits_BTV.shape[1]] * len(logits_BTV) if lengths_B is None else lengths_B.tolist()
    found = [log_probs_TV[:length] for log_probs_TV, length in zip(log_probs_BTV, lengths, strict=True)]
    if any(np.isnan(each).any() for each in found):
        raise UserError("the model's outputs aren't finite", hint="Did the training diverge?")
    if allowed_V is not None:
        return [np.where(allowed_V.cpu().numpy(), each, -np.inf) for each in found]
    return found
