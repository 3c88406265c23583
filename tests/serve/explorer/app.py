"""An application with the explorer alone, and a server for it in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

import vitral
from tests.helpers import random_model
from vitral.errors import UserError
from vitral.models.model import ImageModel
from vitral.serve.explore import explorer_router
from vitral.serve.host import Host, Refused, Upload

POLICY = "default-src 'self'; img-src 'self' data: blob:"
LARGEST = 2_000_000  # bytes of an upload


@dataclass
class Rules:
    """What a test may change while the server runs: the key that is wanted, how many requests are refused as too many
    from now on, and what was asked for so far."""

    key: str | None = None
    too_many: int = 0
    asked: list[str] = field(default_factory=list[str])


async def read_body(request: Request) -> list[Upload]:
    """The body as one image."""
    data = await request.body()
    if len(data) > LARGEST:
        raise Refused(413, "too_large", f"the request is larger than {LARGEST} bytes")
    return [Upload(None, data)]


def _problem(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def make_app(hosts: Mapping[str, Host], rules: Rules | None = None) -> FastAPI:
    """The explorer behind the same answers to mistakes as in the server."""
    app, rules = FastAPI(), rules or Rules()
    app.include_router(explorer_router(hosts, read_body))

    async def refused(_: Request, error: Any) -> JSONResponse:
        return _problem(error.status, error.code, error.message, error.headers)

    async def wrong(_: Request, error: Any) -> JSONResponse:
        return _problem(422, "bad_request", str(error))

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(UserError, wrong)

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        path = request.url.path
        rules.asked.append(f"{request.method} {path}?{request.url.query}")
        if path.startswith("/v1/"):
            if rules.key is not None and request.headers.get("authorization") != f"Bearer {rules.key}":
                return _problem(401, "unauthorized", "an API key is wanted")
            if rules.too_many:
                rules.too_many -= 1
                return _problem(429, "busy", "too many requests", {"Retry-After": "2"})
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return app


@contextmanager
def serving(app: FastAPI) -> Generator[str]:
    """The address of a server that runs in a thread of its own until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server has not started"
        time.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(20)


def sharpened(model: ImageModel) -> None:
    """Random weights so large that attention is far from uniform and answers are not alike."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("weight") and tensor.ndim > 1:
                tensor.normal_(std=1.6 / np.sqrt(tensor[0].numel()))


def random_host(folder: Path, name: str, preset: str = "vit_micro_patch2_8", **options: Any) -> Host:
    """A served model of random weights; see `random_model`."""
    classes = options.pop("classes", ("cat", "dog", "owl", "eel"))
    predictor = vitral.load(random_model(folder / name, classes, preset, **options), "cpu")
    sharpened(predictor.model)
    return Host(name, predictor)


def large_host(folder: Path) -> Host:
    """224 pixels, 12 layers, a class token and four registers, 12 classes."""
    size: dict[str, Any] = {"width": 96, "depth": 12, "heads": 3, "mlp_dim": 192, "in_channels": 3, "registers": 4}
    classes = tuple(f"class {number}" for number in range(12))
    return random_host(folder, "large", "vit_tiny_patch16_224", classes=classes, **size)
