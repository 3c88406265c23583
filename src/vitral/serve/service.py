"""The models of a server: from undecoded images to answers in the form that the commands print."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import torch
from torch import Tensor

from vitral.data.image_spec import ImageSpec
from vitral.interpret.attention import grid_of, token_attention
from vitral.interpret.tokens import default_token, pick, require_transformer, token_names
from vitral.models.token_reduction import reduced_by
from vitral.predictor import Floats, Predictor
from vitral.serve.batcher import Batcher, Work, warm_up
from vitral.serve.config import ServeConfig
from vitral.serve.decoder_pool import PICTURES, Decoders
from vitral.serve.decoding import DecodedImage
from vitral.serve.metrics import Metrics
from vitral.serve.middleware import as_json
from vitral.serve.model_worker import APIError, ModelWorker, Upload
from vitral.serve.text_answers import TextStream, row, writing
from vitral.serve.text_requests import search_of
from vitral.text_predictor import TextPredictor
from vitral.weights.text_folder import TextFolderConfig

log = logging.getLogger("vitral")

ENDING = "the server is ending"
_WARMING = "the models are warming up"
_NUMBERS = 2**22  # of features in one answer: some 90 MB of JSON


class Service:
    """Everything behind the routes. `start` and `close` belong to the event loop that serves. `not_ready`: why /readyz
    answers 503; `has_failed`: it is, because a model could not compute."""

    def __init__(self, workers: Mapping[str, ModelWorker], options: ServeConfig, metrics: Metrics) -> None:
        self.workers, self.options, self._metrics = workers, options, metrics
        self.not_ready: str | None = _WARMING
        self.has_failed = False
        self._full_size = 0  # pixels of all images that are in memory as large as they are
        for worker in workers.values():
            worker.limit = options.max_queue
        self._batchers = {name: Batcher(worker, options.max_batch, metrics) for name, worker in workers.items()}
        self.decoders = Decoders(options)

    def start(self) -> None:
        """Begin to compute what comes."""
        for batcher in self._batchers.values():
            batcher.start()

    async def warm_up(self) -> None:
        """Run every model once; the server reports ready afterwards."""
        failed: list[str] = []
        for worker in self.workers.values():
            try:
                await worker.run(lambda model=worker.model: warm_up(model, self.options.max_batch))
            except Exception:  # memory that is not there, say
                log.exception("%s cannot compute %d images at once (max_batch)", worker.name, self.options.max_batch)
                failed.append(worker.name)
        self.has_failed = bool(failed)
        if self.not_ready == _WARMING:  # and not on its way out by now
            self.not_ready = f"cannot compute: {', '.join(failed)}; the log says why" if failed else None

    @property
    def is_ending(self) -> bool:
        """Whether a signal has come."""
        return self.not_ready == ENDING

    async def close(self) -> None:
        """End what still works."""
        for batcher in self._batchers.values():
            await batcher.close()
        self.decoders.close()
        for worker in self.workers.values():
            worker.close()

    def pick(self, model: str | None) -> ModelWorker:
        """The model of that name, or the first one. Raises APIError, 404, for another name."""
        worker = next(iter(self.workers.values())) if model is None else self.workers.get(model)
        if worker is None:
            raise APIError(404, "no_model", f"no model {model!r}; there are: {', '.join(self.workers)}")
        return worker

    async def predict(
        self, worker: ModelWorker, uploads: Sequence[Upload], topk: int
    ) -> tuple[list[dict[str, Any]], int]:
        """What `vitral predict` prints of each image, and how many images the last one was computed with."""
        predictor = worker.predictor
        predictor.require_answers()
        with worker.places(len(uploads)):
            async with self.ready(predictor, uploads) as images:
                work = Work(predictor, lambda x: predictor.task.compact(predictor.forward(x)).cpu().unbind())
                sizes = [image.size for image in images]
                computed = await self._batchers[worker.name].compute(work, tensors(images))
        answers = predictor.answers(torch.stack([each.found for each in computed]), topk, sizes)
        rows = [
            {"image": _called(upload, number), **answer}
            for number, (upload, answer) in enumerate(zip(uploads, answers, strict=True))
        ]
        return rows, computed[-1].batch

    async def write(
        self, worker: ModelWorker, sources: Sequence[str] | Sequence[Upload], keys: Mapping[str, Any], stream: bool
    ) -> tuple[list[dict[str, Any]] | TextStream, int]:
        """What a model writes for each text or image, or the stream of the text of one; and how many sources were
        computed at last. keys: of the search. Raises UserError for a source or a search that does not fit the model."""
        predictor = worker.writer
        assert predictor is not None
        search = search_of(keys, predictor, self.options, stream)
        if stream and len(sources) > 1:
            raise APIError(400, "one_source", "a stream is of one text or image at a time")
        names = list[tuple[str, str | int]]()
        for number, source in enumerate(sources):
            names.append(("source", number) if isinstance(source, str) else ("image", _called(source, number)))
        inputs = await self.prepared(predictor, sources)
        if stream:
            return TextStream(worker, predictor, inputs, search, self._metrics, names[0]), 1
        numbered = [(each, number) for number, each in enumerate(inputs)]
        with worker.places(len(numbered)):
            computed = await self._batchers[worker.name].compute(writing(predictor, search), numbered)
        return [row(name, each.found) for name, each in zip(names, computed, strict=True)], computed[-1].batch

    async def prepared(self, predictor: TextPredictor, sources: Sequence[str] | Sequence[Upload]) -> Tensor:
        """Texts or images as a model that writes text takes them. Raises UserError for one that it cannot read."""
        spec = predictor.config.preprocessing
        if spec is None:
            return await asyncio.to_thread(predictor.preprocess, sources)
        return torch.stack(await self._inputs(spec, [each for each in sources if isinstance(each, Upload)]))

    async def embed(self, worker: ModelWorker, uploads: Sequence[Upload], features: str) -> list[str]:
        """What `vitral embed` prints of each image, as JSON. Raises APIError, 413, where that would be too much."""
        predictor = worker.predictor
        _ = predictor.model  # an export has none
        rows: list[Floats] = []
        with worker.places(len(uploads)):
            images = await self._inputs(predictor.config.preprocessing, uploads)
            for start in range(0, len(images), self.options.max_batch):
                batch = images[start : start + self.options.max_batch]
                found = await worker.run(lambda x=batch: predictor.forward(x, features).cpu(), len(batch))
                self._metrics.computed(worker.name, len(batch))
                rows += list(found.numpy())
                count = rows[0].size * len(uploads)
                if count > _NUMBERS:
                    message = f"features={features} of {len(uploads)} images are {count:,} numbers"
                    raise APIError(413, "too_large_answer", f"{message}, and an answer may hold {_NUMBERS:,}")
        return await asyncio.to_thread(_embedded, uploads, rows)

    async def attention(
        self, worker: ModelWorker, upload: Upload, token: str | None, layers: Sequence[int] | None
    ) -> dict[str, Any]:
        """`interpret.attention.token_attention` of the torch model, whatever engine predicts."""
        predictor = worker.predictor
        require_transformer(predictor.model, "attention")
        with worker.places(1):
            (image,) = await self._inputs(predictor.config.preprocessing, [upload])
            found = await worker.run(lambda: _attention(predictor, image, token, layers))
        return {"image": _called(upload, 0), **found}

    @asynccontextmanager
    async def ready(self, predictor: Predictor, uploads: Sequence[Upload]) -> AsyncGenerator[list[DecodedImage]]:
        """Images as the model's engine takes them, which have room in memory as long as the context lasts: those for an
        export wait as large as they are, others as the small ones that models take.

        Raises APIError that names the first one that is none; 413 for images that will never have room, 429 for such
        that have it later.
        """
        if predictor.engine.takes == "resized":
            yield await self.decoders.prepare(self._spec(predictor.config.preprocessing), uploads, "fit")
            return
        found = await self.decoders.prepare(self._spec(predictor.config.preprocessing), uploads, "count")
        count, room = sum(each.counted for each in found), PICTURES * self.options.max_pixels
        if count > room:
            message = f"this model takes images as they are, and these have {count:,} pixels together; at most {room:,}"
            raise APIError(413, "too_many_pixels", f"{message} are held at once ({PICTURES} times max_pixels)")
        if self._full_size + count > room:
            raise APIError(429, "busy", "too many large images at once", {"Retry-After": "1"})
        self._full_size += count
        try:
            yield await self.decoders.prepare(self._spec(predictor.config.preprocessing), uploads, "decode")
        finally:
            self._full_size -= count

    async def _inputs(self, spec: ImageSpec, uploads: Sequence[Upload]) -> list[Tensor]:
        """Images as the model itself takes them."""
        return tensors(await self.decoders.prepare(self._spec(spec), uploads, "fit"))

    def _spec(self, spec: ImageSpec) -> ImageSpec:
        return spec.model_copy(update={"max_pixels": self.options.max_pixels})

    def describe(self, worker: ModelWorker) -> dict[str, Any]:
        """What /v1/models says of a model."""
        config, engine, spec = worker.model.config, worker.model.engine, worker.model.config.preprocessing
        kept = ("recipe", "seed", "metrics", "source", "weights")
        own: dict[str, Any] = {}
        if isinstance(config, TextFolderConfig):
            c = config.architecture
            own = {"task": config.task, "reads": "image" if c.reads_images else "text", "vocabulary": c.vocabulary,
                   "search": config.search.model_dump(mode="json")}  # fmt: skip
        else:
            own = {"classes": len(config.classes)}
        if spec is not None:
            own |= {"image_size": spec.image_size, "channels": spec.channels}
        return {
            "name": worker.name, "architecture": config.name, **own,
            "engine": engine.name, "precision": engine.precision,
            "loaded": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(worker.loaded)),
            "provenance": {key: config.provenance[key] for key in kept if key in config.provenance},
            "failure": worker.failure,
        }  # fmt: skip


def _called(upload: Upload, number: int) -> str | int:
    return number if upload.name is None else upload.name


def _embedded(uploads: Sequence[Upload], rows: Sequence[Floats]) -> list[str]:
    return [
        f'{{"image": {as_json(_called(upload, number))}, "embedding": {_numbers(rows[number])}}}'
        for number, upload in enumerate(uploads)
    ]


def _numbers(values: Floats) -> str:
    """JSON made row by row: while one list or text is made, Python lets no other thread work."""
    if values.ndim > 1:
        return f"[{', '.join(map(_numbers, values))}]"
    return as_json(values.tolist())


def tensors(found: Sequence[DecodedImage]) -> list[Tensor]:
    """The arrays of decoded images."""
    return [torch.from_numpy(each.array_CHW) for each in found if each.array_CHW is not None]


def _attention(
    predictor: Predictor, image_CHW: Tensor, token: str | None, layers: Sequence[int] | None
) -> dict[str, Any]:
    model = require_transformer(predictor.model, "attention")
    images_BCHW = image_CHW[None].to(predictor.device)
    with reduced_by(model, None), torch.inference_mode():  # a map of all tokens is requested
        attention_LhT = token_attention(model, images_BCHW, token, layers)[0].float().cpu()
    chosen = pick(layers, model.config.depth, "layers")
    counts = [model.config.heads_of_blocks[layer] for layer in chosen]
    return {
        "grid": grid_of(model, images_BCHW), "prefix": token_names(model.config),
        "token": token or default_token(model.config), "layers": chosen, "heads": list(range(attention_LhT.shape[1])),
        # Of a pruned model layers may have fewer heads than others.
        "attention": [each_hT[:count].tolist() for each_hT, count in zip(attention_LhT, counts, strict=True)],
    }  # fmt: skip
