"""Generated text pairs: random symbols to copy or to reverse. Shape letters: N candidates, L longest length."""

from __future__ import annotations

import numpy as np
import torch

from vitral.data.counter_rng import Stream, uniform, uniform_runs
from vitral.data.text.config import TextSource
from vitral.data.text.dataset import TextDataset, TextSplit, text_dataset
from vitral.errors import UserError

SYMBOLS = "abcdefghijklmnopqrstuvwxyz"
_CHUNK = 2**22  # symbols that are drawn together
_PATIENCE = 64  # candidates per text that is needed


def open_generated(config: TextSource) -> TextDataset:
    """`config.count` training texts, and an eighth of it each for val and test, all different: the target is the source
    (copy) or its reverse. Lengths are uniform, as far as there are enough texts of each. Raises UserError where too few
    different texts exist."""
    held = config.count // 8
    texts = _distinct(config, config.count + 2 * held)
    splits: dict[str, TextSplit] = {}
    for name, start, count in (("train", 0, config.count), ("val", config.count, held), ("test", -held, held)):
        own = texts[start:][:count]
        targets = [text[::-1] for text in own] if config.source == "reverse" else own
        splits[name] = TextSplit(targets, [f"{name}/{place:06d}" for place in range(count)], own)
    return text_dataset(config.source, splits)


def _distinct(config: TextSource, count: int) -> list[str]:
    """The first `count` different texts of an endless row of random ones."""
    found: dict[str, None] = {}
    chunk = max(1, min(_CHUNK // config.lengths[1], 2 * count))
    for start in range(0, _PATIENCE * count, chunk):
        for text in _random_texts(config, start, start + chunk):
            found[text] = None
            if len(found) == count:
                return list(found)
    raise UserError(
        f"fewer than {count:,} different texts of {config.symbols} symbols", where="data.lengths",
        got=list(config.lengths), hint="Raise data.lengths or data.symbols, or lower data.count.",
    )  # fmt: skip


def _random_texts(config: TextSource, start: int, stop: int) -> list[str]:
    shortest, longest = config.lengths
    number_N = torch.arange(start, stop)
    draw_N = uniform(config.seed, 0, 0, number_N, Stream.TEXT_LENGTH).double()
    length_N = (shortest + (draw_N * (longest - shortest + 1)).long()).tolist()
    (draw_LN,) = uniform_runs(config.seed, 0, 0, number_N, (Stream.TEXT_SYMBOL,), longest)
    symbol_NL = (draw_LN.double() * config.symbols).long().T.numpy().astype(np.uint8) + ord(SYMBOLS[0])
    return [row[:length].tobytes().decode("ascii") for row, length in zip(symbol_NL, length_N, strict=True)]
