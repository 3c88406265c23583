"""Batches of text, with images or source texts, as pure functions of the step.

Every text is kept as its ids and the end behind them, so none is empty; of a target that is shortened the end is cut
too, so that no model learns to stop at the limit. Batches are padded at the right, to the longest text of the whole
global batch and a multiple of so many ids; so the parts of all processes have one shape. Samples of similar length
stand together (see `sampling.bucket_order`). Shape letters: B batch, T positions of the target, S of the source, N
samples of the split, P ids of all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vitral.data.config import StreamConfig
from vitral.data.image_store import ImageStore
from vitral.data.loader import StreamLoader, own_rows
from vitral.data.sampling import Buckets, Index, Sampler
from vitral.data.text.config import TextConfig
from vitral.data.text.dataset import TextSplit
from vitral.data.text.tokenizer import END, PAD, START, TextTokenizer
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.errors import UserError
from vitral.structs import STREAM_SPAN, Batch

_LONGER = "Raise data.max_source or data.max_target, or pass data.truncate=true to shorten such texts."


class TokenIds(NamedTuple):
    """The ids of N texts, one behind the other: ids_P, int32, and where each starts, int64 [N + 1]."""

    ids_P: np.ndarray
    start_N1: Index

    @property
    def length_N(self) -> Index:
        """Ids of each text, its end included."""
        return np.diff(self.start_N1)

    def padded(self, index_B: Index, width: int) -> Tensor:
        """These texts as int64 [B, width]; `width` is at least the longest one's."""
        length_B, place_W = self.length_N[index_B], np.arange(width)
        assert not len(index_B) or width >= length_B.max(), (width, length_B.max())
        is_text_BW = place_W < length_B[:, None]
        source_BW = np.where(is_text_BW, self.start_N1[:-1][index_B][:, None] + place_W, 0)
        return torch.from_numpy(np.where(is_text_BW, self.ids_P[source_BW], PAD).astype(np.int64))


class SplitIds(NamedTuple):
    """A split as ids: targets, and sources where text is read."""

    target: TokenIds
    source: TokenIds | None = None

    @property
    def length_N(self) -> Index:
        """Ids of each sample, on both sides."""
        return self.target.length_N if self.source is None else self.target.length_N + self.source.length_N


def token_ids(
    texts: Sequence[str], names: Sequence[str], tokenizer: TextTokenizer, longest: int, *, truncate: bool = False,
    cut_end: bool = False, hint: str | None = None,
) -> TokenIds:  # fmt: skip
    """The ids of these texts, each with its end. A text of more than `longest` ids, with its end, is shortened if
    `truncate`, with the end again or, if `cut_end`, without; else it raises UserError with its name, its length and
    this hint."""
    rows: list[list[int]] = []
    for text, name in zip(texts, names, strict=True):
        ids = tokenizer.encode(text)
        if len(ids) >= longest and not truncate:
            raise UserError(
                "a text is longer than the model's positions", where=name, got=f"{len(ids) + 1:,} ids with its end",
                expected=f"at most {longest:,}", hint=hint,
            )  # fmt: skip
        rows.append([*ids, END][:longest] if cut_end else [*ids[: longest - 1], END])
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    flat = np.fromiter((each for row in rows for each in row), np.int32, int(starts[-1]))
    return TokenIds(flat, starts)


def split_ids(split: TextSplit, tokenizers: Tokenizers, config: TextConfig, hint: str = _LONGER) -> SplitIds:
    """All texts of a split as ids. Raises UserError, with this hint, for one that is too long."""
    names, cut = split.names, config.truncate
    target = token_ids(
        split.targets, names, tokenizers.target, config.max_target, truncate=cut, cut_end=True, hint=hint
    )  # fmt: skip
    if split.sources is None:
        return SplitIds(target)
    assert tokenizers.source is not None, "source texts need a tokenizer"
    return SplitIds(
        target, token_ids(split.sources, names, tokenizers.source, config.max_source, truncate=cut, hint=hint)
    )


def shifted(text_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(target_in_BT, target_out_BT) of teacher forcing: at each position what the decoder reads and what it predicts.

    `text_BT` holds y_1 .. y_L, end, pad. The decoder reads start, y_1 .. y_L, pad and predicts y_1 .. y_L, end, pad.
    """
    start_B1 = torch.full_like(text_BT[:, :1], START)
    target_in_BT = torch.cat([start_B1, text_BT[:, :-1]], dim=1)
    return target_in_BT.masked_fill(target_in_BT == END, PAD), text_BT


def bucket_key(ids: SplitIds, pad_multiple: int) -> Index:
    """The number by which samples are sorted: by the padded length of the source, then by the length of the target."""
    target_N = ids.target.length_N
    if ids.source is None:
        return target_N
    return -(-ids.source.length_N // pad_multiple) * (target_N.max() + 1) + target_N


def padded_widths(ids: SplitIds, index_B: Index | slice, pad_multiple: int) -> tuple[int, int]:
    """Positions of target and source (0 without one) that a batch of these samples is padded to."""
    lengths = (0 if each is None else int(each.length_N[index_B].max()) for each in (ids.target, ids.source))
    target, source = (-(-length // pad_multiple) * pad_multiple for length in lengths)
    return target, source


class TextStream:
    """One stream of batches of text: `batch(step)` returns the same Batch on every call and in every process.

    ids: the split's. config: its batch size; with `store`, the images of the same split, also their augmentation and
    views. rank, world, number: as in StreamLoader. Batches hold `targets["text"]` int64 [B, T] and, of source texts,
    `targets["source"]` int64 [B, S]. Raises UserError where a process's share is no multiple of 8 samples.
    """

    def __init__(
        self, ids: SplitIds, config: StreamConfig, text: TextConfig, seed: int, *, store: ImageStore | None = None,
        device: torch.device | None = None, rank: int = 0, world: int = 1, number: int = 0,
    ) -> None:  # fmt: skip
        length_N, first = ids.length_N, number * STREAM_SPAN
        assert (store is None) == (ids.source is not None), "either source texts or images"
        assert store is None or len(store.split) == len(length_N), "texts and images of the same samples"
        assert len(length_N) <= STREAM_SPAN, "samples of two streams would have the same numbers"
        assert config.balance == "none", "texts have no classes"
        self.ids, self.text, self.first_id, self.batch_size = ids, text, first, config.batch_size
        buckets = Buckets(bucket_key(ids, text.pad_multiple), text.window) if text.window > 1 else None
        self.sampler = Sampler(
            np.zeros_like(length_N), config.batch_size, seed, repeats=config.augment.repeated_aug, first=first,
            buckets=buckets,
        )  # fmt: skip
        self.first, self.last = own_rows(config.batch_size, rank, world)
        self.images = None
        if store is not None:
            own = config._replace(labeled=False)
            self.images = StreamLoader(
                store, own, seed, rank=rank, world=world, number=number, sampler=self.sampler
            )  # fmt: skip
        self.samples = len(length_N)
        self.device = store.device if store is not None else device or torch.device("cpu")

    def batch(self, step: int) -> Batch:
        """This process's rows of the batch of this step (from 0)."""
        return self._with_texts(step, None if self.images is None else self.images.batch(step))

    def stream(self, start: int, stop: int) -> Generator[Batch]:
        """Batches of the steps start..stop; images that are read on demand are prefetched."""
        if self.images is None:
            yield from map(self.batch, range(start, stop))
            return
        with contextlib.closing(self.images.stream(start, stop)) as images:
            for step, batch in enumerate(images, start):
                yield self._with_texts(step, batch)

    def widths(self, step: int) -> tuple[int, int]:
        """Positions of target and source (0 without one) that the batch of this step is padded to."""
        return padded_widths(self.ids, self.sampler.rows(step, 0, self.batch_size).index_B, self.text.pad_multiple)

    def padded_share(self, steps: Iterable[int]) -> float:
        """The share of padding among all ids of the batches of these steps, in [0, 1]."""
        used, places = 0, 0
        for step in steps:
            used += int(self.ids.length_N[self.sampler.rows(step, 0, self.batch_size).index_B].sum())
            places += self.batch_size * sum(self.widths(step))
        return 1 - used / places if places else 0.0

    def _with_texts(self, step: int, images: Batch | None) -> Batch:
        index_B = self.sampler.rows(step, self.first, self.last).index_B
        target_width, source_width = self.widths(step)
        targets = {"text": self.ids.target.padded(index_B, target_width).to(self.device)}
        if self.ids.source is not None:
            targets["source"] = self.ids.source.padded(index_B, source_width).to(self.device)
        sample_ids_B = torch.from_numpy(index_B) + self.first_id
        return Batch(() if images is None else images.views, targets, sample_ids_B)
