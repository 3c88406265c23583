"""Routes of the server: `create_app` builds the application from models and limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from vitral.serve.config import ServeConfig
from vitral.serve.explorer_routes import explorer_router
from vitral.serve.metrics import Metrics
from vitral.serve.middleware import Exchange, Middleware, answer_json, refusal, shortened
from vitral.serve.model_worker import APIError, ModelWorker
from vitral.serve.reload import watch
from vitral.serve.request_parsing import Images, read_images
from vitral.serve.schemas import (
    IMAGES,
    PROBLEMS,
    SOURCES,
    Attended,
    Detected,
    Embedded,
    Model,
    Predicted,
    TextModel,
    WrittenText,
)
from vitral.serve.service import Service
from vitral.serve.text_answers import TextStream
from vitral.serve.text_requests import EVENTS, SEARCH, read_texts, search_keys
from vitral.version import __version__


class _Asked(BaseModel):
    """Parameters of a request; others are refused."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = Field(default=None, description="which model; without it the first one")


class _Predict(_Asked):
    model_config = ConfigDict(extra="allow")  # keys of the search, which depend on the model
    topk: int = Field(default=5, ge=1, description="classes an image, the likeliest first")
    stream: bool = Field(
        default=False, description="a model that writes text: as server-sent events; search.KEY: how it is written"
    )

    def require_known(self, worker: ModelWorker) -> None:
        """Raises APIError, 422, or UserError for a parameter that this kind of model does not take."""
        extra, writes = self.model_extra or {}, worker.writer is not None
        if not writes and "topk" in self.model_fields_set:
            worker.predictor.task.refuse_topk(self.topk)
        own = {"topk"} if writes else {"stream"}
        wrong = [name for name in extra if not writes or not name.startswith(SEARCH)] + sorted(
            own & self.model_fields_set
        )
        if wrong:
            given = extra.get(wrong[0], getattr(self, wrong[0], None))
            text = f"{wrong[0]}: Extra inputs are not permitted, got {given!r}"
            raise APIError(422, "bad_parameter", shortened(text))


class _Embed(_Asked):
    features: Literal["pooled", "cls", "avg", "cls_avg", "patches"] = Field(
        default="pooled", description="what the head would read, class token, mean over the patches, these two, or all"
    )


class _Attention(_Asked):
    token: str | None = Field(
        default=None, description="cls, distill, register:0, a patch as row,column, or mean; else what the head reads"
    )
    layers: str | None = Field(
        default=None, pattern=r"^-?\d{1,6}(,-?\d{1,6})*$", description="as in 0,-1; -1 is the last; without it all"
    )


def create_app(workers: Mapping[str, ModelWorker], options: ServeConfig, key: str | None = None) -> FastAPI:
    """The application. workers: the models by name, the first is the default one. key: what /v1 wants of its clients.

    `app.state.service` is what works behind it; its `not_ready` says why /readyz answers 503.
    """
    metrics = Metrics(workers)
    service = Service(workers, options, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        service.start()
        tasks = [asyncio.create_task(service.warm_up())]
        for worker in workers.values():
            if worker.source is not None and options.reload:
                looks = watch(worker, worker.source, options.reload, options.max_batch, metrics)
                tasks.append(asyncio.create_task(looks))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await service.close()

    # FastAPI's own pages of documentation load scripts from elsewhere, and this server's pages load nothing from there.
    app = FastAPI(title="Vitral", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.add_middleware(Middleware, options=options, metrics=metrics, key=key, is_ending=lambda: service.is_ending)
    app.add_exception_handler(RequestValidationError, _wrong_parameter)
    app.add_exception_handler(HTTPException, _no_route)
    _add_images(app, service)
    _add_operations(app, service, metrics)

    app.include_router(explorer_router(service))
    return app


def _add_images(app: FastAPI, service: Service) -> None:
    """What works on images."""
    post = partial(app.post, responses=PROBLEMS, tags=["images"])

    async def images(request: Request, model: str | None) -> tuple[ModelWorker, Images, dict[str, Any]]:
        exchange: Exchange = request.scope["exchange"]
        worker = service.pick(model)
        exchange.facts["model"] = worker.name
        read = await read_images(request, min(service.options.max_images, service.options.max_queue))
        exchange.facts["images"] = len(read.uploads)
        return worker, read, exchange.facts

    async def texts(request: Request, worker: ModelWorker, stream: bool) -> Response:
        """What a model writes: for texts, or for images."""
        facts = request.scope["exchange"].facts
        keys = search_keys(request.query_params)
        if worker.writer is not None and worker.writer.reads_images:
            _, read, _ = await images(request, worker.name)
            sources, many = read.uploads, read.many
        else:
            facts["model"] = worker.name
            found = await read_texts(request, service.options)
            sources, many, keys, stream = found.texts, found.many, keys | found.search, stream or found.stream
            facts["texts"] = len(sources)
        answers, facts["batch"] = await service.write(worker, sources, keys, stream)
        if isinstance(answers, TextStream):
            return answers
        return answer_json(answers if many else answers[0])

    @post(
        "/v1/predict", openapi_extra=SOURCES,
        response_model=Predicted | Detected | WrittenText | list[Predicted] | list[Detected] | list[WrittenText],
    )  # fmt: skip
    async def predict(request: Request, query: Annotated[_Predict, Query()]) -> Response:
        """The likeliest classes of an image, its boxes, or what a model writes for a text or an image; or a list."""
        worker = service.pick(query.model)
        query.require_known(worker)
        if worker.writer is not None:
            return await texts(request, worker, query.stream or EVENTS in request.headers.get("accept", ""))
        worker, read, facts = await images(request, query.model)
        answers, facts["batch"] = await service.predict(worker, read.uploads, query.topk)
        return answer_json(answers if read.many else answers[0])

    @post("/v1/embed", openapi_extra=IMAGES, response_model=Embedded | list[Embedded])
    async def embed(request: Request, query: Annotated[_Embed, Query()]) -> Response:
        """What the encoder makes of an image, or of each of several as a list."""
        worker, read, _ = await images(request, query.model)
        answers = await service.embed(worker, read.uploads, query.features)
        return Response(f"[{', '.join(answers)}]" if read.many else answers[0], media_type="application/json")

    @post("/v1/attention", openapi_extra=IMAGES, response_model=Attended)
    async def attention(request: Request, query: Annotated[_Attention, Query()]) -> Response:
        """How a token of an image shares its attention out among all, in every layer and head."""
        worker, read, _ = await images(request, query.model)
        if len(read.uploads) > 1:
            raise APIError(400, "one_image", "attention is of one image at a time")
        layers = None if query.layers is None else [int(number) for number in query.layers.split(",")]
        return answer_json(await service.attention(worker, read.uploads[0], query.token, layers))

    _ = predict, embed, attention


def _add_operations(app: FastAPI, service: Service, metrics: Metrics) -> None:
    """What says how the server is."""
    get = partial(app.get, tags=["operations"])

    @get("/v1/models", response_model=list[Model | TextModel])
    async def models() -> Response:
        """The models that are served; the first one is the default."""
        return answer_json([service.describe(worker) for worker in service.workers.values()])

    @get("/healthz")
    async def health() -> Response:
        """200 as long as the process lives."""
        return answer_json({"status": "ok"})

    @get("/readyz")
    async def ready() -> Response:
        """200 once all models have computed, 503 before and while the server ends."""
        if service.not_ready is not None:
            return refusal(APIError(503, "not_ready", service.not_ready, {"Retry-After": "1"}))
        return answer_json({"status": "ready"})

    @get("/metrics")
    async def counted() -> Response:
        """What Prometheus reads."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _ = models, health, ready, counted


async def _wrong_parameter(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    texts = [f"{each['loc'][-1]}: {each['msg']}, got {each['input']!r}" for each in error.errors()]
    return refusal(APIError(422, "bad_parameter", "; ".join(texts)))


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "no_route", 405: "wrong_method"}.get(error.status_code, "http")
    path = shortened(request.url.path)
    message = f"{request.method} {path}: {error.detail}; /openapi.json lists what there is"
    return refusal(APIError(error.status_code, code, message, dict(error.headers or {})))
