"""Read images in the calling thread or in threads. Both give the same bits.

Pillow's decoders and torch's resizing release the interpreter, nothing is copied between processes, and no
`__main__` guard is needed. Shape letters: B images of a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from vitral.data.reading import ImageReader, ReadRequest, ReadResult

AHEAD = 2  # batches that are read while one is in use
_PARTS = 16  # images per task: small enough that all threads end together


class Threads:
    """Decoding in `workers` threads, or in the caller's when it waits (0 workers). The function that `submit` returns
    waits for the images. Closed, it leaves nothing behind."""

    def __init__(self, reader: ImageReader, workers: int, *, pinned: bool) -> None:
        self.reader, self.pinned = reader, pinned
        self._pool = ThreadPoolExecutor(workers, "vitral-reader") if workers else None

    def submit(self, request: ReadRequest) -> Callable[[], ReadResult]:
        """Start reading; errors are raised when they are waited for, the first by place in the batch."""
        with torch.inference_mode(False):  # the threads that fill it are not in the caller's mode
            room = self.reader.empty(len(request), pinned=self.pinned)
        jobs: list[Future[None]] = []
        if self._pool is not None:
            for start in range(0, len(request), _PARTS):
                part = room.rows(start, start + _PARTS)
                jobs.append(self._pool.submit(self.reader.fill, request.part(start, start + _PARTS), part))

        def ready() -> ReadResult:
            if self._pool is None:
                with torch.inference_mode(False):
                    self.reader.fill(request, room)
            try:
                for job in jobs:
                    job.result()
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
            return room

        return ready

    def close(self) -> None:
        """End the threads after the image that each is at."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
