"""Dynamic batching: while a model computes, images gather; when it is free it takes what is there, and waits for none.

Shape letters: C classes.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vitral.predictor import Floats, Predictor
from vitral.serve.host import Host, Refused
from vitral.serve.metrics import Metrics

log = logging.getLogger("vitral")


class Scored(NamedTuple):
    """Probabilities of one image [C], and how many images were computed with it."""

    scores_C: Floats
    batch: int


class _Entry(NamedTuple):
    predictor: Predictor
    image: Tensor
    answer: asyncio.Future[Scored]


class Batcher:
    """The queue of one model's images. `start` and `close` belong to the event loop that it works in."""

    def __init__(self, host: Host, max_batch: int, metrics: Metrics) -> None:
        self._host, self._max_batch = host, max_batch
        self._images, self._sizes = metrics.images.labels(host.name), metrics.batch.labels(host.name)
        self._entries: deque[_Entry] = deque()
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on what comes is computed."""
        self._task = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Nothing is computed any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def score(self, predictor: Predictor, images: Sequence[Tensor]) -> list[Scored]:
        """Scores of images that `predictor.ready` has made, computed by that predictor. Whoever stops waiting takes
        them out of the queue. Raises Refused, 500, where the computation fails."""
        loop = asyncio.get_running_loop()
        entries = [_Entry(predictor, image, loop.create_future()) for image in images]
        self._entries.extend(entries)
        self._filled.set()
        return await asyncio.gather(*(entry.answer for entry in entries))

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled.clear()
                continue
            images = [entry.image for entry in batch]
            try:
                rows = await self._host.run(lambda _, by=batch[0].predictor, x=images: _scores(by, x), len(batch))
            except Exception as error:  # memory that is not there, say: its own requests fail, the next may not
                log.exception("%s: a batch of %d images failed", self._host.name, len(batch))
                self._answer(batch, error)
            else:
                self._images.inc(len(batch))
                self._sizes.observe(len(batch))
                self._answer(batch, rows)

    def _take(self) -> list[_Entry]:
        """The first in the queue that belong to one predictor, without those nobody waits for."""
        batch: list[_Entry] = []
        while self._entries and len(batch) < self._max_batch:
            if self._entries[0].answer.done():  # cancelled: its deadline is over or its client gone
                self._entries.popleft()
            elif batch and self._entries[0].predictor is not batch[0].predictor:
                break
            else:
                batch.append(self._entries.popleft())
        return batch

    def _answer(self, batch: Sequence[_Entry], rows: Any) -> None:
        for number, entry in enumerate(batch):
            if entry.answer.done():
                continue
            if isinstance(rows, Exception):
                entry.answer.set_exception(Refused(500, "model_failed", "the model failed on these images"))
            else:
                entry.answer.set_result(Scored(rows[number], len(batch)))


@torch.inference_mode()
def _scores(predictor: Predictor, images: Sequence[Tensor]) -> Floats:
    return predictor.scores(predictor.logits_of(images)).cpu().numpy()


def warm_up(predictor: Predictor, max_batch: int) -> None:
    """Computes an empty image, alone and as often as fits into a batch: what is set up by that (Pillow's formats, the
    runtime's memory) is set up before the first request."""
    height, width = predictor.config.preprocessing.image_size
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    blank = file.getvalue()
    if predictor.classes:
        for count in (1, max_batch):
            _scores(predictor, [predictor.ready(blank)] * count)
    elif not predictor.is_export:
        predictor.features(predictor.preprocess(blank)[None])
