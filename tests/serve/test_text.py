"""Models that write text, over HTTP: what they answer, streams, limits and bad requests."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from tests.models.text_models import image_writer, text_writer
from tests.serve.serving import base64_of, files, picture, with_application
from vitral.models.search_config import SearchConfig
from vitral.text_predictor import TextPredictor

pytest.importorskip("jiwer")
Client = httpx.AsyncClient
TEXTS = ["abc", "eca", "b", "abcdea"]


@pytest.fixture(scope="module")
def writer() -> TextPredictor:
    return text_writer()


def rows_of(found: list[Any], key: str = "source") -> list[dict[str, Any]]:
    return [
        {key: number, "predictions": [{"text": w.text, "score": w.score, "finished": w.finished} for w in each]}
        for number, each in enumerate(found)
    ]


def events(body: str) -> list[tuple[str, Any]]:
    """Names and contents of server-sent events."""
    parts = [part.split("\n") for part in body.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in parts]


@pytest.mark.parametrize(
    "keys", [{}, {"search": "beam", "beams": 3, "n_best": 3}, {"search": "sample", "seed": 5, "top_k": 4}]
)
def test_answers_are_those_of_python(writer: TextPredictor, keys: dict[str, Any]) -> None:
    search = SearchConfig(max_length=8, **keys)
    expected = rows_of(writer.write(TEXTS, search))

    async def use(client: Client) -> None:
        answer = await client.post("/v1/predict", json={"texts": TEXTS, "search": {"max_length": 8, **keys}})
        assert answer.status_code == 200, answer.text
        assert answer.json() == expected
        query = {"search.max_length": 8, **{f"search.{name}": value for name, value in keys.items()}}
        again = await client.post("/v1/predict", params=query, json={"texts": TEXTS})
        assert again.json() == expected
        one = await client.post("/v1/predict", params=query, json={"text": TEXTS[0]})
        best = one.json()["predictions"][0]
        assert best["text"] == expected[0]["predictions"][0]["text"]
        assert best["score"] == pytest.approx(expected[0]["predictions"][0]["score"], abs=1e-5)

    with_application(writer, use, max_batch=64)


def test_a_batch_answers_as_one_by_one(writer: TextPredictor) -> None:
    async def use(client: Client) -> None:
        together = (await client.post("/v1/predict", json={"texts": TEXTS})).json()
        for number, text in enumerate(TEXTS):
            (alone,) = (await client.post("/v1/predict", json={"texts": [text]})).json()
            assert alone["predictions"][0]["text"] == together[number]["predictions"][0]["text"]
            assert alone["predictions"][0]["score"] == pytest.approx(
                together[number]["predictions"][0]["score"], abs=1e-5
            )
        counted = (await client.get("/metrics")).text
        assert 'vitral_images_total{model="one"} 8.0' in counted
        assert 'vitral_batch_images_count{model="one"} 6.0' in counted  # two of two texts, four of one
        assert 'vitral_queue_images{model="one"} 0.0' in counted

    with_application(writer, use, max_batch=2)


@pytest.mark.parametrize("search", [{}, {"search": "sample", "seed": 3}])
def test_a_stream_is_the_answer_in_pieces(writer: TextPredictor, search: dict[str, Any]) -> None:
    async def use(client: Client) -> None:
        body = {"text": "abcd", "search": search}
        whole = (await client.post("/v1/predict", json=body)).json()
        asked = await client.post("/v1/predict", json={**body, "stream": True})
        accepted = await client.post("/v1/predict", json=body, headers={"Accept": "text/event-stream"})
        queried = await client.post("/v1/predict?stream=true", json=body)
        for answer in (asked, accepted, queried):
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-model"] == "one"
            *pieces, (last, found) = events(answer.text)
            assert {name for name, _ in pieces} <= {"piece"}
            assert last == "done"
            assert found == whole
            assert "".join(piece["text"] for _, piece in pieces) == whole["predictions"][0]["text"]
        assert len(pieces) > 1
        assert 'vitral_queue_images{model="one"} 0.0' in (await client.get("/metrics")).text

    with_application(writer, use)


BAD: list[tuple[dict[str, Any], int, str]] = [
    ({"json": {"text": "aXb"}}, 422, "no such characters"),
    ({"json": {"text": " "}}, 422, "empty text"),
    ({"json": {"texts": ["a", "abcdeabcdeabcdeabcde"]}}, 422, "text 1: a text is longer"),
    ({"json": {"text": "a" * 51}}, 413, "51 characters"),
    ({"json": {"texts": ["a"] * 6}}, 413, "5 texts"),
    ({"json": {"texts": ["a"] * 200}}, 413, "5 texts"),
    ({"json": {"texts": []}}, 400, "no text"),
    ({"json": {"text": 3}}, 400, "expected:"),
    ({"json": {"text": "a", "texts": ["a"]}}, 400, "expected:"),
    ({"json": {"text": "a", "more": 1}}, 400, "unknown field 'more'"),
    ({"json": {"image": "AAAA"}}, 400, "expected:"),
    ({"json": {"text": "a", "search": 3}}, 400, "expected:"),
    ({"json": {"text": "\ud800"}}, 422, "not Unicode"),
    ({"json": {"text": "a", "search": {"search": "beam", "beams": 9}}}, 422, "max_beams"),
    ({"json": {"text": "a", "search": {"n_best": 3}}}, 422, "n_best=3"),
    ({"json": {"text": "a", "search": {"beams": 3}}}, 422, "beams"),
    ({"json": {"text": "a", "search": {"max_length": 999}}}, 422, "longer than the model"),
    ({"json": {"text": "a", "search": {"nothing": 1}}}, 422, "nothing"),
    ({"json": {"text": "a", "search": {"length_penalty": 400.0}}}, 422, "10 or less"),
    ({"json": {"text": "a", "search": {"length_penalty": -1e308}}}, 422, "length_penalty"),
    ({"json": {"text": "a", "search": {"search": "sample", "temperature": 1e308}}}, 422, "temperature"),
    ({"json": {"text": "a", "search": {"min_length": 16, "max_length": 16}}}, 422, "no place for the end"),
    ({"json": {"text": "a", "search": {"allowed": "abX"}}}, 422, "no token of the model writes such characters"),
    ({"json": {"text": "a"}, "params": {"search.allowed": "12"}}, 422, "no token of the model writes such"),
    ({"json": {"text": "a", "stream": True, "search": {"search": "beam", "beams": 2}}}, 422, "cannot be streamed"),
    ({"json": {"texts": ["a", "b"], "stream": True}}, 400, "one text or image at a time"),
    ({"json": {"text": "a"}, "params": {"topk": 3}}, 422, "topk"),
    ({"json": {"text": "a"}, "params": {"other": 3}}, 422, "other"),
    ({"json": {"text": "a"}, "params": {"search.beams": "x"}}, 422, "beams"),
    ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "no JSON"),
    ({"content": b'{"text": ' + b"[" * 3000, "headers": {"Content-Type": "application/json"}}, 400, "expected:"),
    ({"content": b" " * 9999, "headers": {"Content-Type": "application/json"}}, 413, "bytes"),
    ({"content": b"abc", "headers": {"Content-Type": "text/plain"}}, 415, "text/plain is not taken"),
    ({"content": b"abc", "headers": {"Content-Type": "image/png"}}, 415, "this model reads texts"),
]  # fmt: skip


def test_bad_requests_get_one_message(writer: TextPredictor) -> None:
    async def use(client: Client) -> None:
        for given, status, says in BAD:
            keys: dict[str, Any] = dict(given)
            if "json" in keys:
                keys |= {"content": json.dumps(keys.pop("json")), "headers": {"Content-Type": "application/json"}}
            answer = await client.post("/v1/predict", **keys)
            assert answer.status_code == status, (keys, answer.text)
            assert says in answer.json()["error"]["message"], (keys, answer.text)
        for route in ("/v1/embed", "/v1/attention"):
            answer = await client.post(route, files=files(picture(0)))
            assert answer.status_code == 422
            assert "writes text" in answer.json()["error"]["message"]

    with_application(writer, use, max_texts=5, max_characters=50, max_beams=8, max_bytes=8000)


SEARCHES: list[dict[str, Any]] = [
    {}, {"search": "beam", "beams": 3, "n_best": 2}, {"search": "sample", "seed": 5, "n_best": 2},
]  # fmt: skip


@pytest.mark.parametrize("name", ["transformer_tiny", "lstm_tiny", "image", "ctc"])
def test_requests_that_wait_are_computed_together(name: str) -> None:
    """Of any lengths; and their answers are those that each gets alone."""
    model = {"image": image_writer, "ctc": lambda: image_writer("ctc")}.get(name, lambda: text_writer(name))()
    searches = SEARCHES[:2] if name == "ctc" else SEARCHES
    if model.reads_images:
        sources: list[dict[str, Any]] = [{"image": base64_of(picture(number, "L", (40, 8)))} for number in range(4)]
    else:
        sources = [{"text": text} for text in TEXTS]

    async def use(client: Client) -> None:
        host, gate = client.hosts["one"], threading.Event()  # type: ignore[attr-defined]
        queue = client.service._batchers["one"]._entries  # type: ignore[attr-defined]
        for search in searches:
            length = {} if name == "ctc" else {"max_length": 8}
            query = {f"search.{key}": value for key, value in {**length, **search}.items()}

            async def ask(source: dict[str, Any], query: dict[str, Any] = query) -> Any:
                answer = await client.post("/v1/predict", params=query, json=source)
                assert answer.status_code == 200, answer.text
                return answer.json()["predictions"]

            alone = [await ask(source) for source in sources]
            before = await counted(client)
            gate.clear()
            asked = [asyncio.create_task(host.run(gate.wait))]
            for number, source in enumerate(sources):  # the first is taken as it comes, and waits for the model
                asked.append(asyncio.create_task(ask(source)))
                while len(queue) != number or not host.waiting > number:
                    await asyncio.sleep(0.01)
            gate.set()
            _, *together = await asyncio.gather(*asked)
            assert await counted(client) - before == 2
            for one, other in zip(alone, together, strict=True):
                assert [each["text"] for each in other] == [each["text"] for each in one]
                assert [each["score"] for each in other] == pytest.approx([each["score"] for each in one], abs=1e-4)

    async def counted(client: Client) -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith("vitral_batch_images_count"))

    with_application(model, use, max_batch=64)


def test_other_searches_are_computed_apart(writer: TextPredictor) -> None:
    async def use(client: Client) -> None:
        keys: list[dict[str, Any]] = [{}, {"max_length": 3}, {"search": "beam", "beams": 2}, {}]
        asked = [client.post("/v1/predict", json={"text": "abc", "search": each}) for each in keys]
        found = await asyncio.gather(*asked)
        for answer, each in zip(found, keys, strict=True):
            search = SearchConfig.model_validate({"max_length": 10, **each})
            (expected,) = writer.write(["abc"], search)
            assert answer.json()["predictions"][0]["text"] == expected[0].text

    with_application(writer, use)


@pytest.mark.parametrize("decoder", ["transformer", "ctc"])
def test_images_are_read(decoder: str) -> None:
    model = image_writer(decoder)
    images = [picture(number, "L", (40, 8)) for number in range(3)]
    expected = model.write(images)

    async def use(client: Client) -> None:
        answer = await client.post("/v1/predict", files=files(*images, names=("a.png", "b.png", "c.png")))
        assert [row["image"] for row in answer.json()] == ["a.png", "b.png", "c.png"]
        for row, (found, *_) in zip(answer.json(), expected, strict=True):
            assert row["predictions"][0]["text"] == found.text
            assert row["predictions"][0]["score"] == pytest.approx(found.score, abs=1e-5)
        beam = await client.post("/v1/predict?search.search=beam&search.beams=2", json={"image": base64_of(images[0])})
        assert beam.status_code == 200
        streamed = await client.post("/v1/predict?stream=true", json={"image": base64_of(images[0])})
        if decoder == "ctc":
            assert streamed.status_code == 422
            assert "CTC" in streamed.json()["error"]["message"]
        else:
            assert events(streamed.text)[-1][1]["predictions"][0]["text"] == expected[0][0].text
        text = await client.post("/v1/predict", json={"text": "abc"})
        assert text.status_code == 400

    with_application(model, use)


def test_a_model_that_fails_says_so(writer: TextPredictor) -> None:
    broken = text_writer()
    with torch.no_grad():
        for parameter in broken.model.parameters():
            parameter.fill_(float("nan"))

    async def use(client: Client) -> None:
        client.hosts["one"].model = broken  # type: ignore[attr-defined]
        whole = await client.post("/v1/predict", json={"text": "abc"})
        stream = await client.post("/v1/predict", json={"text": "abc", "stream": True})
        for answer in (whole, stream):
            assert answer.status_code == 500
            assert answer.json()["error"]["code"] == "not_finite"
        assert (await client.post("/v1/predict", json={"text": "abc"}, headers={"Host": "x"})).status_code == 421

    with_application(writer, use)
    assert np.isfinite(writer.write(["abc"])[0][0].score)
