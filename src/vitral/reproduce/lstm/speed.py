"""Processor time of a training step and of greedy decoding over the length of texts.

Shape letters: B texts, T tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitral.data.text.tokenizer import SPECIAL, START
from vitral.models.create import build_sequence_model
from vitral.models.sequence_config import SequenceConfig
from vitral.models.sequence_model import SequenceModel

BATCH = 8
Measured = Callable[[], object]


def speed_rows(
    architectures: Mapping[str, SequenceConfig], lengths: Sequence[int], rounds: int
) -> list[dict[str, Any]]:
    """One row for each length: seconds of every round by what is measured.

    Of each model "train" (a step of AdamW on a batch of 8) and "decode" (8 texts of that length, written token by
    token, per token); of the first one also "uncached": all tokens so far are computed again for each next one. All are
    measured in turns, after one round that does not count.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {name: build_sequence_model(config) for name, config in architectures.items()}
    first = next(iter(models))
    rows: list[dict[str, Any]] = []
    for length in sorted(set(lengths)):
        work: dict[str, tuple[Measured, int]] = {}
        for name, model in models.items():
            work[f"{name}: train"] = (training_step(model, length), 1)
            work[f"{name}: decode"] = (partial(decode, model, length), length)
        work[f"{first}: uncached"] = (partial(decode_again, models[first], length), length)
        rows.append({"length": length, "seconds": in_turns(work, rounds)})
    return rows


def in_turns(work: Mapping[str, tuple[Measured, int]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each piece of work, divided by its number, in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, (call, divisor) in work.items():
            started = time.process_time()
            call()
            if number:
                seconds[name].append((time.process_time() - started) / divisor)
    return seconds


def ratios(row: Mapping[str, Any], other: str, one: str) -> list[float]:
    """Time of `other` over time of `one`, round by round."""
    return [float(ratio) for ratio in np.divide(row["seconds"][other], row["seconds"][one])]


def _texts(model: SequenceModel, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(len(SPECIAL), model.config.vocabulary, (BATCH, length), generator=generator)


def training_step(model: SequenceModel, length: int) -> Measured:
    """A step on random texts of this length."""
    source_BT, target_BT = _texts(model, length), _texts(model, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        model.train()
        logits_BTV = model(source_BT, target_BT)
        F.cross_entropy(logits_BTV.flatten(0, 1), target_BT.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@torch.no_grad()
def decode(model: SequenceModel, length: int) -> Tensor:
    """Greedy tokens [B, T] of random sources of this length; no text ends earlier."""
    model.eval()
    state = model.start(model.encode(_texts(model, length)), 1, length)
    token_B, tokens = torch.full((BATCH,), START), list[Tensor]()
    for _ in range(length):
        token_B = model.step(token_B, state).argmax(-1)
        tokens.append(token_B)
    return torch.stack(tokens, 1)


@torch.no_grad()
def decode_again(model: SequenceModel, length: int) -> Tensor:
    """As `decode`, without a cache."""
    model.eval()
    memory, prefix_BT = model.encode(_texts(model, length)), torch.full((BATCH, 1), START)
    for _ in range(length):
        token_B = model.decode(memory, prefix_BT).logits_BTV[:, -1].argmax(-1)
        prefix_BT = torch.cat([prefix_BT, token_B[:, None]], 1)
    return prefix_BT[:, 1:]
