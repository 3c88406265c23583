"""Sample images from an Image GPT, code by code, with keys and values of earlier codes computed once.

Shape letters: B samples, N codes of an image, T codes that are given, R rows of a search, K codes of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.models.attention import AttentionContext, KVCache
from vitral.models.generate import StepModel, Tokens, generate
from vitral.models.igpt import IGPT
from vitral.models.search_config import SearchConfig

_NO_END = -1  # no code ends an image


@dataclass
class CodeState:
    """Rows of a search: the first token of each, and a cache per block."""

    first_R: Tensor
    caches: list[KVCache]


class CodeSteps:
    """An Image GPT as what `models.generate` searches: one code per row and step, keys and values computed once.

    The memory is the class of each sample, int64 [B], -1 for any; the search's own start token is not used.
    """

    def __init__(self, model: IGPT) -> None:
        assert model.config.causal
        self.model = model

    def start(self, memory: Tensor, copies: int, max_length: int) -> CodeState:
        """See `StepModel`."""
        c, rows = self.model.config, len(memory) * copies
        room = rows, c.heads, c.width // c.heads, max_length, self.model.dtype, self.model.device
        first_R = self.model.start_tokens(memory).repeat_interleave(copies)
        return CodeState(first_R, [KVCache(*room) for _ in self.model.blocks])

    @torch.no_grad()
    def step(self, tokens_R: Tensor, state: CodeState) -> Tensor:
        """See `StepModel`. The newest code attends to all before it, so no mask is needed."""
        model, place = self.model, state.caches[0].length
        tokens_R = tokens_R if place else state.first_R
        x_R1D = (F.embedding(tokens_R, model.token_embed) + model.pos_embed[place])[:, None]
        for block, cache in zip(model.blocks, state.caches, strict=True):
            x_R1D = block(x_R1D, AttentionContext(cache=cache))
        return model.code_head(model.norm(x_R1D))[:, 0]

    def reorder(self, state: CodeState, index_R: Tensor) -> None:
        """See `StepModel`."""
        state.first_R = state.first_R[index_R]
        for cache in state.caches:
            cache.reorder(index_R)


def sample_codes(
    model: IGPT,
    labels_B: Tensor,
    config: SearchConfig,
    samples: Sequence[int],
    given_BT: Tensor | None = None,
    steps: StepModel | None = None,
) -> Tensor:
    """Draw an image of each class, int64 [B] with -1 for any: codes int64 [B, N].

    config: temperature, top_k, top_p and seed. samples: numbers of the images, which key their random numbers.
    given_BT: the first codes of each image, which are not drawn. steps: another way of computing the next code's
    logits. Put the model into evaluation mode first.
    """
    c = model.config

    def allowed(prefixes: Sequence[Tokens]) -> Tensor:
        place = len(prefixes[0])  # no image ends before the others, so there is one prefix for each of them
        if given_BT is None or place >= given_BT.shape[1]:
            return torch.ones(1, c.colors, dtype=torch.bool)
        return F.one_hot(given_BT[:, place], c.colors).bool()

    rows = generate(
        steps or CodeSteps(model), labels_B, len(labels_B),
        config.model_copy(update={"search": "sample", "max_length": c.tokens, "n_best": 1}),
        start=c.colors, end=_NO_END, allowed=allowed, samples=samples, device=model.device,
    )  # fmt: skip
    codes = [row[0].tokens for row in rows]
    return torch.tensor(codes, dtype=torch.int64, device=model.device).view(len(labels_B), c.tokens)
