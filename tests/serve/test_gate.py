"""Who may ask, how much, how fast; and what every answer carries."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from PIL import Image, ImageFile
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers import random_model
from tests.serve.serving import base64_of, files, picture, with_application
from vitral.predictor import Predictor, load


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(random_model(tmp_path_factory.mktemp("m") / "m"), "cpu")


IMAGE = picture(0)
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
        (picture(0, size=(90, 90)), "image/png", 413, "too_many_pixels"),
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
    with_application(model, lambda client: ask(client, 200, 421), allow_hosts=("vision.example",))


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
        wanted = {"method": "POST", "path": "/v1/predict", "status": 200, "model": "one", "images": 2, "batch": 2}
        assert {key: fields[key] for key in wanted} == wanted
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
