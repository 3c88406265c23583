"""Dynamic batching: images gather while the model computes; a free model takes them without waiting.

Shape letters: C classes.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from vitral.predictor import NotFinite, Predictor
from vitral.serve.metrics import Metrics
from vitral.serve.model_worker import APIError, ModelWorker

log = logging.getLogger("vitral")


class Computed(NamedTuple):
    """Logits of one image [C], and how many images were computed with it."""

    logits_C: Tensor
    batch: int


class _Entry(NamedTuple):
    predictor: Predictor
    image: Tensor
    answer: asyncio.Future[Computed]
    request: Sequence[asyncio.Future[Computed]]  # the answers of all its images


class Batcher:
    """The queue of one model's images. `start` and `close` belong to the event loop that it works in."""

    def __init__(self, worker: ModelWorker, max_batch: int, metrics: Metrics) -> None:
        self._worker, self._max_batch, self._metrics = worker, max_batch, metrics
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

    async def compute(self, predictor: Predictor, images: Sequence[Tensor]) -> list[Computed]:
        """Logits of images that `predictor.preprocess` has made, computed by that predictor. A caller that stops
        waiting takes them out of the queue. Raises APIError, 500, where the computation of one of them fails."""
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Computed]] = [loop.create_future() for _ in images]
        self._entries.extend(_Entry(predictor, image, answers[k], answers) for k, image in enumerate(images))
        self._filled.set()
        return await asyncio.gather(*answers)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled.clear()
                continue
            images = [entry.image for entry in batch]
            try:
                logits_BC = await self._worker.run(
                    lambda _, by=batch[0].predictor, x=images: by.forward(x).cpu(), len(batch)
                )
            except NotFinite as error:
                self._fail(batch, APIError(500, "not_finite", error.what))
            except Exception:  # memory that is not there, say: its own requests fail, the next may not
                log.exception("%s: a batch of %d images failed", self._worker.name, len(batch))
                self._fail(batch, APIError(500, "model_failed", "the model failed on these images"))
            else:
                self._metrics.computed(self._worker.name, len(batch))
                self._answer(batch, logits_BC)

    def _take(self) -> list[_Entry]:
        """The first in the queue that belong to one predictor, without those nobody waits for."""
        batch: list[_Entry] = []
        while self._entries and len(batch) < self._max_batch:
            if self._entries[0].answer.done():  # nobody waits for it any more
                self._entries.popleft()
            elif batch and self._entries[0].predictor is not batch[0].predictor:
                break
            else:
                batch.append(self._entries.popleft())
        return batch

    def _answer(self, batch: Sequence[_Entry], logits_BC: Tensor) -> None:
        for entry, row_C in zip(batch, logits_BC, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(Computed(row_C, len(batch)))

    def _fail(self, batch: Sequence[_Entry], why: APIError) -> None:
        """All images of the requests that have one in this batch: those still in the queue need not be computed."""
        for answer in (answer for entry in batch for answer in entry.request):
            if not answer.done():
                answer.set_exception(why)


def warm_up(predictor: Predictor, max_batch: int) -> None:
    """Computes a gray image, alone and as often as fits into a batch: what is set up by that (Pillow's formats, the
    runtime's memory) is set up before the first request. Raises UserError where the answers are not finite."""
    height, width = predictor.config.preprocessing.image_size
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG")
    gray = file.getvalue()
    if predictor.classes:
        for count in (1, max_batch):
            predictor.postprocess(predictor.forward([predictor.preprocess(gray)] * count))
    elif not predictor.is_export:
        predictor.forward([predictor.preprocess(gray)], "pooled")
