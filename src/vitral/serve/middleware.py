"""What every request passes: who may ask, how large and slow it may be, how long its answer may take; and what every
answer carries: a request number, security headers, a line in the log, a place in the metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vitral.errors import UserError
from vitral.predictor import NotFinite
from vitral.serve.config import ServeConfig
from vitral.serve.metrics import Metrics
from vitral.serve.model_worker import APIError

log = logging.getLogger("vitral")

SECURITY = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # json.dumps would make one for each answer
# Of the largest size may be in memory at once, all requests together; beyond that only bodies of a 16th of that size
# are taken, so that a few slow senders of large ones are in nobody else's way.
_BODIES = 16
_LONGEST, _LONGEST_PATH = 1000, 200  # characters of a message, and of a path in log and messages
_CLIENT_GONE = 499  # nobody gets this answer; logs and metrics have it


def as_json(content: Any) -> str:
    """As the commands print it. Raises APIError, 500, for numbers that JSON does not have."""
    try:
        return _ENCODER.encode(content)
    except ValueError:
        raise APIError(500, "not_finite", "the model's answer has numbers that are not finite") from None


def answer_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The content as JSON."""
    return Response(as_json(content), status, headers, "application/json")


def refusal(error: APIError | UserError) -> Response:
    """The answer that an error becomes: {"error": {"code", "message"}}."""
    if isinstance(error, NotFinite):
        error = APIError(500, "not_finite", error.what)
    elif isinstance(error, UserError):
        error = APIError(422, "unprocessable", str(error))
    content = {"code": error.code, "message": shortened(error.message, _LONGEST)}
    return answer_json({"error": content}, error.status, error.headers)


def shortened(text: str, most: int = _LONGEST_PATH) -> str:
    """A text that a client gave, as it is repeated: no longer than that."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


class Exchange:
    """One request and its answer: what the log says of it, and the body as it arrives: counted, timed, and behind it
    the moment in which the client goes away. Handlers fill in model, images and batch."""

    def __init__(self, gate: Middleware, scope: Scope, method: str, request_id: str, receive: Receive) -> None:
        self.scope, self.method, self.id, self.start = scope, method, request_id, time.perf_counter()
        self.status: int | None = None
        self.held = 0  # bytes of the body so far
        self.facts: dict[str, Any] = {}  # model, images, batch
        self._gate, self._receive = gate, receive
        self.is_gone = self._is_read = False
        self._watch: asyncio.Task[None] | None = None

    def begin(self, headers: Headers, timer: asyncio.Timeout) -> None:
        """Start the time of the body, or of the answer where there is no body. Raises APIError for one too large."""
        length, options = headers.get("content-length", "0"), self._gate.options
        if length.isdecimal() and int(length) > options.max_bytes:
            raise too_large(options)
        self._timer, self._task = timer, asyncio.current_task()
        if length == "0" and "transfer-encoding" not in headers:
            self._whole()
        else:
            timer.reschedule(asyncio.get_running_loop().time() + options.body_seconds)

    @property
    def is_whole(self) -> bool:
        """Whether all of the body is there."""
        return self._watch is not None

    def _whole(self) -> None:
        """From now on the client can do nothing but go away."""
        self._timer.reschedule(asyncio.get_running_loop().time() + self._gate.options.deadline)
        self._watch = asyncio.create_task(self._watch_client())

    async def receive(self) -> Message:
        """ASGI's receive."""
        if self._watch is not None and self._is_read:
            await asyncio.wait([self._watch])
            return {"type": "http.disconnect"}
        if self._watch is not None:  # there is no body
            self._is_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.is_gone = True
        else:
            self._gate.hold(self, len(message.get("body", b"")))
            if not message.get("more_body", False):
                self._is_read = True
                self._whole()
        return message

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        if self._task is not None:
            self._task.cancel()

    def close(self) -> None:
        """The answer is there: nobody is watched any more."""
        if self._watch is not None:
            self._watch.cancel()


class Middleware:
    """The outermost middleware. key: what /v1 wants as `Authorization: Bearer KEY`; None: nothing. is_ending: whether
    a request that is cancelled is so because the server ends."""

    def __init__(
        self,
        app: ASGIApp,
        options: ServeConfig,
        metrics: Metrics,
        key: str | None,
        is_ending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app, self.options, self._metrics, self._is_ending = app, options, metrics, is_ending
        self._key = None if key is None else key.encode()
        self._hosts = set(options.allow_hosts)
        if options.host in LOOPBACK or options.allow_hosts:
            self._hosts |= {*LOOPBACK, options.host.lower()}
        self._held = 0  # bytes of all bodies in memory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _SANE_ID.fullmatch(request_id):
            request_id = f"{random.getrandbits(64):016x}"
        method = scope["method"]
        if method == "HEAD":  # as GET, without the body
            scope = {**scope, "method": "GET"}
        exchange = Exchange(self, scope, method, request_id, receive)
        scope["exchange"] = exchange
        with self._metrics.in_flight.track_inprogress():
            try:
                await self._pass(exchange, headers, send)
            finally:
                self._held -= exchange.held
                self._record(exchange)

    async def _pass(self, exchange: Exchange, headers: Headers, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                answered = MutableHeaders(scope=message)
                for name, value in SECURITY.items():
                    answered.setdefault(name, value)
                answered["X-Request-ID"] = exchange.id
                if "model" in exchange.facts:
                    answered["X-Model"] = exchange.facts["model"]
            elif exchange.method == "HEAD":
                message = {**message, "body": b""}
            await send(message)

        try:
            async with asyncio.timeout(None) as timer:
                self._check(exchange.scope, headers)
                exchange.begin(headers, timer)
                try:
                    await self._app(exchange.scope, exchange.receive, sending)
                finally:
                    exchange.close()
            return
        except TimeoutError:
            answer = refusal(self._too_slow(exchange))
        except (APIError, UserError) as error:
            answer = refusal(error)
        except (asyncio.CancelledError, ClientDisconnect):
            if exchange.is_gone:
                exchange.status = exchange.status or _CLIENT_GONE
                return
            if not self._is_ending():
                raise
            answer = refusal(APIError(503, "ending", "the server ended before there was an answer"))
        except Exception:
            log.exception("request %s failed", exchange.id)
            answer = refusal(APIError(500, "failed", "the server failed on this request; its log says how"))
        if exchange.status is None:
            await answer(exchange.scope, exchange.receive, sending)
        else:  # the answer is half sent: a cut connection says that it isn't whole
            raise ConnectionAbortedError(f"request {exchange.id} ended in the middle of its answer")

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises APIError for whom this server isn't there. A page from elsewhere, in a browser that reaches a loopback
        address, would name its own host (DNS rebinding) or its own origin."""
        name = _hostname("//" + headers.get("host", ""))
        if self._hosts and name not in self._hosts:
            message = f"this server is not called {name!r}; the key allow_hosts says what else it may be called"
            raise APIError(421, "foreign_host", message)
        origin = headers.get("origin")
        if origin is not None and _hostname(origin) not in (name, *self._hosts):
            raise APIError(403, "foreign_origin", "requests from pages of other origins are not allowed")
        if self._key is None or not scope["path"].startswith("/v1/"):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._key):
            message = "expected: Authorization: Bearer KEY"
            raise APIError(401, "unauthorized", message, {"WWW-Authenticate": "Bearer"})

    def hold(self, exchange: Exchange, count: int) -> None:
        """`count` more bytes of a body are in memory. Raises APIError, 413 or 429, beyond the limits."""
        exchange.held += count
        self._held += count
        if exchange.held > self.options.max_bytes:
            raise too_large(self.options)
        is_large = exchange.held > self.options.max_bytes // _BODIES
        if is_large and self._held > _BODIES * self.options.max_bytes:
            raise APIError(429, "busy", "too many large requests at once", {"Retry-After": "1"})

    def _too_slow(self, exchange: Exchange) -> APIError:
        if exchange.is_whole:
            return APIError(504, "deadline", f"no answer within {self.options.deadline:g} seconds")
        message = f"the body was not there within {self.options.body_seconds:g} seconds"
        return APIError(408, "slow_body", message, {"Connection": "close"})

    def _record(self, exchange: Exchange) -> None:
        seconds, status = time.perf_counter() - exchange.start, exchange.status or 500
        route = getattr(exchange.scope.get("route"), "path", "other")
        self._metrics.answered(route, status, seconds)
        fields = {
            "id": exchange.id, "method": exchange.method, "path": shortened(exchange.scope["path"]), "status": status,
            "ms": round(1000 * seconds, 2), **exchange.facts,
        }  # fmt: skip
        log.log(logging.ERROR if status >= 500 else logging.INFO, "request", extra={"fields": fields})


def too_large(options: ServeConfig) -> APIError:
    """For a body beyond the limit."""
    return APIError(413, "too_large", f"a request may hold {options.max_bytes:,} bytes (max_bytes)")


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None
