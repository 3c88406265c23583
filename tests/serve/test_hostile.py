"""Requests made to cost the server more than their sender: refused early, ended in time, and beside the rest."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.helpers import random_model
from tests.serve.serving import base64_of, files, picture, serving, with_application
from vitral.data.image_spec import ImageSpec
from vitral.predictor import Predictor, load
from vitral.serve import decoder_pool, decoding
from vitral.serve.decoding import DecodedImage, Heavy, Job, Problem, try_light
from vitral.serve.image_headers import outline

SIZE = 8 * 2**20  # bytes of a large request
IMAGE = picture(0)
FORM = "multipart/form-data; boundary=b"
Client = Any


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return load(random_model(tmp_path_factory.mktemp("m") / "m"), "cpu")


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(side: int) -> bytes:
    """A black square of 16-bit red, green, blue and alpha: 8 bytes per pixel, few in the file."""
    pixels = zlib.compress((b"\0" + bytes(8 * side)) * side, 9)
    head = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND")


def long_jpeg(count: int, segment: bytes = b"\xff\xfe\0\2") -> bytes:
    data = picture(0, kind="JPEG")
    return data[:2] + segment * count + data[2:]


def long_gif(count: int) -> bytes:
    data = picture(0, mode="P", kind="GIF")
    place = 13 + (3 << (data[10] & 7) + 1)
    return data[:place] + b"!\xfe\1a\0" * count + data[place:]


def long_png(count: int) -> bytes:
    return IMAGE[:33] + chunk(b"teXt") * count + IMAGE[33:]


def slow_picture(side: int) -> bytes:
    """A bit per pixel, some KB, and up to seconds of work."""
    out = io.BytesIO()
    Image.new("1", (side, side)).save(out, "PNG")
    return out.getvalue()


async def until_served(client: Client) -> None:
    """A picture for a decoding process is answered; on a busy machine the first tries may run into a short limit."""
    end = time.monotonic() + 60
    while (await client.post("/v1/predict", content=picture(0, kind="TIFF"), headers=TIFF)).status_code != 200:
        assert time.monotonic() < end


@asynccontextmanager
async def watched_loop() -> AsyncGenerator[list[float]]:
    """The longest pauses, in seconds, in which the event loop could not do anything else."""
    pauses, going = [0.0], True

    async def watch() -> None:
        while going:
            start = time.perf_counter()
            await asyncio.sleep(0.005)
            pauses.append(time.perf_counter() - start)

    task = asyncio.create_task(watch())
    yield pauses
    going = False
    await task


BODIES: dict[str, tuple[Callable[[], bytes], str, int, str]] = {
    "lists": (lambda: b'{"images": [' + b"[]," * (SIZE // 3) + b"[]]}", "application/json", 400, "bad_json"),
    "keys": (lambda: b"{" + b'"a":1,' * (SIZE // 6) + b"}", "application/json", 413, "too_many_images"),
    "texts": (lambda: b'{"images": [' + b'"",' * (SIZE // 3) + b'""]}', "application/json", 413, "too_many_images"),
    "numbers": (lambda: b'{"images": [' + b"1," * (SIZE // 2) + b"1]}", "application/json", 400, "bad_json"),
    "depth": (lambda: b"[" * SIZE, "application/json", 400, "bad_json"),
    "escapes": (lambda: b'{"image": "' + b"\\n" * (SIZE // 2) + b'"}', "application/json", 422, "bad_image"),
    "part of delimiters": (
        lambda: b"--b\r\nContent-Disposition: form-data; name=image\r\n\r\n" + b"\r\n--" * (SIZE // 4) + b"\r\n--b--",
        FORM, 422, "bad_image",
    ),
    "head of a part": (lambda: b"--b\r\n" + b"a: b\r\n" * (SIZE // 6), FORM, 400, "bad_form"),
    "JPEG segments": (lambda: long_jpeg(SIZE // 4), "image/jpeg", 413, "too_many_segments"),
    "JPEG filler": (lambda: long_jpeg(SIZE, b"\xff"), "image/jpeg", 413, "too_many_segments"),
    "GIF comments": (lambda: long_gif(SIZE // 5), "image/gif", 413, "too_many_segments"),
    "PNG chunks": (lambda: long_png(SIZE // 12), "image/png", 413, "too_many_segments"),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/explore"])
@pytest.mark.parametrize("name", BODIES)
def test_what_takes_long_to_build_is_refused_before(model: Predictor, name: str, path: str) -> None:
    """Within 2 seconds on a busy machine, which the parsers and Pillow would take 10 to 90 for, and beside the loop."""
    make, kind, status, code = BODIES[name]
    body = make()

    async def use(client: Client) -> None:
        async with watched_loop() as pauses:
            start = time.perf_counter()
            answer = await client.post(path, content=body, headers={"Content-Type": kind})
            seconds = time.perf_counter() - start
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert seconds < 2
        assert max(pauses) < 0.5

    if name in ("escapes", "part of delimiters"):  # nothing wrong but no image: by a process, which has to start
        with_application(
            model, lambda client: client.post("/v1/predict", content=picture(0, kind="TIFF"), headers=TIFF)
        )
    with_application(model, use)


TIFF = {"Content-Type": "image/tiff"}


def test_structure_is_counted_while_the_body_arrives(model: Predictor) -> None:
    sent = [0]

    async def body() -> AsyncGenerator[bytes]:
        yield b'{"images": ['
        for _ in range(100):
            sent[0] += 1
            yield b'"",' * 100

    async def use(client: Client) -> None:
        answer = await client.post("/v1/predict", content=body(), headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_many_images")
        assert sent[0] <= 2

    with_application(model, use)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_threads_and_processes_give_the_same(model: Predictor, kind: str) -> None:
    data = picture(1, mode="P" if kind == "GIF" else "RGB", size=(90, 40), kind=kind)
    expected = model.predict(data)[0]["predictions"]

    async def use(client: Client) -> None:
        light = try_light(Job(data, model.config.preprocessing, "fit"))
        assert isinstance(light, DecodedImage if kind in ("PNG", "JPEG") else Heavy)
        got = (await client.post("/v1/predict", content=data, headers=TIFF)).json()["predictions"]
        assert [each["label"] for each in got] == [each["label"] for each in expected]
        assert [each["score"] for each in got] == pytest.approx([each["score"] for each in expected], abs=2e-6)

    with_application(model, use)


def test_bytes_of_a_pixel_count() -> None:
    """49 million pixels of 8 bytes in 381 KB are refused where 50 million of 4 are the limit."""
    data = deep_png(200)
    found = outline(data)
    assert (found.width, found.height, found.pixel_bytes) == (200, 200, 8)
    recipe = ImageSpec(image_size=(8, 8), channels=3, resize_mode="crop")
    assert isinstance(try_light(Job(data, recipe.model_copy(update={"max_pixels": 80_000}), "count")), DecodedImage)
    refused = try_light(Job(data, recipe.model_copy(update={"max_pixels": 79_999}), "count"))
    assert isinstance(refused, Problem)
    assert (refused.status, refused.code) == (413, "too_many_pixels")
    assert "8 bytes, counted as 80,000" in refused.text


def test_a_slow_image_is_ended_and_the_others_are_served(model: Predictor) -> None:
    slow = deep_png(8000)  # within the limit on pixels, and many times decode_seconds of work on any machine

    async def use(client: Client) -> None:
        await until_served(client)
        hostile = [asyncio.create_task(client.post("/v1/predict", files=files(*[slow] * 4))) for _ in range(2)]
        await asyncio.sleep(0.1)
        async with watched_loop() as pauses:
            for number in range(20):
                assert (await client.post("/v1/predict", files=files(picture(number)))).status_code == 200
        assert max(pauses) < 2
        for task in hostile:
            answer = await task
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "slow_image")
        await until_served(client)
        assert not client.service.decoders._running

    with_application(model, use, decode_seconds=0.5, max_pixels=150_000_000)


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot stop a process where it is")
def test_a_deadline_and_a_client_that_goes_end_the_work(model: Predictor) -> None:
    async def use(client: Client) -> None:
        await until_served(client)
        pool = client.service.decoders
        before = {decoder._process.pid for decoder in pool._alive}
        for pid in before:
            os.kill(pid, signal.SIGSTOP)  # slower than the deadline, on any machine
        answer = await client.post("/v1/predict", content=picture(0, kind="TIFF"), headers=TIFF)
        assert answer.status_code == 504
        end = time.monotonic() + 10
        while pool._running or pool._alive:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        for pid in before:
            assert not Path(f"/proc/{pid}").exists()

    with_application(model, use, deadline=0.5, decode_seconds=60)


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_process_that_ended_while_idle_is_replaced(
    model: Predictor, monkeypatch: pytest.MonkeyPatch, is_seen: bool
) -> None:
    """Seen before it gets its job, or because it cannot be given."""
    if not is_seen:
        monkeypatch.setattr(decoder_pool._Decoder, "is_alive", True)

    async def use(client: Client) -> None:
        pool = client.service.decoders
        for _ in range(2):
            answer = await client.post("/v1/predict", content=picture(0, kind="TIFF"), headers=TIFF)
            assert answer.status_code == 200, answer.text
            (idle,) = pool._idle
            idle._process.kill()
            idle._process.join(10)
        assert len(pool._alive) == 1

    with_application(model, use)


def test_an_error_that_no_decoder_should_raise_is_an_answer(model: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Any, spec: Any) -> Any:
        raise RuntimeError("of a plugin")

    monkeypatch.setattr(decoding, "decode_image", broken)

    async def use(client: Client) -> None:
        answer = await client.post("/v1/predict", files=files(picture(0)))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_image")
        assert "of a plugin" in answer.json()["error"]["message"]

    with_application(model, use)


def test_many_images_of_one_request_come_after_one_of_another(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one process: of ten pictures and, later, one, the one is ready while most of the ten still wait."""
    monkeypatch.setattr(decoder_pool.os, "cpu_count", lambda: 1)
    out = io.BytesIO()
    Image.new("L", (1500, 1500)).save(out, "TIFF")

    async def use(client: Client) -> None:
        many = asyncio.create_task(client.post("/v1/predict", files=files(*[out.getvalue()] * 10)))
        pool = client.service.decoders
        while not pool._running:
            assert not many.done()
            await asyncio.sleep(0.001)
        one = await client.post("/v1/predict", content=picture(0, kind="TIFF"), headers=TIFF)
        assert one.status_code == 200
        assert not many.done()
        assert len(pool._queue) >= 5
        assert (await many).status_code == 200

    with_application(model, use)


def test_no_more_than_four_of_the_largest_are_decoded_at_once(
    model: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pool.os, "cpu_count", lambda: 16)
    out = io.BytesIO()
    Image.new("L", (100, 90)).save(out, "TIFF")
    most = [0]

    async def use(client: Client) -> None:
        pool = client.service.decoders

        def watch(*arguments: Any) -> Any:
            most[0] = max(most[0], pool._running)
            assert pool._pixels <= 4 * 10_000
            return decode(*arguments)

        decode = pool._decode
        monkeypatch.setattr(pool, "_decode", watch)
        assert (await client.post("/v1/predict", files=files(*[out.getvalue()] * 12))).status_code == 200

    with_application(model, use, max_pixels=10_000)
    assert most[0] == 4


LIMITED = """
from vitral.serve.decoding import _limit_memory
_limit_memory(2**28)
small = bytes(2**27)
try:
    bytes(2**29)
except MemoryError:
    print("limited")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of Linux")
def test_a_process_has_a_memory_limit() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout == "limited\n", done.stderr


@pytest.mark.parametrize(
    "text",
    [
        base64_of(IMAGE), base64.encodebytes(IMAGE).decode(), base64.urlsafe_b64encode(IMAGE).decode().rstrip("="),
        base64.encodebytes(IMAGE).decode().replace("\n", "\r\n"), "data:image/png;base64," + base64_of(IMAGE),
    ],
    ids=["plain", "wrapped", "for URLs", "CRLF", "data URL"],
)  # fmt: skip
def test_base64_of_every_kind_is_taken(model: Predictor, text: str) -> None:
    """Also with slashes escaped, as PHP does."""

    async def use(client: Client) -> list[Any]:
        bodies = [json.dumps({"image": text}), json.dumps({"images": [text]}).replace("/", "\\/")]
        kind = {"Content-Type": "application/json"}
        return [(await client.post("/v1/predict", content=body, headers=kind)).json() for body in bodies]

    one, many = with_application(model, use)
    expected = model.predict(IMAGE)[0]["predictions"]
    for got in (one, many[0]):
        assert [each["label"] for each in got["predictions"]] == [each["label"] for each in expected]
    for wrong in ("a", "ab=c", "a!bc", "\u00e9abc", "AAA=AAAA"):

        async def refused(client: Client, wrong: str = wrong) -> Any:
            return await client.post("/v1/predict", json={"image": wrong})

        assert with_application(model, refused).json()["error"]["code"] == "bad_image"


def test_forms_are_taken_apart_as_they_are_written(model: Predictor) -> None:
    """Data that looks like a delimiter, text before the first one, blanks behind it, a boundary of 257 characters."""

    async def use(client: Client) -> None:
        def form(data: bytes, before: bytes = b"", blanks: bytes = b"") -> Awaitable[Any]:
            head = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\nContent-Type: image/png'
            body = before + b"--b" + blanks + b"\r\n" + head + b"\r\n\r\n" + data + b"\r\n--b" + blanks + b"--\r\nafter"
            return client.post("/v1/predict", content=body, headers={"Content-Type": FORM})

        expected = (await client.post("/v1/predict", files=files(IMAGE, names=("a.png",)))).json()
        padded = IMAGE + b"\r\n--bx\r\n--b\nmore"
        for answer in (await form(IMAGE), await form(IMAGE, b"preamble\r\n"), await form(IMAGE, blanks=b" \t")):
            assert answer.json() == expected
        assert (await form(padded)).json() == expected
        long = await client.post("/v1/predict", content=b"", headers={"Content-Type": FORM + "b" * 256})
        assert (long.status_code, long.json()["error"]["code"]) == (400, "bad_form")

    with_application(model, use)


def tree_mb(pid: int) -> float:
    """Memory of a process and its descendants that is theirs alone."""
    total, children = 0, [pid]
    while children:
        here = children.pop()
        try:
            text = Path(f"/proc/{here}/smaps_rollup").read_text(encoding="utf-8")
            children += map(int, Path(f"/proc/{here}/task/{here}/children").read_text(encoding="utf-8").split())
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total / 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_after_hostile_requests_is_what_it_was(tmp_path: Path) -> None:
    """The server and its processes: within 20 % after 100 of all kinds, in a row and eight at a time."""
    with serving(str(random_model(tmp_path / "m")), "decode_seconds=2", "reload=0") as server:
        bodies = [(make(), kind) for make, kind, _, _ in BODIES.values()]
        bodies += [(deep_png(4900), "image/png"), (slow_picture(7000), "image/png"), (deep_png(7000), "image/png")]

        def send(number: int) -> int:
            body, kind = bodies[number % len(bodies)]
            return server.client.post("/v1/predict", content=body, headers={"Content-Type": kind}).status_code

        for number in range(len(bodies)):
            send(number)
        for number in range(8):
            assert server.client.post("/v1/predict", files=files(*[picture(number)] * 8)).status_code == 200
        before = tree_mb(server.process.pid)
        with ThreadPoolExecutor(8) as pool:
            statuses = set(pool.map(send, range(100)))
        assert statuses <= {200, 400, 413, 422, 429}
        time.sleep(3)
        after = tree_mb(server.process.pid)
        print(f"memory before {before:.0f} MB, after {after:.0f} MB")
        assert after < 1.2 * before
