"""Decode images in threads ahead of the computation."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

import torch

from vitral.errors import UserError

T = TypeVar("T")
S = TypeVar("S")


def in_batches(function: Callable[[T], S], items: Iterable[T], size: int) -> Generator[list[S]]:
    """What `function` makes of each item, in order, `size` at once; threads compute the next `size` at the same time.

    No more than two batches exist at a time, and no more of the items are taken. Where one item raises UserError,
    those before it come as a shorter batch, and then the error.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:  # starting threads would take longer
        if first:
            yield [function(first[0])]
        return
    rest = chain(first, rest)
    # With threads of torch's own each of these would make OpenMP believe that the processor is overbooked, and the
    # computation at the same time would take up to 1.7 times as long.
    pool = ThreadPoolExecutor(min(size, os.cpu_count() or 1), "vitral-decode", torch.set_num_threads, (1,))
    try:
        batches = iter(lambda: [pool.submit(function, item) for item in islice(rest, size)], [])
        ready = next(batches)
        for following in batches:
            yield from _finished(ready)
            ready = following
        yield from _finished(ready)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch: list[Future[S]]) -> Iterator[list[S]]:
    done: list[S] = []
    for future in batch:
        try:
            done.append(future.result())
        except UserError:
            if done:
                yield done
            raise
    yield done
