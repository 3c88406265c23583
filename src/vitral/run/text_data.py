"""Texts of a run or a model for evaluation: a split as batches, and what a model writes for it.

Shape letters: N samples, B batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vitral import distributed
from vitral.data.dataset import spaced
from vitral.data.image_spec import ImageSpec
from vitral.data.image_store import ImageStore
from vitral.data.text.batches import SplitIds
from vitral.data.text.dataset import TextSplit
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.models.search_config import SearchConfig
from vitral.models.sequence_model import SequenceModel
from vitral.run.text_config import TextData
from vitral.run.text_pointing import peaks_of, source_at
from vitral.tasks.task import Array, Subject
from vitral.tasks.text import ANSWER, TextSubject
from vitral.tasks.text_writing import likelihood, write


def text_subject(
    model: nn.Module, name: str, split: TextSplit, ids: SplitIds, tokenizers: Tokenizers, search: SearchConfig,
    *, store: ImageStore | None = None, device: torch.device, most: int | None = None, in_training: bool = False,
    batch_size: int = 64,
) -> Subject:  # fmt: skip
    """Return a model as subject of an evaluation on a split, or on `most` evenly spaced samples of it, by all processes
    together, `batch_size` at once in each. store: its images, where these are read."""
    assert isinstance(model, SequenceModel)
    places = list(range(len(split))) if most is None else spaced(len(split), most)

    def collect() -> tuple[Array, Array]:
        first, last = distributed.shard_range(len(places))
        own = places[first:last]
        batches = _by_length(own, ids, batch_size)
        parts = [_answers(model, part, ids, tokenizers, search, store, device) for part in batches]
        found = dict(row for part in parts for row in part)
        rows = [row for part in distributed.gather([found[place] for place in own]) for row in part]
        rights = np.empty(len(places), object)
        as_written = tokenizers.target.as_written
        rights[:] = [tuple(map(as_written, split.answers(place))) for place in places]
        return np.array(rows, ANSWER), rights

    def peaks(count: int) -> Array:
        assert store is not None
        return peaks_of(model, split, ids, store, device, count if most is None else min(count, most), batch_size)

    def image_batches(_: str, __: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        raise AssertionError("texts are evaluated by what is written")

    subject = TextSubject(name, image_batches, collect, model, in_training=in_training)
    subject.peaks = None if split.boxes is None else peaks
    return subject


def _by_length(places: Sequence[int], ids: SplitIds, size: int) -> list[list[int]]:
    """Batches of samples of similar length, so that little is padded."""
    order = sorted(places, key=lambda place: ids.length_N[place])
    return [order[start : start + size] for start in range(0, len(order), size)]


@torch.no_grad()
def _answers(
    model: SequenceModel, places: list[int], ids: SplitIds, tokenizers: Tokenizers, search: SearchConfig,
    store: ImageStore | None, device: torch.device,
) -> Iterator[tuple[int, tuple[object, ...]]]:  # fmt: skip
    """Yield the place of each sample and its row of `ANSWER`; the model's mode is afterwards as it was."""
    index_B = np.array(places)
    source = source_at(ids, places, store, device)
    text_BT = ids.target.padded(index_B, int(ids.target.length_N[index_B].max())).to(device)
    was_training = model.training
    model.eval()
    try:
        written = write(model, tokenizers, source, search, places)
        sums_B3 = likelihood(model, source, text_BT)
    finally:
        model.train(was_training)
    for place, (best, *_), sums_3 in zip(places, written, sums_B3.tolist(), strict=True):
        yield place, (best.text, best.score, best.log_prob, best.finished, *sums_3, best.tokens)


def open_store(split: TextSplit, spec: ImageSpec, data: TextData, device: torch.device, *, exact: bool) -> ImageStore:
    """The images of a split at the model's size."""
    assert split.images is not None
    workers = (
        data.workers if data.workers != "auto" else max(1, (os.cpu_count() or 1) // distributed.launch().local_world)
    )
    return ImageStore(
        split.images, spec.image_size, spec, exact=exact, workers=workers, cache_mb=data.cache_mb, device=device
    )
