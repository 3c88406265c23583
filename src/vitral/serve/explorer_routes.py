"""The explorer: a page that shows how a model sees an image, one for models that write text, and their numbers.

The numbers of images are those of `vitral.interpret`, float32, little-endian, with their shape in the header `X-Shape`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi import Path as InPath
from fastapi.responses import Response
from torch import Tensor

from vitral.interpret.rollout import Fuse
from vitral.predictor import Predictor
from vitral.serve import explore_texts as texts
from vitral.serve import explore_views as views
from vitral.serve.explore_samples import sample, sample_names
from vitral.serve.image_cache import MOST_MAP_BYTES, CachedImage, ImageCache
from vitral.serve.middleware import answer_json, shortened
from vitral.serve.model_worker import APIError, ModelWorker, Upload, failure
from vitral.serve.request_parsing import read_images
from vitral.serve.service import Service
from vitral.serve.text_requests import SEARCH, read_texts, search_keys, search_of

T = TypeVar("T")
Key = Annotated[str, InPath(pattern="^[0-9a-f]{64}$", description="SHA-256 of the image's bytes")]
Model = Annotated[str | None, Query(description="a served model's name; without it the first one")]
Token = Annotated[str | None, Query(description="cls, distill, register:0, mean, or a patch as row,column")]
Rank = Annotated[int, Query(ge=1, le=100, description="which of the texts that a search gave; 1 is the best")]
TopK = Annotated[int, Query(ge=1, le=100, description="so many of the likeliest classes")]

MOST_EPS, MOST_STEPS = 16 / 255, 20  # of an attack, which takes two passes per step

_FOLDER = Path(__file__).with_name("explorer")
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_GONE = "The server no longer keeps this image: give it again."


def explorer_router(service: Service) -> APIRouter:
    """Routes of the explorer: the page at `/`, its files, and its data under /v1/explore.

    What is wrong is raised as `APIError` or `UserError`.
    """
    router = APIRouter(tags=["explorer"])
    explorer = _Explorer(service)
    router.add_api_route("/", explorer.page, include_in_schema=False)
    router.add_api_route("/texts", _file_of("texts.html"), include_in_schema=False)
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _TYPES:
            router.add_api_route(f"/explorer/{path.name}", _file_of(path.name), include_in_schema=False)
    get = {
        "models": explorer.models, "samples/{name}": explorer.sample, "{key}": explorer.again,
        "{key}/attention": explorer.attention, "{key}/rollout": explorer.rollout,
        "{key}/similarity": explorer.similarity, "{key}/norms": explorer.norms, "{key}/lens": explorer.lens,
        "{key}/merge": explorer.merge, "{key}/attack": explorer.attack,
    }  # fmt: skip
    for path, endpoint in get.items():
        router.add_api_route(f"/v1/explore/{path}", endpoint, response_class=Response)
    router.add_api_route("/v1/explore", explorer.look, methods=["POST"], response_class=Response)
    router.add_api_route("/v1/explore/text", explorer.text, methods=["POST"], response_class=Response)
    return router


def _require_known(query: Mapping[str, str]) -> None:
    """Raise APIError, 422, for a parameter that has no effect on a text."""
    for name, value in query.items():
        if name not in ("model", "rank") and not name.startswith(SEARCH):
            text = f"{name}: Extra inputs are not permitted, got {value!r}"
            raise APIError(422, "bad_parameter", shortened(text))


class _Explorer:
    """Data of the page. Images are cached for all visitors alike: an id is the SHA-256 of an image's bytes, which
    nobody guesses."""

    def __init__(self, service: Service) -> None:
        self.service, self.kept = service, ImageCache()
        self._page, self._text_page = _file_of("index.html"), _file_of("texts.html")

    async def page(self, request: Request) -> Response:
        """The page, of models that write text where there are no others."""
        has_others = any(worker.writer is None for worker in self.service.workers.values())
        return await (self._page if has_others else self._text_page)(request)

    def _pick(self, model: str | None) -> ModelWorker:
        """The model of that name, or the first one that can be explored. Raises APIError, 404, where there is none."""
        worker = self.service.pick(model)
        if model is None and worker.writer is not None:
            others = (each for each in self.service.workers.values() if each.writer is None)
            worker = next(others, worker)
        if worker.writer is not None:
            message = f"{worker.name} writes text: its answers and alignments are at POST /v1/explore/text"
            raise APIError(404, "writes_text", message)
        return worker

    async def models(self) -> Response:
        """The served models, those that write text apart, and what can be seen of each."""
        found: dict[str, list[dict[str, Any]]] = {"models": [], "writers": []}
        for name, worker in self.service.workers.items():
            if (writer := worker.writer) is not None:
                each = texts.describe(writer, self.service.options.max_beams)
            else:
                each = await worker.compute(views.describe)
            names: dict[str, str] = {}
            if (size := each.get("image_size")) is not None:
                names = sample_names(each["channels"], strips=writer is not None and size[1] >= 2 * size[0])
            samples = [{"id": key, "title": title} for key, title in names.items()]
            found["writers" if writer else "models"].append(each | {"name": name, "samples": samples})
        return answer_json(found)

    async def sample(self, name: str) -> Response:
        """A picture to try, as a file."""
        found = await asyncio.to_thread(sample, name)
        if found is None:
            raise APIError(404, "no_sample", f"There is no sample {name!r}.")
        return Response(found[0], media_type=found[1], headers={"Cache-Control": "no-cache"})

    async def look(self, request: Request, model: Model = None, topk: TopK | None = None) -> Response:
        """The answer to one image, the model's input as a PNG, and the id under which its views are requested."""
        worker = self._pick(model)
        uploads = (await read_images(request, self.service.options.max_images)).uploads
        if len(uploads) != 1:
            raise APIError(422, "one_image", f"One image is expected at a time, not {len(uploads)}.")
        return await self._answer(worker, uploads[0], topk)

    async def again(self, key: Key, model: Model = None, topk: TopK | None = None) -> Response:
        """The same of an image that was given before, to this model or another, and is still kept."""
        worker = self._pick(model)
        data = self.kept.data(key)
        if data is None:
            raise APIError(404, "gone", _GONE)
        return await self._answer(worker, Upload(None, data), topk)

    async def text(self, request: Request, model: Model = None, rank: Rank = 1) -> Response:
        """What a model writes for a text or an image, as for /v1/predict with `search.KEY` in the query; and of one of
        the texts each token's scores and what was read for it."""
        worker = self.service.pick(model)
        if model is None and worker.writer is None:
            worker = next((each for each in self.service.workers.values() if each.writer is not None), worker)
        if (writer := worker.writer) is None:
            raise APIError(404, "writes_no_text", f"{worker.name} writes no text: POST /v1/explore shows it")
        _require_known(request.query_params)
        keys = search_keys(request.query_params)
        if writer.reads_images:
            sources = (await read_images(request, self.service.options.max_images)).uploads
        else:
            given = await read_texts(request, self.service.options)
            if given.stream:
                raise APIError(422, "bad_parameter", "stream: an answer of the explorer is not streamed")
            sources, keys = given.texts, keys | given.search
        if len(sources) != 1:
            raise APIError(422, "one_source", f"One text or image is expected at a time, not {len(sources)}.")
        search = search_of(keys, writer, self.service.options, stream=False)
        with worker.places(1):
            input_1 = await self.service.prepared(writer, sources)
            try:
                found = await worker.run(lambda: texts.look(writer, input_1, search, rank))
            except Exception as error:
                raise failure(worker, error) from None
        return answer_json({"model": worker.name, **found})

    async def _answer(self, worker: ModelWorker, upload: Upload, topk: int | None) -> Response:
        predictor = worker.predictor
        if topk is not None:
            predictor.task.refuse_topk(topk)
        with worker.places(1):
            key = await asyncio.to_thread(lambda: hashlib.sha256(upload.data).hexdigest())
            async with self.service.ready(predictor, [upload]) as (image,):
                found, x_CHW = await worker.run(lambda: views.answer(predictor, image, topk or 5))
        self.kept.put(worker.name, key, CachedImage(weakref.ref(predictor), x_CHW, upload.data))
        return answer_json({"id": key, "model": worker.name, **found})

    async def attention(self, key: Key, model: Model = None, token: Token = None) -> Response:
        """Attention from a token, and to it: [2, layers, heads, tokens]; NaN for heads that a layer lacks."""
        return _floats(await self._of_maps(key, model, lambda predictor, maps: views.attention(predictor, maps, token)))

    async def rollout(self, key: Key, model: Model = None, token: Token = None, fuse: Fuse = "mean") -> Response:
        """How much of each token reaches this one through all layers: [tokens]."""
        return _floats(
            await self._of_maps(key, model, lambda predictor, maps: views.rolled(predictor, maps, token, fuse))
        )

    async def similarity(self, key: Key, patch: str, model: Model = None) -> Response:
        """Cosine of a patch with all patches after each layer: [layers, patches]."""
        return _floats(await self._of(key, model, lambda predictor, it: views.similarity(predictor, it.x_CHW, patch)))

    async def norms(self, key: Key, model: Model = None) -> Response:
        """Length of each patch's token after each layer: [layers, patches]."""
        return _floats(await self._of(key, model, lambda predictor, it: views.norms(predictor, it.x_CHW)))

    async def lens(self, key: Key, model: Model = None, topk: TopK = 3) -> Response:
        """The answer after each layer."""
        return answer_json(await self._of(key, model, lambda predictor, it: views.lens(predictor, it.x_CHW, topk)))

    async def merge(
        self, key: Key, r: Annotated[int, Query(ge=0, le=100_000)], model: Model = None, topk: TopK = 3
    ) -> Response:
        """Token merging: which patches end in one token, the answer then, and the time of a pass with and without."""
        return answer_json(await self._of(key, model, lambda predictor, it: views.merged(predictor, it.x_CHW, r, topk)))

    async def attack(
        self, key: Key, eps: Annotated[float, Query(gt=0, le=MOST_EPS)], kind: views.AttackKind = "pgd",
        steps: Annotated[int, Query(ge=1, le=MOST_STEPS)] = 10, model: Model = None, topk: TopK = 5,
    ) -> Response:  # fmt: skip
        """The answer to the attacked image, and the id under which its views are requested."""
        worker = self._pick(model)
        (found, x_CHW), given = await self._of(
            key, model, lambda predictor, it: (views.attacked(predictor, it.x_CHW, kind, eps, steps, topk), it)
        )
        data = base64.b64decode(found["input"].partition(",")[2])
        own = hashlib.sha256(f"{key} {kind} {eps} {steps}".encode()).hexdigest()
        self.kept.put(worker.name, own, CachedImage(given.model, x_CHW, data))
        return answer_json({"id": own, "model": worker.name, **found})

    async def _of(self, key: str, model: str | None, function: Callable[[Predictor, CachedImage], T]) -> T:
        """What `function` makes of the kept image, on the model's thread."""
        worker, gone = self._pick(model), APIError(404, "gone", _GONE)
        given = self.kept.get(worker.name, key, worker.predictor)
        if given is None:
            raise gone

        def compute(predictor: Predictor) -> T:
            if given.model() is not predictor:  # replaced while this waited for its turn
                raise gone
            return function(predictor, given)

        return await worker.compute(compute)

    async def _of_maps(self, key: str, model: str | None, function: Callable[[Predictor, Iterable[Tensor]], T]) -> T:
        """The same of the image's attention maps, which stay for the next question unless they are too large; then no
        more than one is there at a time."""

        def compute(predictor: Predictor, given: CachedImage) -> tuple[CachedImage, list[Tensor] | None, T]:
            maps = views.attention_maps(predictor, given.x_CHW) if given.maps is None else given.maps
            kept = list(maps) if views.maps_bytes(predictor) <= MOST_MAP_BYTES else None
            return given, kept, function(predictor, maps if kept is None else kept)

        given, maps, found = await self._of(key, model, compute)
        if maps is not None:
            self.kept.keep_maps(given, maps)
        return found


def _floats(values: np.ndarray[Any, Any]) -> Response:
    """Numbers as they are in memory."""
    shape = ",".join(map(str, values.shape))
    data = np.ascontiguousarray(values, "<f4").tobytes()
    return Response(data, media_type="application/octet-stream", headers={"X-Shape": shape})


def _file_of(name: str) -> Callable[[Request], Awaitable[Response]]:
    """Gives out one file of the page, which a browser keeps as long as it is the same."""
    path = _FOLDER / name
    data = path.read_bytes()
    headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:32]}"', "Cache-Control": "no-cache"}

    async def give(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=_TYPES[path.suffix], headers=headers)

    return give
