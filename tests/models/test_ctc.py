"""CTC decoding against the sum over all alignments."""

from __future__ import annotations

from collections import defaultdict
from itertools import groupby, product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.errors import UserError
from vitral.models.ctc import ctc_beam, ctc_greedy


def merged(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    return tuple(token for token, _ in groupby(path) if token != blank)


def all_outputs(log_probs_TV: Tensor, blank: int) -> dict[tuple[int, ...], float]:
    """The log-probability of every output, by enumeration of all alignments."""
    total: dict[tuple[int, ...], float] = defaultdict(float)
    frames, vocabulary = log_probs_TV.shape
    for path in product(range(vocabulary), repeat=frames):
        total[merged(path, blank)] += float(log_probs_TV[range(frames), list(path)].sum().exp())
    return {output: float(np.log(value)) for output, value in total.items()}


@pytest.mark.parametrize(("frames", "vocabulary", "blank"), [(1, 2, 0), (4, 3, 0), (5, 3, 2), (4, 4, 1), (6, 2, 1)])
def test_wide_beams_give_every_output_its_probability(frames: int, vocabulary: int, blank: int) -> None:
    generator = torch.Generator().manual_seed(frames + 10 * vocabulary)
    logits_BTV = torch.randn(3, frames, vocabulary, generator=generator, dtype=torch.float64) * 2
    everything = ctc_beam(logits_BTV, blank=blank, beams=4**frames, n_best=4**frames)
    for found, log_probs_TV in zip(everything, logits_BTV.log_softmax(-1), strict=True):
        expected = all_outputs(log_probs_TV, blank)
        assert {each.tokens for each in found} == set(expected)
        for each in found:
            assert each.log_prob == pytest.approx(expected[each.tokens], abs=1e-9)
        assert found[0].tokens == max(expected, key=lambda output: expected[output])
        scores = [each.score for each in found]
        assert scores == sorted(scores, reverse=True)
        assert np.exp(scores).sum() == pytest.approx(1)


def test_probabilities_are_those_of_the_loss() -> None:
    logits_BTV = torch.randn(4, 12, 6, generator=torch.Generator().manual_seed(0))
    lengths_B = torch.tensor([12, 7, 1, 9])
    for number, (found,) in enumerate(ctc_beam(logits_BTV, lengths_B, beams=2000)):
        length = int(lengths_B[number])
        loss = F.ctc_loss(
            logits_BTV[number, :length].log_softmax(-1)[:, None], torch.tensor([found.tokens], dtype=torch.int64),
            torch.tensor([length]), torch.tensor([len(found.tokens)]), reduction="sum",
        )  # fmt: skip
        # What was pruned away is missing.
        assert -float(loss) - 0.05 < found.log_prob <= -float(loss) + 1e-4


def test_greedy_takes_the_best_alignment() -> None:
    generator = torch.Generator().manual_seed(1)
    logits_BTV = torch.randn(20, 9, 4, generator=generator)
    for found, log_probs_TV in zip(ctc_greedy(logits_BTV, blank=3), logits_BTV.log_softmax(-1), strict=True):
        assert found.tokens == merged(tuple(log_probs_TV.argmax(1).tolist()), 3)
        assert found.log_prob == pytest.approx(float(log_probs_TV.max(1).values.sum()), abs=1e-5)


def test_a_blank_separates_equal_tokens() -> None:
    for path, expected in (([1, 1, 0, 1, 2, 2], (1, 1, 2)), ([0, 0], ()), ([2, 2, 2], (2,)), ([1, 0, 0, 1], (1, 1))):
        logits_1TV = F.one_hot(torch.tensor([path]), 3) * 30.0
        assert ctc_greedy(logits_1TV)[0].tokens == expected
        assert ctc_beam(logits_1TV, beams=3)[0][0].tokens == expected


def test_the_sum_may_differ_from_the_best_alignment() -> None:
    """Graves et al., figure 2: the blank is best in each frame, the token in sum."""
    logits_1TV = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    assert ctc_greedy(logits_1TV)[0].tokens == ()
    (found,) = ctc_beam(logits_1TV)[0]
    assert found.tokens == (1,)
    assert np.exp(found.log_prob) == pytest.approx(1 - 0.36)


def test_frames_behind_the_length_and_other_samples_change_nothing() -> None:
    logits_BTV = torch.randn(5, 10, 5, generator=torch.Generator().manual_seed(2))
    lengths_B = torch.tensor([10, 4, 7, 0, 1])
    greedy, beam = ctc_greedy(logits_BTV, lengths_B), ctc_beam(logits_BTV, lengths_B, n_best=3)
    assert (greedy[3].tokens, greedy[3].log_prob, beam[3][0].tokens) == ((), 0.0, ())
    for row, length in enumerate(lengths_B.tolist()):
        alone_1TV = logits_BTV[row : row + 1, :length]
        assert ctc_greedy(alone_1TV)[0].tokens == greedy[row].tokens
        assert [each.tokens for each in ctc_beam(alone_1TV, n_best=3)[0]] == [each.tokens for each in beam[row]]


def test_narrow_beams_give_lower_bounds() -> None:
    logits_BTV = torch.randn(10, 8, 4, generator=torch.Generator().manual_seed(3))
    wide = ctc_beam(logits_BTV, beams=5000, n_best=5000)
    for found, everything in zip(ctc_beam(logits_BTV, beams=4, n_best=4), wide, strict=True):
        exact = {each.tokens: each.log_prob for each in everything}
        assert all(each.log_prob <= exact[each.tokens] + 1e-9 for each in found)


def test_what_cannot_be_decoded_is_refused() -> None:
    with pytest.raises(UserError, match="finite"):
        ctc_greedy(torch.full((1, 2, 3), torch.nan))
    with pytest.raises(UserError, match="beams"):
        ctc_beam(torch.zeros(1, 2, 3), beams=2, n_best=3)
