"""Draw images from a model of the codes of images: all hidden codes at once, in a few steps, as MaskGIT does (Chang et
al. 2022, arXiv 2202.04200, section 3.2), or code by code.

Shape letters: B samples, N codes of an image, T codes that are given, K codes of the tokenizer, R rows of B N codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vitral.data.counter_rng import Stream, uniform
from vitral.errors import UserError
from vitral.models.code_sampling import sample_codes
from vitral.models.generate import inverse_cdf, sampling_probabilities
from vitral.models.igpt import IGPT
from vitral.models.search_config import SearchConfig

_LEAST = 2.0**-25  # in place of a draw of 0, whose Gumbel noise is infinite


class MaskedSteps(NamedTuple):
    """Passes through the model, and the scale of the noise in the choice of codes that stay."""

    steps: int = 8
    choice_temperature: float = 4.5


def hidden_after(tokens: int, steps: int) -> list[int]:
    """How many of so many codes are hidden after each step: ceil(N cos(pi t / 2 T)), and less than before."""
    counts, last = list[int](), tokens
    for step in range(1, steps):
        last = min(math.ceil(tokens * math.cos(math.pi / 2 * step / steps)), last - 1)
        counts.append(last)
    return [*counts, 0]


@torch.no_grad()
def sample_masked(
    model: IGPT,
    labels_B: Tensor,
    config: SearchConfig,
    samples: Sequence[int],
    masked: MaskedSteps,
    given_BT: Tensor | None = None,
) -> Tensor:
    """Draw an image of each class, int64 [B] with -1 for any: codes int64 [B, N].

    Each step draws all hidden codes by `config` and keeps the surest ones: log p of the drawn code plus
    choice_temperature (1 - t/T) Gumbel noise, as the released code; none in the last step. samples: numbers of the
    images, which key their random numbers with step and place. given_BT: the first codes, which are not drawn. Raises
    UserError for more steps than codes. Put the model into evaluation mode first.
    """
    c, first = model.config, 0 if given_BT is None else given_BT.shape[1]
    assert c.draws
    assert not c.causal
    if not 1 <= masked.steps <= c.tokens - first:
        expected = f"at most {c.tokens - first}, the codes that are drawn"
        raise UserError("more steps than codes", where="steps", got=masked.steps, expected=expected)
    ids_B1 = torch.tensor(samples, device=model.device)[:, None]
    place_N = torch.arange(c.tokens, device=model.device)
    codes_BN = place_N.new_zeros(len(samples), c.tokens)
    hidden_BN = (place_N >= first).expand_as(codes_BN)
    if given_BT is not None:
        codes_BN[:, :first] = given_BT
    for step, count in enumerate(hidden_after(c.tokens - first, masked.steps)):
        logits_RK = model.code_head(model.read(codes_BN, labels_B, hidden_BN).patches_BND).flatten(0, 1)
        draw_BN = uniform(config.seed, step, place_N, ids_B1, Stream.NEXT_TOKEN)
        drawn_R = inverse_cdf(*sampling_probabilities(logits_RK, config), draw_BN.flatten())
        log_R = logits_RK.float().log_softmax(-1).gather(1, drawn_R[:, None])[:, 0]
        codes_BN = codes_BN.where(~hidden_BN, drawn_R.view_as(codes_BN))
        noise_BN = uniform(config.seed, step, place_N, ids_B1, Stream.CODE_ORDER).double().clamp(min=_LEAST)
        scale = masked.choice_temperature * (1 - (step + 1) / masked.steps)
        sure_BN = log_R.view_as(codes_BN) - scale * (-noise_BN.log()).log()
        rank_BN = sure_BN.masked_fill(~hidden_BN, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
        hidden_BN = rank_BN < count
    return codes_BN


def draw_codes(
    model: IGPT,
    labels_B: Tensor,
    config: SearchConfig,
    samples: Sequence[int],
    given_BT: Tensor | None = None,
    masked: MaskedSteps | None = None,
) -> Tensor:
    """Draw images by whichever way the model has learned; see `sample_codes` and `sample_masked`.

    The class of given codes, where it is -1 and the model knows their probability by class, is drawn first. masked:
    None: as many steps as usual, or as there are codes.
    """
    if model.config.causal:
        if given_BT is not None and given_BT.shape[1] and model.config.class_tokens:
            labels_B = labels_B.where(labels_B >= 0, draw_classes(model, config.seed, samples, given_BT))
        return sample_codes(model, labels_B, config, samples, given_BT)
    if masked is None:
        left = model.config.tokens - (0 if given_BT is None else given_BT.shape[1])
        masked = MaskedSteps(min(MaskedSteps().steps, left))
    return sample_masked(model, labels_B, config, samples, masked, given_BT)


@torch.no_grad()
def draw_classes(model: IGPT, seed: int, samples: Sequence[int], given_BT: Tensor) -> Tensor:
    """A class of each image by the first codes: in proportion to their probability given the class, int64 [B]."""
    log_probs_BS = model.class_log_probs(given_BT)
    draw_B = uniform(seed, 0, 0, torch.tensor(samples, device=model.device), Stream.CODE_ORDER)
    return inverse_cdf(*sampling_probabilities(log_probs_BS, SearchConfig(search="sample")), draw_B)
