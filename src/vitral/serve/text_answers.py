"""Answers of models that write text: whole, or as a stream of server-sent events."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vitral.data.text.tokenizer import PAD
from vitral.models.search_config import SearchConfig
from vitral.serve.batcher import Work
from vitral.serve.metrics import Metrics
from vitral.serve.middleware import as_json
from vitral.serve.model_worker import ModelWorker, failure
from vitral.serve.text_requests import EVENTS, copies_of
from vitral.tasks.text_writing import Written
from vitral.text_predictor import TextPredictor


def writing(predictor: TextPredictor, search: SearchConfig) -> Work:
    """Write texts of sources by one search: each source [C, H, W] or [S] with its number in its request, on which
    sampling depends."""

    def write(numbered: list[tuple[Tensor, int]]) -> list[list[Written]]:
        sources, numbers = zip(*numbered, strict=True)
        inputs = pad_sequence(list(sources), batch_first=True, padding_value=PAD)  # images have one size
        return predictor.write_prepared(inputs, search, numbers)

    return Work((predictor, search), write, copies_of(search))


def row(name: tuple[str, str | int], outputs: Sequence[Written]) -> dict[str, Any]:
    """The answer to one source. name: "source" or "image", and its number or file name."""
    predictions = [{"text": each.text, "score": each.score, "finished": each.finished} for each in outputs]
    return {name[0]: name[1], "predictions": predictions}


class TextStream(Response):
    """The text of one prepared source as server-sent events: `piece` with {"text"} as it grows, then `done` with the
    whole answer; `error` where the model fails in between. Each piece is a call of its own on the model's thread, so
    that other requests have their turn. Raises APIError before the first piece like any other answer."""

    media_type = EVENTS

    def __init__(
        self, worker: ModelWorker, predictor: TextPredictor, input_1: Tensor, search: SearchConfig, metrics: Metrics,
        name: tuple[str, str | int],
    ) -> None:  # fmt: skip
        super().__init__()
        del self.headers["content-length"]
        self._worker, self._metrics, self._name = worker, metrics, name
        self._pieces = predictor.stream_prepared(input_1, search)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        with self._worker.places(1):
            is_started = False
            while True:
                try:
                    found = await self._worker.run(lambda: _next(self._pieces))
                    is_last = not isinstance(found, str)
                    event = _event("piece", {"text": found}) if isinstance(found, str) else self._done(found)
                except Exception as error:
                    failed = failure(self._worker, error)
                    if not is_started:
                        raise failed from None
                    is_last, event = True, _event("error", {"code": failed.code, "message": failed.message})
                if not is_started:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    is_started = True
                await send({"type": "http.response.body", "body": event, "more_body": not is_last})
                if is_last:
                    return

    def _done(self, found: Written) -> bytes:
        self._metrics.computed(self._worker.name, 1)
        return _event("done", row(self._name, [found]))


def _next(pieces: Generator[str, None, Written]) -> str | Written:
    """The next piece, or the whole behind the last one."""
    try:
        return next(pieces)
    except StopIteration as end:
        return end.value


def _event(name: str, content: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {as_json(content)}\n\n".encode()
