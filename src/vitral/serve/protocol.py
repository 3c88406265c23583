"""uvicorn's HTTP protocol with the limits that it lacks: time and size of a request's head, time of a client that
sends on after its answer or does not read it, and connections beyond the number that is served."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

HEAD_SECONDS = 10.0
HEAD_BYTES = 32 * 1024
LINGER_SECONDS = 5.0  # what a refused client may still send, so that it comes to read the answer
ENDING_SECONDS = 0.5  # that an idle connection may still send a request in while the server ends
SPARE = 64  # connections beyond limit_concurrency that get 503; further ones are closed


class GuardedState(ServerState):
    """uvicorn's, and whether the server ends."""

    is_ending = False


class GuardedProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._due: asyncio.TimerHandle | None = None
        # Bytes of the head: as they came, and as they were parsed; of a write that holds a whole head the first is 0.
        self._head, self._parsed, self._unread = 0, 0, 0
        self._in_head = self._is_head_only = True  # of the connection; of the bytes that came last

    @property
    def _is_ending(self) -> bool:
        return isinstance(self.server_state, GuardedState) and self.server_state.is_ending

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency + SPARE:
            transport.abort()
        self._arm(ENDING_SECONDS if self._is_ending else HEAD_SECONDS)

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

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def _count(self, count: int) -> None:
        self._parsed += count
        if self._parsed > HEAD_BYTES:
            raise httptools.HttpParserError("too large a head")

    def on_headers_complete(self) -> None:
        self._disarm()
        self._head, self._parsed, self._in_head, self._is_head_only = 0, 0, False, False
        super().on_headers_complete()
        if self._is_ending:
            self.cycle.keep_alive = False  # the answer says so

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

    def shutdown(self) -> None:
        """End the connection: requests in progress are answered, also one that an idle client sends now."""
        cycle = cast(RequestResponseCycle | None, self.cycle)  # None before the first request, whatever uvicorn says
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False
        elif self._in_head and not self._head and not self._parsed:
            self._unset_keepalive_if_required()
            self._arm(ENDING_SECONDS)

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
