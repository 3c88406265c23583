"""Metrics of text: edit rates, exact matches, BLEU and chrF, token accuracy and perplexity, with bootstrap intervals.

A metric of a corpus is a function of sums over samples (edits and lengths, counts of n-grams), so a bootstrap resample
(Efron 1979) is another sum of the same rows, and two systems are compared on the same resamples.

Texts are compared as they are: neither case nor Unicode forms are changed. Spaces at the ends do not count.

Shape letters: N samples, S statistics, R resamples, B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitral.errors import UserError, nearest
from vitral.evaluate.classification import wilson_interval
from vitral.evaluate.compare import mcnemar
from vitral.optional_imports import require

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float64]
References = Sequence[str | Sequence[str]]
RESAMPLES = 1000


def text_metrics(
    texts: Sequence[str],
    references: References,
    metrics: Sequence[str] = ("exact_match", "cer", "wer"),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return metrics of texts [N] against one or several references each, ready for JSON.

    `exact_match`: share of texts that equal a reference, with its 95 % Wilson interval. `cer`, `wer`: character and
    word error rate, the sum of edits over the sum of reference characters or words, so over 1 is possible. Of several
    references that with the fewest edits counts (of those, the first). An empty reference adds its text's length to
    the edits and 0 to the divisor; both rates are None where all references are empty. Words are separated by spaces: a
    phoneme error rate is `wer` of phonemes with spaces between them. `bleu`, `chrf`: sacrebleu's corpus scores, 0
    to 100, with `NAME_signature`. These have NAME_interval, percentiles 2.5 and 97.5 of `resamples` bootstrap resamples
    of the samples (0: no intervals). `count`: N. Raises UserError for counts that differ, no samples, a sample without
    references, an unknown metric, and where the extra `text` is not installed.
    """
    several = _several(texts, references)
    values: dict[str, Any] = {"count": len(texts)}
    for name in metrics:
        if name == "exact_match":
            right = sum(_exact(texts, several))
            values |= {name: right / len(texts), f"{name}_interval": list(wilson_interval(right, len(texts)))}
            continue
        counted = _counted(name, texts, several)
        values |= with_interval(name, counted.score, counted.rows_NS, resamples, seed)
        if counted.signature:
            values[f"{name}_signature"] = counted.signature
    return values


def compare_texts(
    texts_a: Sequence[str],
    texts_b: Sequence[str],
    references: References,
    metrics: Sequence[str] = ("exact_match", "cer", "wer"),
    resamples: int = RESAMPLES,
    seed: int = 0,
    references_b: References | None = None,
) -> dict[str, Any]:
    """Compare two systems on the same samples; return for each metric A minus B and whether it may be chance.

    `exact_match`: the result of `compare.mcnemar`. Others: `difference`, `difference_interval` (95 %, of bootstrap
    resamples that both systems share) and `p_value`: the share of resamples whose difference is at least as far from
    the observed one as that is from 0 (two-sided; Riezler and Maxwell 2005, ACL workshop on evaluation measures).
    references_b: those of B, where its tokenizer writes the same texts in another form; None: the same ones. Raises
    UserError as `text_metrics` does.
    """
    several = _several(texts_a, references)
    if len(texts_b) != len(texts_a):
        raise UserError("two systems must be compared on the same samples", got=f"{len(texts_a)} and {len(texts_b)}")
    several_b = several if references_b is None else _several(texts_b, references_b)
    found: dict[str, Any] = {}
    for name in metrics:
        if name == "exact_match":
            found[name] = mcnemar(_exact(texts_a, several), _exact(texts_b, several_b))
            continue
        a, b = _counted(name, texts_a, several), _counted(name, texts_b, several_b)
        width = a.rows_NS.shape[1]
        score_a, score_b = a.score, b.score

        def difference(sums_S: Floats, width: int = width, a: Score = score_a, b: Score = score_b) -> float:
            return a(sums_S[:width]) - b(sums_S[width:])

        rows_NS = np.concatenate([a.rows_NS, b.rows_NS], 1)
        observed = difference(rows_NS.sum(0))
        drawn_R = resampled(difference, rows_NS, resamples, seed)
        found[name] = _interval("difference", observed, drawn_R)
        if len(drawn_R) and math.isfinite(observed):
            far = int((np.abs(drawn_R - observed) >= abs(observed)).sum())
            found[name]["p_value"] = (1 + far) / (1 + len(drawn_R))
    return found


def token_sums(logits_BTV: Tensor, targets_BT: Tensor, pad: int) -> Floats:
    """Return per sample what `token_metrics` adds up, [B, 3]: negative log-likelihood in nats, tokens that are the most
    probable ones, and tokens; those that are `pad` count nowhere."""
    import torch

    from vitral.models.generate import sequence_log_probs

    real_BT = targets_BT != pad
    right_BT = (logits_BTV.argmax(-1) == targets_BT) & real_BT
    sums = (-sequence_log_probs(logits_BTV, targets_BT, pad).double(), right_BT.sum(-1), real_BT.sum(-1))
    return torch.stack([each.double() for each in sums], 1).cpu().numpy()


def token_metrics(sums_N3: Floats, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Any]:
    """Return metrics of next-token prediction with the true tokens before it (teacher forcing), ready for JSON.

    sums_N3: rows of `token_sums`. `loss`: nats per token; `perplexity`: its exponential, None where it overflows;
    `token_accuracy`: share of tokens that are the most probable ones; each with NAME_interval, of bootstrap resamples
    of the samples; `tokens`, `count`. Raises UserError where there is no token.
    """
    sums_N3 = np.asarray(sums_N3, np.float64)
    if not len(sums_N3) or not sums_N3[:, 2].sum():
        raise UserError("no tokens to evaluate", got=f"{len(sums_N3)} samples")
    values: dict[str, Any] = {"count": len(sums_N3), "tokens": int(sums_N3[:, 2].sum())}
    for name, column, change in (("loss", 0, float), ("perplexity", 0, _exp), ("token_accuracy", 1, float)):

        def score(sums_3: Floats, column: int = column, change: Callable[[float], float] = change) -> float:
            return change(_ratio(sums_3[[column, 2]]))

        values |= with_interval(name, score, sums_N3, resamples, seed)
    return values


Score = Callable[[Floats], float]


def resampled(score: Score, rows_NS: Floats, resamples: int, seed: int) -> Floats:
    """Return `score` of the sum over rows for each bootstrap resample of the rows, [R]; resamples without a finite
    score are left out."""
    draw, count = np.random.default_rng(seed), len(rows_NS)
    drawn = np.empty(resamples)
    for place in range(resamples):
        times_N = np.bincount(draw.integers(0, count, count), minlength=count)
        drawn[place] = score(times_N @ rows_NS)
    return drawn[np.isfinite(drawn)]


def with_interval(name: str, score: Score, rows_NS: Floats, resamples: int, seed: int) -> dict[str, Any]:
    """Return {name: score of all rows, name_interval: [low, high] of resamples}; None where the score is not finite."""
    return _interval(name, score(rows_NS.sum(0)), resampled(score, rows_NS, resamples, seed))


def _interval(name: str, value: float, drawn_R: Floats) -> dict[str, Any]:
    if not math.isfinite(value):
        return {name: None}
    if not len(drawn_R):
        return {name: float(value)}
    low, high = np.quantile(drawn_R, (0.025, 0.975))
    return {name: float(value), f"{name}_interval": [float(low), float(high)]}


class _Counted(NamedTuple):
    """Statistics of each sample, the metric of their sum, and the metric's signature."""

    rows_NS: Floats
    score: Score
    signature: str = ""


def _several(texts: Sequence[str], references: References) -> list[Sequence[str]]:
    """Return the references of each sample, in a list."""
    if not texts or len(texts) != len(references):
        got = f"{len(texts)} texts and {len(references)} references"
        raise UserError("texts and references do not match", got=got, expected="one reference or list for each text")
    several: list[Sequence[str]] = [[each] if isinstance(each, str) else list(each) for each in references]
    empty = next((at for at, each in enumerate(several) if not each), None)
    if empty is not None:
        raise UserError("sample without references", where=f"sample {empty}", got="an empty list")
    return several


def is_right(text: str, rights: Sequence[str]) -> bool:
    """Whether a text is an exact match of one of these, spaces at the ends aside."""
    return text.strip() in map(str.strip, rights)


def _exact(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[bool]:
    return [is_right(text, each) for text, each in zip(texts, references, strict=True)]


def _counted(name: str, texts: Sequence[str], references: Sequence[Sequence[str]]) -> _Counted:
    if name in _EDITS:
        jiwer = require("jiwer", "text")
        process = getattr(jiwer, _EDITS[name])
        rows = [
            min((_edits(process(reference, text)) for reference in each), key=lambda row: row[0])
            for text, each in zip(texts, references, strict=True)
        ]
        return _Counted(np.array(rows, np.float64), _ratio)
    if name in _NGRAMS:
        metric = getattr(require("sacrebleu", "text"), _NGRAMS[name])()
        most = max(map(len, references))
        padded = [[*each, *[None] * (most - len(each))] for each in references]
        # The sums that sacrebleu itself keeps for its bootstrap.
        rows = metric._extract_corpus_statistics(list(texts), list(zip(*padded, strict=True)))

        def score(sums_S: Floats) -> float:
            return float(metric._compute_score_from_stats(sums_S.tolist()).score)

        return _Counted(np.array(rows, np.float64), score, str(metric.get_signature()))
    raise UserError("unknown metric", got=name, expected=", ".join(METRICS), nearest=nearest(name, METRICS))


# Functions of jiwer that count edits, and classes of sacrebleu.
_EDITS = {"cer": "process_characters", "wer": "process_words"}
_NGRAMS = {"bleu": "BLEU", "chrf": "CHRF"}
METRICS = ("exact_match", *_EDITS, *_NGRAMS)


def _edits(counts: Any) -> tuple[int, int]:
    """Return edits and reference length of one text."""
    return (
        counts.substitutions + counts.deletions + counts.insertions,
        counts.hits + counts.substitutions + counts.deletions,
    )


def _ratio(sums_2: Floats) -> float:
    return float(sums_2[0] / sums_2[1]) if sums_2[1] else math.nan


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
