"""A model that is served: a predictor that can be replaced, and the one thread that computes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from vitral.predictor import Predictor

T = TypeVar("T")


class Upload(NamedTuple):
    """One image of a request: its name there, or None, and its bytes, which nobody has looked at yet."""

    name: str | None
    data: bytes


class Refused(Exception):
    """An answer other than 200: status, a short code for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.headers = status, code, message, headers or {}


class Host:
    """A model under its name. All that computes with it passes through `compute`, one call at a time."""

    def __init__(self, name: str, predictor: Predictor) -> None:
        self.name, self.predictor = name, predictor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{name}")

    async def compute(self, function: Callable[[Predictor], T]) -> T:
        """What `function` makes of the predictor that is in place when its turn comes."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(self.predictor))

    def close(self) -> None:
        """Ends the thread, after what it does now."""
        self._thread.shutdown(cancel_futures=True)
