"""Dynamic batching: images and texts gather while the model computes; a free model takes them without waiting."""

from __future__ import annotations

import asyncio
import io
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from PIL import Image

from vitral.data.text.tokenizer import END
from vitral.models.search_config import SearchConfig
from vitral.serve.metrics import Metrics
from vitral.serve.model_worker import AnyPredictor, APIError, ModelWorker, failure
from vitral.text_predictor import TextPredictor

log = logging.getLogger("vitral")


class Computed(NamedTuple):
    """What was computed of one image or text, and how many were computed with it."""

    found: Any
    batch: int


class Work(NamedTuple):
    """What is to be computed. Items of equal `key` may be computed together, by `function`, which returns one answer
    per item. size: of an item; a batch has items of `max_batch` together, or one."""

    key: Hashable
    function: Callable[[list[Any]], Sequence[Any]]
    size: int = 1


class _Entry(NamedTuple):
    work: Work
    item: Any
    answer: asyncio.Future[Computed]
    request: Sequence[asyncio.Future[Computed]]  # the answers of all its items


class Batcher:
    """The queue of one model's images or texts. `start` and `close` belong to the event loop that it works in."""

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

    async def compute(self, work: Work, items: Sequence[Any]) -> list[Computed]:
        """What `work` makes of the items, together with others that wait. A caller that stops waiting takes them out of
        the queue. Raises APIError, 500, where the computation of one of them fails."""
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Computed]] = [loop.create_future() for _ in items]
        self._entries.extend(_Entry(work, item, answers[k], answers) for k, item in enumerate(items))
        self._filled.set()
        return await asyncio.gather(*answers)

    async def _work(self) -> None:
        while True:
            await self._filled.wait()
            batch = self._take()
            if not batch:
                self._filled.clear()
                continue
            items = [entry.item for entry in batch]
            try:
                found = await self._worker.run(lambda work=batch[0].work, x=items: work.function(x), len(batch))
            except Exception as error:  # memory that is not there, say: its own requests fail, the next may not
                self._fail(batch, failure(self._worker, error, len(batch)))
            else:
                self._metrics.computed(self._worker.name, len(batch))
                self._answer(batch, found)

    def _take(self) -> list[_Entry]:
        """The first in the queue that can be computed together, without those nobody waits for."""
        batch: list[_Entry] = []
        while self._entries:
            first = self._entries[0].work
            if self._entries[0].answer.done():  # nobody waits for it any more
                self._entries.popleft()
            elif batch and (first.key != batch[0].work.key or (len(batch) + 1) * first.size > self._max_batch):
                break
            else:
                batch.append(self._entries.popleft())
        return batch

    def _answer(self, batch: Sequence[_Entry], found: Sequence[Any]) -> None:
        for entry, each in zip(batch, found, strict=True):
            if not entry.answer.done():
                entry.answer.set_result(Computed(each, len(batch)))

    def _fail(self, batch: Sequence[_Entry], why: APIError) -> None:
        """All items of the requests that have one in this batch: those still in the queue need not be computed."""
        for answer in (answer for entry in batch for answer in entry.request):
            if not answer.done():
                answer.set_exception(why)


def warm_up(predictor: AnyPredictor, max_batch: int) -> None:
    """Computes a gray image or a short text, alone and as often as fits into a batch: what is set up by that (Pillow's
    formats, the runtime's memory) is set up before the first request. Raises UserError where the answers are not
    finite."""
    spec = predictor.config.preprocessing
    gray = b"" if spec is None else _gray(*spec.image_size)
    if isinstance(predictor, TextPredictor):
        input_1 = predictor.preprocess([gray]) if gray else torch.tensor([[END]])
        short = SearchConfig(max_length=2) if predictor.config.architecture.decodes_steps else None
        for count in (1, max_batch):
            predictor.write_prepared(input_1.repeat_interleave(count, 0), short, range(count))
    elif predictor.classes:
        for count in (1, max_batch):
            predictor.postprocess(predictor.forward([predictor.preprocess(gray)] * count))
    elif not predictor.is_export:
        predictor.forward([predictor.preprocess(gray)], "pooled")


def _gray(height: int, width: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (width, height), 128).save(file, "PNG")
    return file.getvalue()
