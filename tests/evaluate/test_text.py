"""Metrics of text against jiwer and sacrebleu, in closed form, and the coverage of their intervals."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitral.errors import UserError
from vitral.evaluate.compare import mcnemar
from vitral.evaluate.text import METRICS, compare_texts, text_metrics, token_metrics, token_sums

LETTERS = list("abc é ")


def random_texts(count: int, seed: int, longest: int = 12) -> list[str]:
    """Texts with repeated, leading and trailing spaces; some are empty."""
    draw = np.random.default_rng(seed)
    return ["".join(draw.choice(LETTERS, draw.integers(0, longest + 1))) for _ in range(count)]


def distance(one: list[str], two: list[str]) -> int:
    """Levenshtein's, by its recursion."""
    row = list(range(len(two) + 1))
    for i, left in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, right in enumerate(two, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (left != right))
    return row[-1]


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_those_of_jiwer(seed: int) -> None:
    jiwer = pytest.importorskip("jiwer")
    texts, references = random_texts(30, seed), random_texts(30, 100 + seed)
    found = text_metrics(texts, references, resamples=0)
    assert found["cer"] == pytest.approx(jiwer.cer(references, texts))
    assert found["wer"] == pytest.approx(jiwer.wer(references, texts))
    edits = sum(distance(list(a.strip()), list(b.strip())) for a, b in zip(texts, references, strict=True))
    assert found["cer"] == pytest.approx(edits / sum(len(each.strip()) for each in references))
    edits = sum(distance(a.split(), b.split()) for a, b in zip(texts, references, strict=True))
    assert found["wer"] == pytest.approx(edits / sum(len(each.split()) for each in references))


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_sacrebleu(seed: int) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    texts, one, two = (random_texts(40, seed + part, longest=60) for part in (0, 100, 200))
    one[:20] = texts[:20]
    found = text_metrics(texts, list(zip(one, two, strict=True)), ("bleu", "chrf"), resamples=0)
    assert found["bleu"] == pytest.approx(sacrebleu.BLEU().corpus_score(texts, [one, two]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(texts, [one, two]).score)
    assert "nrefs:2" in found["bleu_signature"]
    # A number of references of its own for each sample.
    varied = [[a, b] if at % 3 else [a] for at, (a, b) in enumerate(zip(one, two, strict=True))]
    second = [each[1] if len(each) > 1 else None for each in varied]
    found = text_metrics(texts, varied, ("bleu", "chrf"), resamples=0)
    assert found["bleu"] == pytest.approx(sacrebleu.BLEU().corpus_score(texts, [one, second]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.CHRF().corpus_score(texts, [one, second]).score)


def test_closed_forms() -> None:
    pytest.importorskip("jiwer")
    found = text_metrics(["kitten", "a b c"], ["sitting", "a c"], resamples=0)
    assert found == {
        "count": 2, "exact_match": 0.0, "exact_match_interval": [0.0, pytest.approx(0.6576, abs=1e-4)],
        "cer": pytest.approx((3 + 2) / (7 + 3)), "wer": pytest.approx((1 + 1) / (1 + 2)),
    }  # fmt: skip
    assert text_metrics(["ab"] * 2, ["ab", "abcd"], ("exact_match",))["exact_match"] == 0.5
    assert text_metrics(["abcdefgh"], ["a"], ("cer",), resamples=0)["cer"] == 7.0, "over 1 is possible"


def test_an_empty_reference_counts_edits_and_no_length() -> None:
    pytest.importorskip("jiwer")
    found = text_metrics(["xy", "abd"], ["", "abc"], resamples=0)
    assert (found["cer"], found["wer"]) == (pytest.approx(3 / 3), pytest.approx(2 / 1))
    found = text_metrics(["xy", ""], ["", ""])
    assert (found["cer"], found["wer"], found["exact_match"]) == (None, None, 0.5)
    json.dumps(found, allow_nan=False)


def test_the_best_of_several_references_counts() -> None:
    pytest.importorskip("jiwer")
    references = [["T AH M EY T OW", "T AH M AA T OW"], ["R UW T", "R AW T"]]
    found = text_metrics(["T AH M AA T OW", "R UH T"], references, resamples=0)
    assert (found["exact_match"], found["wer"]) == (0.5, pytest.approx(1 / 9))
    alone = text_metrics(["T AH M AA T OW", "R UH T"], [each[0] for each in references], resamples=0)
    assert (alone["exact_match"], alone["wer"]) == (0.0, pytest.approx(2 / 9))


def test_equal_texts_are_perfect() -> None:
    pytest.importorskip("sacrebleu")
    texts = [f"this is sentence number {number} of many" for number in range(9)]
    found = text_metrics(texts, texts, METRICS, resamples=50)
    assert (found["exact_match"], found["cer"], found["wer"]) == (1.0, 0.0, 0.0)
    assert (found["bleu"], found["chrf"]) == (pytest.approx(100), pytest.approx(100))
    assert found["cer_interval"] == [0, 0]
    assert found["bleu_interval"] == pytest.approx([100, 100])


def test_intervals_are_of_a_seed_and_hold_the_value() -> None:
    pytest.importorskip("sacrebleu")
    texts, references = random_texts(50, 0, 40), random_texts(50, 1, 40)
    references[:25] = [text + "a" for text in texts[:25]]
    found = text_metrics(texts, references, METRICS, resamples=200)
    for name in METRICS:
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high or name == "exact_match"
    assert text_metrics(texts, references, METRICS, resamples=200) == found
    assert text_metrics(texts, references, METRICS, resamples=200, seed=1)["cer_interval"] != found["cer_interval"]
    json.dumps(found, allow_nan=False)


def test_intervals_cover() -> None:
    """Word errors of a known rate: 95 % intervals hold it in about 95 of 100 draws (binomial: 97 % of 200 draws give
    178 to 198)."""
    pytest.importorskip("jiwer")
    draw, rate, inside = np.random.default_rng(0), 0.2, 0
    for _ in range(200):
        lengths = draw.integers(3, 9, 60)
        wrong = [draw.random(length) < rate for length in lengths]
        texts = [" ".join(np.where(each, "x", "w")) for each in wrong]
        low, high = text_metrics(texts, [" ".join("w" * length) for length in lengths], ("wer",), 200)["wer_interval"]
        inside += low <= rate <= high
    assert 178 <= inside <= 199


def test_two_systems_are_compared_on_the_same_samples() -> None:
    pytest.importorskip("sacrebleu")
    draw = np.random.default_rng(0)
    references = ["".join(draw.choice(list("abcdef gh"), 30)) for _ in range(80)]

    def damaged(rate: float) -> list[str]:
        return ["".join("z" if draw.random() < rate else each for each in text) for text in references]

    worse, better = damaged(0.3), damaged(0.2)
    found = compare_texts(worse, better, references, METRICS, resamples=300)
    one, two = (text_metrics(each, references, METRICS, resamples=0) for each in (worse, better))
    for name in ("cer", "wer", "bleu", "chrf"):
        assert found[name]["difference"] == pytest.approx(one[name] - two[name])
        low, high = found[name]["difference_interval"]
        assert low <= found[name]["difference"] <= high
    assert found["cer"]["p_value"] == pytest.approx(1 / 301)
    assert found["cer"]["difference_interval"][0] > 0
    right = [[a == b for a, b in zip(each, references, strict=True)] for each in (worse, better)]
    assert found["exact_match"] == mcnemar(*right)
    same = compare_texts(worse, worse, references, ("cer", "chrf"), resamples=50)
    assert (same["cer"]["difference"], same["cer"]["p_value"], same["chrf"]["p_value"]) == (0, 1, 1)
    json.dumps(found, allow_nan=False)


def test_p_values_of_equal_systems_are_spread_evenly() -> None:
    pytest.importorskip("jiwer")
    draw, values = np.random.default_rng(1), []
    references = ["w w w w w"] * 60
    for _ in range(100):
        one, two = ([" ".join(draw.choice(["x", "w"], 5, p=[0.2, 0.8])) for _ in range(60)] for _ in range(2))
        values.append(compare_texts(one, two, references, ("wer",), resamples=99)["wer"]["p_value"])
    assert 0 <= np.mean(np.array(values) <= 0.05) <= 0.14
    assert 0.3 <= np.mean(np.array(values) <= 0.5) <= 0.7


def test_token_metrics_are_those_of_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(12, 9, 7, generator=generator) * 2
    targets_BT = torch.randint(1, 7, (12, 9), generator=generator)
    for row in range(12):
        targets_BT[row, 9 - row % 5 :] = 0
    sums_N3 = token_sums(logits_BTV, targets_BT, pad=0)
    found = token_metrics(sums_N3, resamples=100)
    real = targets_BT != 0
    loss = float(F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=0))
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-5)
    right = (logits_BTV.argmax(-1) == targets_BT)[real].double().mean()
    assert found["token_accuracy"] == pytest.approx(float(right))
    assert (found["tokens"], found["count"]) == (int(real.sum()), 12)
    low, high = found["perplexity_interval"]
    assert low < found["perplexity"] < high
    # Batches are rows of one table, and what stands on padding changes nothing.
    changed = logits_BTV.where(real[..., None], 1e3)
    parts = [token_sums(each, target, 0) for each, target in zip(changed.split(5), targets_BT.split(5), strict=True)]
    np.testing.assert_allclose(np.concatenate(parts), sums_N3, rtol=1e-6)


def test_certain_and_uniform_predictions() -> None:
    targets_BT = torch.tensor([[1, 2, 0], [3, 0, 0]])
    certain = token_metrics(token_sums(F.one_hot(targets_BT, 4) * 100.0, targets_BT, 0))
    assert (certain["loss"], certain["perplexity"], certain["token_accuracy"]) == (pytest.approx(0, abs=1e-6), 1, 1)
    uniform = token_metrics(token_sums(torch.zeros(2, 3, 4), targets_BT, 0))
    assert uniform["perplexity"] == pytest.approx(4)
    hopeless = token_metrics(np.array([[9000.0, 0, 3]]))
    assert hopeless["perplexity"] is None


def test_what_cannot_be_measured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="do not match"):
        text_metrics(["a"], ["a", "b"])
    with pytest.raises(UserError, match="do not match"):
        text_metrics([], [])
    with pytest.raises(UserError, match="without references"):
        text_metrics(["a", "b"], ["a", []])
    with pytest.raises(UserError, match="unknown metric"):
        text_metrics(["a"], ["a"], ("blue",))
    with pytest.raises(UserError, match="same samples"):
        compare_texts(["a"], ["a", "b"], ["a"])
    with pytest.raises(UserError, match="no tokens"):
        token_metrics(np.zeros((3, 3)))
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(UserError) as error:
        text_metrics(["a"], ["a"])
    assert 'pip install "vitral[text]"' in str(error.value)
    assert text_metrics(["a"], ["a"], ("exact_match",))["exact_match"] == 1
