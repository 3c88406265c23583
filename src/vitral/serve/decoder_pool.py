"""Decoders of the images of requests: threads for images that are certainly cheap, processes that can be ended for
others.

A thread cannot be stopped, and holds Python's lock while it reads a header; so it gets only small JPEG and PNG files of
few segments. Everything else goes to a process, which is ended when the request is, or after `decode_seconds`.
"""

from __future__ import annotations

import asyncio
import atexit
import heapq
import itertools
import logging
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch

from vitral.data.image_spec import ImageSpec
from vitral.serve.config import ServeConfig
from vitral.serve.decoding import DecodedImage, Heavy, Job, Problem, Step, try_light, work
from vitral.serve.model_worker import APIError, Upload

log = logging.getLogger("vitral")

PICTURES = 4  # of the largest size may be decoded at once, all requests together
_START_SECONDS = 60.0  # a process imports torch
_LOOK_SECONDS = 0.05  # between two looks at whether somebody waits for the answer


class Decoders:
    """Threads and processes of one server. Processes start when they are needed, as many as there are processors."""

    def __init__(self, options: ServeConfig) -> None:
        self.options, self._most = options, os.cpu_count() or 1
        # Beside the model's thread; Pillow and torch let go of the interpreter while they work.
        self._light = ThreadPoolExecutor(self._most, "decode", torch.set_num_threads, (1,))
        self._waiters = ThreadPoolExecutor(self._most, "decoder")  # each waits for a process
        self._idle: list[_Decoder] = []
        self._alive: set[_Decoder] = set()
        self._queue: list[tuple[int, int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._running, self._pixels = 0, 0
        self._is_closed = False

    def warm_up(self) -> None:
        """Start one process in the background, so that the first image that needs it need not wait for its imports."""

        def start() -> None:
            with suppress(OSError):  # raised where it is needed
                self.give_back(self.take())

        self._waiters.submit(start)

    async def prepare(self, spec: ImageSpec, uploads: Sequence[Upload], step: Step) -> list[DecodedImage]:
        """What becomes of all images of a request. Raises APIError that names the first one that is none, is too large
        or takes too long."""
        turns = asyncio.Semaphore(self._most)  # so that the next request waits for a few images, not for 64

        async def one(number: int) -> DecodedImage | Problem:
            async with turns:
                job = Job(uploads[number].data, spec, step)
                found = await asyncio.get_running_loop().run_in_executor(self._light, try_light, job)
            return await self._process(job, found.counted, number) if isinstance(found, Heavy) else found

        results = await asyncio.gather(*map(one, range(len(uploads))))
        for number, found in enumerate(results):
            if isinstance(found, Problem):
                raise APIError(found.status, found.code, f"{uploads[number].name or f'image {number}'}: {found.text}")
        return [found for found in results if isinstance(found, DecodedImage)]

    async def _process(self, job: Job, count: int, number: int) -> DecodedImage | Problem:
        """The job in a process. The first images of all requests come before the second ones of any, and all that are
        decoded at once are no more than PICTURES of the largest size."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._queue, (number, next(self._numbers), count, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # admitted at the same moment
                self._leave(count)
            raise
        ended = threading.Event()
        working = loop.run_in_executor(self._waiters, self._decode, job, ended)
        working.add_done_callback(lambda _: self._leave(count))
        try:
            return await asyncio.shield(working)
        finally:
            ended.set()

    def _admit(self) -> None:
        limit = PICTURES * self.options.max_pixels
        while self._queue:
            _, _, count, turn = self._queue[0]
            if not turn.done():
                if self._running >= self._most or self._pixels + count > limit:
                    return
                self._running, self._pixels = self._running + 1, self._pixels + count
                turn.set_result(None)
            heapq.heappop(self._queue)

    def _leave(self, count: int) -> None:
        self._running, self._pixels = self._running - 1, self._pixels - count
        self._admit()

    def _decode(self, job: Job, ended: threading.Event) -> DecodedImage | Problem:
        """The job in a process, by a thread that waits. A process that has ended before it got the job, killed by the
        system for want of memory say, is replaced once. ended: nobody waits any more."""
        seconds = self.options.decode_seconds
        for _ in range(2):
            try:
                decoder = self.take()
            except OSError as error:
                log.error("no process for decoding could be started: %s", error)
                return Problem(503, "no_decoder", "the server has no memory or file handles to decode this; try again")
            done_with = self.discard
            try:
                answer = decoder.ask(job, seconds, ended)
                done_with = self.give_back
                return answer
            except NotSent:
                continue
            except TimeoutError:
                return Problem(422, "slow_image", f"not decoded within {seconds:g} seconds (decode_seconds)")
            except (EOFError, OSError):
                return Problem(422, "bad_image", "its decoder crashed")
            finally:
                done_with(decoder)
        return Problem(503, "no_decoder", "the processes that decode images end before they begin; try again")

    def take(self) -> _Decoder:
        """An idle process, or a new one. Raises OSError where none can be started."""
        with suppress(IndexError):
            while True:
                decoder = self._idle.pop()
                if decoder.is_alive:
                    return decoder
                self.discard(decoder)
        decoder = _Decoder(self.options.max_pixels)
        self._alive.add(decoder)
        if self._is_closed:
            decoder.kill()
        return decoder

    def give_back(self, decoder: _Decoder) -> None:
        """It did its job, and can do another."""
        self._idle.append(decoder)

    def discard(self, decoder: _Decoder) -> None:
        """It has ended or has to."""
        decoder.kill()
        decoder.close()
        self._alive.discard(decoder)

    def close(self) -> None:
        """End all of them at once: they only read."""
        self._is_closed = True
        for decoder in list(self._alive):
            decoder.kill()
        self._light.shutdown(wait=False, cancel_futures=True)
        self._waiters.shutdown(wait=False, cancel_futures=True)


class NotSent(Exception):
    """A process has ended before it got its job."""


class _Decoder:
    """A process, started and ready; its pipe belongs to one thread at a time."""

    _starting = threading.Lock()

    def __init__(self, max_pixels: int) -> None:
        method = "forkserver" if sys.platform != "win32" else "spawn"
        context: Any = multiprocessing.get_context(method)
        with self._starting:
            if method == "forkserver":  # torch is imported once, and a process starts in milliseconds
                context.set_forkserver_preload([work.__module__])
            self._pipe, theirs = context.Pipe()
            try:
                self._process = context.Process(target=work, args=(theirs, max_pixels), name="decoder", daemon=True)
                self._process.start()
            except BaseException:
                self._pipe.close()
                raise
            finally:
                theirs.close()
        atexit.register(self.kill)  # before multiprocessing's own, which would wait for it
        if not self._pipe.poll(_START_SECONDS):
            self.kill()
            raise OSError("it did not start in time")
        try:
            self._pipe.recv()
        except EOFError:
            raise OSError("it ended at once") from None

    def ask(self, job: Job, seconds: float, ended: threading.Event) -> DecodedImage | Problem:
        """Raises TimeoutError after so many seconds and soon after `ended` is set, NotSent where the process has ended
        before, EOFError or OSError where it ends before."""
        try:
            self._pipe.send((job, seconds))
        except OSError as error:
            raise NotSent(str(error)) from None
        end = time.monotonic() + seconds
        while not self._pipe.poll(_LOOK_SECONDS):
            if ended.is_set() or time.monotonic() > end:
                raise TimeoutError
        return self._pipe.recv()

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        with suppress(ValueError):  # closed already
            return self._process.is_alive()
        return False

    def kill(self) -> None:
        """From any thread, any number of times."""
        with suppress(ValueError, OSError):  # closed already
            self._process.kill()

    def close(self) -> None:
        """Leaves nothing behind. By the thread whose pipe it is."""
        atexit.unregister(self.kill)
        self._pipe.close()
        self._process.join(5)
        with suppress(ValueError):  # not gone yet
            self._process.close()
