"""Who may ask, how much, how fast; and what every answer carries."""

from __future__ import annotations

import asyncio
import io
import logging
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageFile
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Message, Receive, Send

from tests.helpers import random_model
from tests.serve.serving import URL, Slow, base64_of, files, picture, with_application
from vitral.predictor import Predictor, load
from vitral.serve import request_parsing, service
from vitral.serve.access_log import _Text
from vitral.serve.app import create_app
from vitral.serve.config import ServeConfig
from vitral.serve.metrics import Metrics
from vitral.serve.middleware import Middleware
from vitral.serve.model_worker import ModelWorker


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(random_model(tmp_path_factory.mktemp("m") / "m"), "cpu")


IMAGE = picture(0)
ICON = b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0\xff\xff\0\0\x16\0\0\0"  # of 16 x 16 pixels, it says; a PNG may follow
CUT_FORM = b"--b\r\nContent-Disposition: form-data; name=image\r\n\r\nabc"


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (IMAGE, "text/plain", 415, "content_type"),
        (IMAGE, "application/x-www-form-urlencoded", 415, "content_type"),
        (IMAGE, None, 415, "content_type"),
        (b"", "image/png", 400, "no_image"),
        (b"", "application/json", 400, "bad_json"),
        (b"[" * 100000, "application/json", 400, "bad_json"),
        (b'{"picture": "aa"}', "application/json", 400, "bad_json"),
        (b'{"image": "aa", "images": []}', "application/json", 400, "bad_json"),
        (b'{"image": 3}', "application/json", 400, "bad_json"),
        (b'{"images": "aa"}', "application/json", 400, "bad_json"),
        (b'{"images": []}', "application/json", 400, "no_image"),
        (b'{"image": "a!"}', "application/json", 422, "bad_image"),
        (b'{"image": "\xff"}', "application/json", 400, "bad_json"),
        (IMAGE, "multipart/form-data", 400, "bad_form"),
        (IMAGE, "multipart/form-data; boundary=b", 400, "bad_form"),
        (CUT_FORM, "multipart/form-data; boundary=b", 400, "bad_form"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400, "no_image"),
        (b"x" * 70000, "image/png", 413, "too_large"),
        (b"--b" + b"\r\n--bx" * 9000, "multipart/form-data; boundary=b", 413, "too_many_images"),
        (picture(0, size=(90, 90)), "image/png", 413, "too_many_pixels"),
        (ICON + picture(0, size=(90, 90)), "image/x-icon", 413, "too_many_pixels"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused(model: Predictor, content: bytes, kind: str | None, status: int, code: str) -> None:
    async def use(client: Any) -> None:
        headers = {} if kind is None else {"Content-Type": kind}
        answer = await client.post("/v1/predict", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await client.post("/v1/predict", files=files(IMAGE))).status_code == 200

    with_application(model, use, max_bytes=10**6 if kind == "application/json" else 60000, max_pixels=8000)


def test_pixels_are_counted_by_the_header(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture of 100 million pixels in a few kilobytes is refused before memory is taken."""
    load_pixels = ImageFile.ImageFile.load

    def watched(image: Any) -> Any:
        assert image.size != (10000, 10000)
        return load_pixels(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", watched)

    async def use(client: Any) -> None:
        answer = await client.post("/v1/predict", files=files(picture(0), _large(), names=("a.png", "b.png")))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_pixels")
        assert answer.json()["error"]["message"].startswith("b.png: 10000 x 10000")

    with_application(model, use)


def _large() -> bytes:
    out = io.BytesIO()
    Image.new("1", (10000, 10000)).save(out, "PNG")
    return out.getvalue()


def test_fields_and_parameters_that_mean_nothing_are_refused(model: Predictor) -> None:
    async def use(client: Any) -> None:
        answer = await client.post("/v1/predict", files=[("file", ("a.png", IMAGE, "image/png"))])
        assert answer.status_code == 400
        assert "'file'" in answer.json()["error"]["message"]
        for query in ("topK=3", "topk=0", "topk=x"):
            answer = await client.post(f"/v1/predict?{query}", files=files(IMAGE))
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_parameter")
        answer = await client.post("/v1/embed?features=all", files=files(IMAGE))
        assert "cls_avg" in answer.json()["error"]["message"]
        assert (await client.get("/v1/predict")).status_code == 405
        assert (await client.get("/nothing")).json()["error"]["code"] == "no_route"
        assert (await client.post("/v1/predict", files=files(*[IMAGE] * 4))).json()["error"][
            "code"
        ] == "too_many_images"
        images = {"images": [base64_of(IMAGE)] * 4}
        assert (await client.post("/v1/predict", json=images)).json()["error"]["code"] == "too_many_images"

    with_application(model, use, max_images=3)


def test_a_body_without_an_announced_length_is_counted_as_it_comes(model: Predictor) -> None:
    sent = [0]

    async def body() -> AsyncGenerator[bytes]:
        for _ in range(100):
            sent[0] += 1
            yield b"x" * 1000

    async def use(client: Any) -> None:
        answer = await client.post("/v1/predict", content=body(), headers={"Content-Type": "image/png"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        assert sent[0] <= 12

    with_application(model, use, max_bytes=10000)


def test_a_slow_body_is_408_while_others_are_served(model: Predictor) -> None:
    async def body() -> AsyncGenerator[bytes]:
        yield IMAGE[:10]
        await asyncio.sleep(20)
        yield IMAGE[10:]

    async def use(client: Any) -> None:
        slow = asyncio.create_task(client.post("/v1/predict", content=body(), headers={"Content-Type": "image/png"}))
        await asyncio.sleep(0.05)
        for _ in range(5):
            assert (await client.post("/v1/predict", files=files(IMAGE))).status_code == 200
        answer = await slow
        assert (answer.status_code, answer.json()["error"]["code"]) == (408, "slow_body")
        assert answer.headers["Connection"] == "close"

    with_application(model, use, body_seconds=0.5)


def test_slow_senders_of_large_bodies_keep_no_small_ones_out(model: Predictor) -> None:
    """Sixteen bodies of the largest size are held; of small ones there is room for more."""

    async def use(client: Any) -> None:
        end = asyncio.Event()

        async def body() -> AsyncGenerator[bytes]:
            yield b"x" * 32000
            await end.wait()

        def send(content: Any) -> Any:
            return client.post("/v1/predict", content=content, headers={"Content-Type": "image/png"})

        slow = [asyncio.create_task(send(body())) for _ in range(16)]
        while "vitral_requests_in_flight 17.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)
        assert (await send(IMAGE)).status_code == 200
        large = await send(b"x" * 3000)
        assert (large.status_code, large.json()["error"]["code"]) == (429, "busy")
        end.set()
        assert {(await task).status_code for task in slow} == {422}
        assert (await send(b"x" * 3000)).status_code == 422

    with_application(model, use, max_bytes=32000)


def test_a_key_is_wanted_where_there_is_one(model: Predictor) -> None:
    async def use(client: Any) -> None:
        for given in (None, "Bearer wrong", "Bearer", "Basic secret", "secret", "Bearer sécret"):
            headers = {} if given is None else {"Authorization": given.encode()}
            for method, path in (("POST", "/v1/predict"), ("GET", "/v1/models"), ("GET", "/v1/nothing")):
                answer = await client.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert "secret" not in answer.text
        headers = {"Authorization": "bearer secret"}
        assert (await client.post("/v1/predict", files=files(IMAGE), headers=headers)).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 200

    with_application(model, use, key="secret")


def test_pages_from_elsewhere_cannot_ask_a_local_server(model: Predictor) -> None:
    """Neither by a name of theirs that leads here, nor across origins; there is no CORS."""

    async def use(client: Any) -> None:
        for host, status in (
            ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 421),
            ("127.0.0.1.evil.example:8000", 421), ("localhost.evil.example", 421), ("[", 421), ("", 421),
        ):  # fmt: skip
            answer = await client.get("/healthz", headers={"Host": host})
            assert answer.status_code == status, host
        for origin, status in (("http://127.0.0.1:8000", 200), ("https://evil.example", 403), ("null", 403)):
            answer = await client.post("/v1/predict", files=files(IMAGE), headers={"Origin": origin})
            assert answer.status_code == status
            assert not [name for name in answer.headers if name.startswith("access-control")]

    with_application(model, use)


def test_a_server_for_others_takes_the_names_that_it_is_given(model: Predictor) -> None:
    async def ask(client: Any, *statuses: int) -> None:
        for host, status in zip(("vision.example", "elsewhere.example"), statuses, strict=True):
            assert (await client.get("/healthz", headers={"Host": host})).status_code == status

    with_application(model, lambda client: ask(client, 200, 200), host="0.0.0.0")
    with_application(model, lambda client: ask(client, 200, 421), host="0.0.0.0", allow_hosts=("vision.example",))
    with_application(model, lambda client: ask(client, 200, 421), allow_hosts=("Vision.example",))


def test_every_answer_carries_its_number_and_security_headers(
    model: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(client: Any) -> None:
        for path in ("/healthz", "/nothing", "/v1/predict"):
            answer = await client.get(path, headers={"X-Request-ID": "my-own.1"})
            assert answer.headers["X-Request-ID"] == "my-own.1"
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
        for odd in ("a b", "x" * 65, 'a"', ""):
            number = (await client.get("/healthz", headers={"X-Request-ID": odd})).headers["X-Request-ID"]
            assert len(number) == 16
        with caplog.at_level(logging.INFO, logger="vitral"):
            answer = await client.post("/v1/predict", files=files(IMAGE, IMAGE))
        fields = caplog.records[-1].fields  # type: ignore[attr-defined]
        expected = {"method": "POST", "path": "/v1/predict", "status": 200, "model": "one", "images": 2, "batch": 2}
        assert {key: fields[key] for key in expected} == expected
        assert fields["id"] == answer.headers["X-Request-ID"]
        assert fields["ms"] > 0

    logging.getLogger("vitral").propagate = True
    with_application(model, use)


def test_metrics_count_what_happened(model: Predictor) -> None:
    async def use(client: Any) -> None:
        for _ in range(3):
            await client.post("/v1/predict", files=files(IMAGE, IMAGE))
        await client.post("/v1/predict", content=b"")
        await client.get("/nothing/at/all")
        text = (await client.get("/metrics")).text
        found = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        route = ("route", "/v1/predict")
        assert found["vitral_requests_total", route, ("status", "200")] == 3
        assert found["vitral_requests_total", route, ("status", "415")] == 1
        assert found["vitral_requests_total", ("route", "other"), ("status", "404")] == 1
        assert found["vitral_request_seconds_count", route] == 4
        assert found["vitral_images_total", ("model", "one")] == 6
        assert found["vitral_batch_images_sum", ("model", "one")] == 6
        assert found["vitral_queue_images", ("model", "one")] == 0
        assert found["vitral_requests_in_flight",] == 1
        assert found["vitral_reloads_total", ("model", "one"), ("result", "ok")] == 0
        assert found["process_resident_memory_bytes",] > 10**6

    with_application(model, use)


def test_not_ready_is_503_and_alive_all_the_same(model: Predictor) -> None:
    async def use(client: Any) -> None:
        client.service.not_ready = "the server is ending"
        answer = await client.get("/readyz")
        assert answer.status_code == 503
        assert "ending" in answer.json()["error"]["message"]
        assert (await client.get("/healthz")).status_code == 200

    with_application(model, use)


def exchanged(app: ASGIApp, *come: Message) -> tuple[str, list[Any]]:
    """What is counted and logged of one GET of / through the gate, whose client sends this and then nothing."""
    metrics, waiting, lines = Metrics({}), list(come), list[Any]()

    async def receive() -> Message:
        return waiting.pop(0) if waiting else await asyncio.Future()

    async def send(_: Message) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(getattr(record, "fields", record.getMessage()))  # type: ignore[method-assign]
    log = logging.getLogger("vitral")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        asyncio.run(Middleware(app, ServeConfig(), metrics, None)(scope, receive, send))  # type: ignore[arg-type]
    except ConnectionAbortedError:
        lines.append("cut")
    finally:
        log.removeHandler(handler)
    return metrics.text().decode(), lines


def test_a_request_that_ends_in_the_middle_of_its_answer_is_logged_and_counted() -> None:
    async def app(_: Any, __: Any, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    text, lines = exchanged(app)
    assert 'vitral_requests_total{route="other",status="200"} 1.0' in text
    assert lines[-2]["status"] == 200
    assert lines[-1] == "cut"


def test_who_asks_without_a_body_and_goes_away_is_no_longer_served() -> None:
    ended: list[str] = []

    async def app(_: Any, receive: Receive, __: Any) -> None:
        assert await receive() == {"type": "http.request", "body": b"", "more_body": False}
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("in time")

    text, lines = exchanged(app, {"type": "http.request"}, {"type": "http.disconnect"})
    assert ended == ["in time"]
    assert 'vitral_requests_total{route="other",status="499"} 1.0' in text
    assert lines[-1]["status"] == 499


def test_a_path_adds_no_line_and_no_field_to_the_log() -> None:
    record = logging.LogRecord("vitral", logging.INFO, "", 0, "request", None, None)
    record.fields = {"path": "/a b\n12:00:00 info\x1b[31m", "status": 404, "model": "m"}
    line = _Text().format(record).split(" ", 2)[2]
    assert line == "request path='/a b\\n12:00:00 info\\x1b[31m' status=404 model=m"


def test_large_forms_and_answers_are_made_beside_the_event_loop(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []

    def beside(module: Any, name: str) -> None:
        function = getattr(module, name)

        def watched(*arguments: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*arguments)

        monkeypatch.setattr(module, name, watched)

    async def use(client: Any) -> None:
        beside(request_parsing, "_form")
        beside(service, "_numbers")
        answer = await client.post("/v1/embed", files=files(picture(0, size=(200, 200))))
        assert answer.status_code == 200
        assert len(threads) == 2
        assert threading.get_ident() not in threads

    with_application(model, use)


def test_a_model_that_cannot_compute_is_said(model: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the other one is warmed up all the same."""
    other = Slow(load(random_model(tmp_path / "m"), "cpu"))

    def broken(_: Any) -> Any:
        raise MemoryError("no memory for this")

    async def use() -> None:
        hosts = {"broken": ModelWorker("broken", model), "other": ModelWorker("other", other)}
        app = create_app(hosts, ServeConfig())
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=URL)
        async with app.router.lifespan_context(app), client:
            while not app.state.service.has_failed:
                await asyncio.sleep(0.01)
            answer = await client.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["error"]["message"] == "cannot compute: broken; the log says why"
            assert other.sizes == [1, 32]

    monkeypatch.setattr(model, "forward", broken)
    asyncio.run(use())
