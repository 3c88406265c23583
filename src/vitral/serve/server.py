"""Server process: socket, signals, shutdown."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from vitral.errors import UserError
from vitral.serve.app import create_app
from vitral.serve.config import ServeConfig
from vitral.serve.model_worker import ModelWorker
from vitral.serve.protocol import GuardedProtocol, GuardedState
from vitral.serve.service import ENDING, Service
from vitral.training.signals import StopSignal

log = logging.getLogger("vitral")

CONNECTIONS = 512  # served at once; beyond it the answer is 503
KEEP_ALIVE_SECONDS = 15
LAST_SECONDS = 2.0  # after `drain` for what nobody can stop: a computation, a replaced model that is being loaded
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen_at(host: str, port: int) -> socket.socket:
    """A bound socket, which listens later. Raises UserError for an address that is taken, forbidden or not here."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError("not an address of this machine", where="host", got=host, expected=error.strerror) from None
    try:
        if os.name != "nt":  # there it would let two servers have one port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        hint = "port=0 takes a free one."
        raise UserError(
            f"cannot listen here: {error.strerror}", where="port", got=f"{host}:{port}", hint=hint
        ) from None
    return bound


def serve_workers(
    workers: Mapping[str, ModelWorker], options: ServeConfig, key: str | None, bound: socket.socket
) -> int:
    """Serves until a signal comes, and returns 128 and its number; or 1, at once, where a model cannot compute. Prints
    one JSON line, url and models, on stdout as soon as there are answers."""
    app = create_app(workers, options, key)
    config = uvicorn.Config(
        app, http=GuardedProtocol, ws="none", lifespan="on", log_config=None, access_log=False, server_header=False,
        proxy_headers=False, limit_concurrency=CONNECTIONS, timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=math.ceil(options.drain),
    )  # fmt: skip
    server = _Server(config, app.state.service, _url(bound, options.host))
    server.run(sockets=[bound])
    log.info("ended", extra={"fields": {"signal": server.signum}})
    return 128 + server.signum if server.signum else 1


def announce(url: str, models: Sequence[str]) -> None:
    """Says where the models are: one JSON line on stdout, and the log."""
    facts: dict[str, Any] = {"url": url, "models": list(models)}
    print(json.dumps(facts, ensure_ascii=False), flush=True)
    log.info("listening", extra={"fields": facts})


def wait_for_signal() -> int:
    """The number of the signal that came."""
    with StopSignal() as stop:
        while stop.signum is None:
            time.sleep(0.2)
    return stop.signum


def _url(bound: socket.socket, host: str) -> str:
    port = bound.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's, which says where it listens and ends with the signal's number."""

    def __init__(self, config: uvicorn.Config, service: Service, url: str) -> None:
        super().__init__(config)
        self.server_state: ServerState = GuardedState()
        self._service, self._url = service, url
        self.signum: int | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """The first moment in which there are answers."""
        asyncio.get_running_loop().set_exception_handler(_loop_error)
        await super().startup(sockets)
        self._service.decoders.warm_up()
        announce(self._url, list(self._service.workers))

    async def on_tick(self, counter: int) -> bool:
        """Whether to end: also where a model could not compute in the beginning, for it will not later."""
        return await super().on_tick(counter) or self._service.has_failed

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, but clients that are connected by now are answered too: closing the socket would reset the
        connections that the system holds for it."""
        assert isinstance(self.server_state, GuardedState)
        self.server_state.is_ending = True
        loop, connections = asyncio.get_running_loop(), list[socket.socket]()
        for listener in sockets or ():
            with suppress(OSError):  # none any more, most likely
                while True:
                    connections.append(listener.accept()[0])
        for server in self.servers:
            server.close()
        for connection in connections:
            connection.setblocking(False)
            with suppress(OSError):
                await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        assert issubclass(self.config.http_protocol_class, GuardedProtocol)
        return self.config.http_protocol_class(self.config, self.server_state, self.lifespan.state)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Ours, also where a signal was ignored at start (a background job's Ctrl-C). They stay: a second signal that
        comes while the process ends must not change its exit code."""
        for signum in _SIGNALS:
            signal.signal(signum, self._stop)
        yield

    def _stop(self, signum: int, _: FrameType | None) -> None:
        if self.signum is not None:  # twice: at once
            _exit(signum)
        self.signum, self._service.not_ready, self.should_exit = signum, ENDING, True
        assert self.config.timeout_graceful_shutdown is not None
        last = threading.Timer(self.config.timeout_graceful_shutdown + LAST_SECONDS, _exit, (signum,))
        last.daemon = True
        last.start()


def _loop_error(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What goes wrong outside of requests. Without file handles each connection that waits is an error, so this is one
    line without a traceback, and the journal counts how often."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
        log.error("no new connection can be accepted: %s; `ulimit -n` sets how many files are open", error.strerror)
    else:
        loop.default_exception_handler(context)


def _exit(signum: int) -> None:
    """Without waiting for any thread."""
    sys.stderr.flush()
    os._exit(128 + signum)
