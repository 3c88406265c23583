"""A small application in place of the server's, for a process of the cluster to make."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Request

from vitral.predictor import load


def make_app(model: str, device: str) -> FastAPI:
    """Names what is on a PNG, by the model; leaves a file when it ends."""
    predictor = load(model, device)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncGenerator[None]:
        yield
        Path(f"ended-{os.getpid()}").touch()

    app = FastAPI(lifespan=life)

    async def predict(request: Request) -> dict[str, object]:
        answer = predictor.predict(await request.body())[0]
        return {**answer, "process": os.getpid(), "device": device}

    app.post("/predict")(predict)
    return app
