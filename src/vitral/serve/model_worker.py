"""A served model: a replaceable predictor and the thread that computes with it."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from vitral.errors import UserError
from vitral.predictor import Predictor
from vitral.text_predictor import TextPredictor

log = logging.getLogger("vitral")

T = TypeVar("T")
AnyPredictor = Predictor | TextPredictor
_LONGEST_WAIT = 60  # largest Retry-After, seconds


class Upload(NamedTuple):
    """One image of a request: its name there, or None, and its bytes, which nobody has looked at yet."""

    name: str | None
    data: bytes


class APIError(Exception):
    """An answer other than 200: status, a short code for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


class ModelSource(NamedTuple):
    """Where a model came from: its folder or file, its `reload.signature` before it was loaded, and how it
    is loaded again."""

    path: Path
    seen: object
    load: Callable[[], AnyPredictor]


def failure(worker: ModelWorker, error: Exception, count: int = 1) -> APIError:
    """The answer to an error of the model's thread. What a request holds was checked before, so the model fails, by
    itself or by the `count` inputs together."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, UserError):
        return APIError(500, "not_finite", error.what)
    log.error("%s: a batch of %d failed", worker.name, count, exc_info=error)
    return APIError(500, "model_failed", "the model failed on this batch")


def run_in_thread(function: Callable[[], T], threads: int) -> T:
    """What the function returns, from a thread that ends with it and has so many of torch's threads.

    A thread that has computed in parallel once keeps its helpers. More of them than processors, and OpenMP lets all
    sleep between two operations: a small model then takes 1.7 times as long. So the thread that computes with a model
    is the only one that keeps any.
    """
    with ThreadPoolExecutor(1, "run_in_thread", torch.set_num_threads, (threads,)) as pool:
        return pool.submit(function).result()


class ModelWorker:
    """A model under its name. All that computes with it passes through `compute`, one call at a time.

    limit: so many images, texts and calls may wait; None: any number. threads: torch's, of a computation; None: as
    many as the caller has, who should have computed nothing (see `run_in_thread`). `loaded`: seconds since 1970.
    `failure`: why the folder that is there now could not be loaded, if it could not.
    """

    def __init__(
        self,
        name: str,
        model: AnyPredictor,
        source: ModelSource | None = None,
        *,
        limit: int | None = None,
        threads: int | None = None,
    ) -> None:
        self.name, self.model, self.source, self.limit = name, model, source, limit
        self.loaded = time.time()
        self.failure: str | None = None
        self.waiting = 0
        self._seconds_each = 0.0  # of one image, text or call, lately
        # torch counts threads per calling thread: those that decode have one each, this one has them all.
        self.threads = threads or torch.get_num_threads()
        self._thread = ThreadPoolExecutor(1, f"model-{name}", torch.set_num_threads, (self.threads,))

    @property
    def predictor(self) -> Predictor:
        """The model, if it answers with classes or numbers. Raises UserError for one that writes text."""
        if isinstance(self.model, TextPredictor):
            hint = "It answers at /v1/predict."
            raise UserError("a model that writes text has no such answer", where=self.name, hint=hint)
        return self.model

    @predictor.setter
    def predictor(self, predictor: Predictor) -> None:
        self.model = predictor

    @property
    def writer(self) -> TextPredictor | None:
        """The model, if it writes text."""
        return self.model if isinstance(self.model, TextPredictor) else None

    def replace(self, model: AnyPredictor) -> None:
        """What is computed from now on is computed with this one."""
        self.model, self.loaded, self.failure = model, time.time(), None

    async def compute(self, function: Callable[[Predictor], T]) -> T:
        """What `function` makes of the predictor that is in place when its turn comes. Raises APIError, 429, where too
        many wait already."""
        with self.places(1):
            return await self.run(lambda: function(self.predictor))

    async def run(self, function: Callable[[], T], count: int = 1) -> T:
        """What `function` returns on the model's thread, for `count` images or texts that have their places already."""

        def timed() -> T:
            start = time.perf_counter()
            try:
                return function()
            finally:
                each = (time.perf_counter() - start) / count
                self._seconds_each = 0.8 * self._seconds_each + 0.2 * each if self._seconds_each else each

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)

    @contextmanager
    def places(self, count: int) -> Generator[None]:
        """So many places in the queue for as long as the context lasts. Raises APIError, 429, where there are not so
        many."""
        if self.limit is not None and self.waiting + count > self.limit:
            seconds = min(_LONGEST_WAIT, max(1, math.ceil(self.waiting * self._seconds_each)))
            message = f"{self.waiting} images or texts wait for {self.name} already, and it takes {self.limit}"
            raise APIError(429, "busy", message, {"Retry-After": str(seconds)})
        self.waiting += count
        try:
            yield
        finally:
            self.waiting -= count

    def close(self) -> None:
        """Ends the thread, after what it does now."""
        self._thread.shutdown(cancel_futures=True)
