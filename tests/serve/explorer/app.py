"""The server's application with several models, in a thread."""

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
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

import vitral
from tests.helpers import random_model
from vitral.data.image_spec import ImageSpec
from vitral.models.create import create_model
from vitral.models.model import ImageModel
from vitral.predictor import Predictor
from vitral.serve.app import create_app
from vitral.serve.config import ServeConfig
from vitral.serve.middleware import refusal
from vitral.serve.model_worker import APIError, ModelWorker
from vitral.weights.folder import FolderConfig

LARGEST = 2_000_000  # bytes of an upload


@dataclass
class Rules:
    """What a test may change while the server runs: the key that is expected, how many requests are refused as too many
    from now on, and what was asked for so far."""

    key: str | None = None
    too_many: int = 0
    asked: list[str] = field(default_factory=list[str])


def make_app(hosts: Mapping[str, ModelWorker], rules: Rules | None = None) -> ASGIApp:
    """The server's application; which one of two, without a key and with one, is up to the rules."""
    options, rules = ServeConfig(max_bytes=LARGEST, allow_hosts=("testserver",), reload=0), rules or Rules()
    apps: dict[str | None, FastAPI] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            rules.asked.append(f"{scope['method']} {scope['path']}?{scope['query_string'].decode()}")
            if scope["path"].startswith("/v1/") and rules.too_many:
                rules.too_many -= 1
                answer = refusal(APIError(429, "busy", "too many requests", {"Retry-After": "2"}))
                await answer(scope, receive, send)
                return
        if rules.key not in apps:
            apps[rules.key] = create_app(hosts, options, rules.key)
        await apps[rules.key](scope, receive, send)

    return app


@contextmanager
def serving(app: ASGIApp) -> Generator[str]:
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


def random_host(folder: Path, name: str, preset: str = "vit_micro_patch2_8", **options: Any) -> ModelWorker:
    """A served model of random weights; see `random_model`."""
    classes = options.pop("classes", ("cat", "dog", "owl", "eel"))
    predictor = vitral.load(random_model(folder / name, classes, preset, **options), "cpu")
    sharpened(predictor.model)
    return ModelWorker(name, predictor)


def conv_host() -> ModelWorker:
    """A convolutional network of random weights, four classes."""
    network = create_model("resnet20_cifar", num_classes=4).eval()
    sharpened(network)
    names = {str(place): name for place, name in enumerate(("cat", "dog", "owl", "eel"))}
    shown = ImageSpec(image_size=network.config.image_size, channels=3, resize_mode="crop")
    config = FolderConfig(
        task="classification",
        name="resnet20_cifar",
        architecture=network.config,
        id2label=names,
        preprocessing=shown,
        provenance={},
    )
    return ModelWorker("conv", Predictor(network, config, "cpu"))


def large_host(folder: Path) -> ModelWorker:
    """224 pixels, 12 layers, a class token and four registers, 12 classes."""
    size: dict[str, Any] = {"width": 96, "depth": 12, "heads": 3, "mlp_dim": 192, "in_channels": 3, "registers": 4}
    classes = tuple(f"class {number}" for number in range(12))
    return random_host(folder, "large", "vit_tiny_patch16_224", classes=classes, **size)
