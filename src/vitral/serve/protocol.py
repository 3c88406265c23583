"""uvicorn's HTTP protocol with the limits that it lacks: time and size of a request's head, time of a client that
sends on after its answer or does not read it, and connections beyond the number that is served."""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0
HEAD_BYTES = 32 * 1024
LINGER_SECONDS = 5.0  # what a refused client may still send, so that it comes to read the answer
SPARE = 64  # connections beyond limit_concurrency that are told 503; further ones are cut


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._due: asyncio.TimerHandle | None = None
        self._head, self._unread = 0, 0
        self._in_head = self._is_head_only = True  # of the connection; of the bytes that came last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + SPARE:
            transport.abort()
        self._arm(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head and self._due is None:  # a further request begins
            self._arm(HEAD_SECONDS)
        self._is_head_only = self._in_head
        super().data_received(data)
        if self._is_head_only and not self.transport.is_closing():
            self._head += len(data)
            if self._head > HEAD_BYTES:
                self.send_400_response("The head of the request is too large.")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head += len(name) + len(value)
        if self._head > HEAD_BYTES:
            raise httptools.HttpParserError("too large a head")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._disarm()
        self._head, self._in_head, self._is_head_only = 0, False, False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        self._in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._in_head:
            self._arm(LINGER_SECONDS)

    def timeout_keep_alive_handler(self) -> None:
        unread = self.transport.get_write_buffer_size()
        if unread and unread != self._unread:  # it reads, slowly
            self._unread = unread
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        elif unread:
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._due = self.loop.call_later(seconds, self._cut)

    def _disarm(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _cut(self) -> None:
        self._due = None
        self.transport.close()
