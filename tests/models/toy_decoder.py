"""A decoder for tests of search: the logits are a random table of (sample, prefix), so every sequence can be
enumerated."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.models.generate import Hypothesis
from vitral.models.search_config import SearchConfig

START, END, PAD = 100, 0, 99


class ToyDecoder:
    """`memory` is a list of seeds, one per sample. Its state is a list of (seed, prefix), one per row."""

    def __init__(self, vocabulary: int = 4, end_bias: float = 0.0, scale: float = 1.5) -> None:
        self.vocabulary, self.end_bias, self.scale = vocabulary, end_bias, scale
        self.rows = 0  # computed in all
        self.copies = 1

    def logits(self, seed: int, prefix: Sequence[int]) -> Tensor:
        key = hash((seed, *prefix)) % 2**31
        logits_V = torch.randn(self.vocabulary, generator=torch.Generator().manual_seed(key)) * self.scale
        logits_V[END] += self.end_bias
        return logits_V

    def start(self, memory: list[int], copies: int, max_length: int) -> list[tuple[int, tuple[int, ...]]]:
        self.copies = copies
        return [(seed, ()) for seed in memory for _ in range(copies)]

    def step(self, tokens_R: Tensor, state: list[tuple[int, tuple[int, ...]]]) -> Tensor:
        assert len(tokens_R) == len(state)
        for row, token in enumerate(tokens_R.tolist()):
            assert (token == START) == (state[row][1] == ()), "the start token comes first, and only there"
            state[row] = (state[row][0], (*state[row][1], token))
        self.rows += len(state)
        return torch.stack([self.logits(seed, prefix) for seed, prefix in state])

    def reorder(self, state: list[tuple[int, tuple[int, ...]]], index_R: Tensor) -> None:
        index = index_R.tolist()
        samples = [row // self.copies for row in index]
        assert samples == [sample for sample in samples[:: self.copies] for _ in range(self.copies)]
        state[:] = [state[row] for row in index]

    def log_prob(self, seed: int, tokens: Sequence[int]) -> float:
        """The sum of log-probabilities of tokens, an end token among them."""
        prefix, total = [START], 0.0
        for token in tokens:
            total += float(F.log_softmax(self.logits(seed, prefix), -1)[token])
            prefix.append(token)
        return total

    def all_outputs(self, seed: int, config: SearchConfig) -> list[Hypothesis]:
        """Every output up to the longest length, best first."""
        others = [token for token in range(self.vocabulary) if token != END]
        found: list[Hypothesis] = []
        for length in range(config.max_length + 1):
            for tokens in product(others, repeat=length):
                finished = length < config.max_length
                whole = (*tokens, END) if finished else tokens
                total = self.log_prob(seed, whole)
                found.append(Hypothesis(tokens, total, total / config.divisor(len(whole)), finished))
        return sorted(found, key=lambda output: -output.score)
