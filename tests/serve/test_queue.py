"""Batches, the queue's bound, deadlines, failures: nobody waits for company, and nobody pays for another's request."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import random_model
from tests.serve.serving import Slow, files, picture, with_application
from vitral.predictor import load


@pytest.fixture
def slow(tmp_path: Path) -> Slow:
    return Slow(load(random_model(tmp_path / "m"), "cpu"))


async def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def post(client: Any, number: int = 0, count: int = 1, **named: Any) -> asyncio.Task[Any]:
    images = [picture(number + k) for k in range(count)]
    return asyncio.create_task(client.post("/v1/predict", files=files(*images), **named))


def test_what_gathers_while_the_model_works_is_one_batch(slow: Slow) -> None:
    """The first is alone in its batch; of nine that come meanwhile eight, the most, and then the last."""

    async def use(client: Any) -> None:
        host, before = client.hosts["one"], len(slow.sizes)
        slow.gate.clear()
        first = post(client)
        await until(lambda: slow.begun > before)
        others = [post(client, 10 * n, count=3) for n in range(1, 4)]
        await until(lambda: len(client.service._batchers["one"]._entries) == 9)
        slow.gate.set()
        answers = [(await task).json() for task in (first, *others)]
        assert slow.sizes[before:] == [1, 8, 1]
        for n, answer in enumerate(answers[1:], 1):
            assert [each["image"] for each in answer] == ["0.png", "1.png", "2.png"]
            for k, each in enumerate(answer):
                expected = slow.predict(picture(10 * n + k))[0]["predictions"]
                assert [one["label"] for one in each["predictions"]] == [one["label"] for one in expected]
        assert host.waiting == 0

    with_application(slow, use, max_batch=8)


def test_an_idle_model_computes_at_once(slow: Slow) -> None:
    """One request after the other: all batches are of one image, and none waits for another to come. The loop's clock
    stands still, so who waits for any time waits for ever."""

    async def use(client: Any) -> None:
        before, loop = len(slow.sizes), asyncio.get_running_loop()
        now, task = loop.time(), asyncio.current_task()
        assert task is not None
        loop.time = lambda: now  # type: ignore[method-assign]
        too_long = threading.Timer(20, loop.call_soon_threadsafe, (task.cancel,))
        too_long.start()
        for number in range(20):
            assert (await post(client, number)).status_code == 200
        too_long.cancel()
        del loop.time
        assert slow.sizes[before:] == [1] * 20

    with_application(slow, use)


def test_a_full_queue_is_said_at_once_and_empties_again(slow: Slow) -> None:
    async def use(client: Any) -> None:
        host = client.hosts["one"]
        slow.gate.clear()
        waiting = [post(client, n) for n in range(4)]
        await until(lambda: host.waiting == 4)
        for route in ("predict", "embed", "attention"):
            refused = await client.post(f"/v1/{route}", files=files(picture(9)))
            assert refused.status_code == 429
            assert 1 <= int(refused.headers["Retry-After"]) <= 60
            assert refused.json()["error"]["code"] == "busy"
        assert 'vitral_queue_images{model="one"} 4.0' in (await client.get("/metrics")).text
        slow.gate.set()
        assert [(await task).status_code for task in waiting] == [200] * 4
        assert (await post(client)).status_code == 200
        too_many = await client.post("/v1/predict", files=files(*[picture(0)] * 5))
        assert too_many.status_code == 413

    with_application(slow, use, max_queue=4)


def test_a_deadline_that_is_over_is_said_and_its_image_never_computed(slow: Slow) -> None:
    async def use(client: Any) -> None:
        before = len(slow.sizes)
        slow.gate.clear()
        first = post(client, 1)
        await until(lambda: slow.begun > before)
        second = post(client, 2, count=2)
        for task in (first, second):
            answer = await task
            assert answer.status_code == 504
            assert answer.json()["error"]["code"] == "deadline"
        assert client.hosts["one"].waiting == 0
        slow.gate.set()
        assert (await post(client, 3)).status_code == 200
        assert slow.sizes[before:] == [1, 1], "the two images of the second request were computed for nobody"

    with_application(slow, use, deadline=0.5)


def test_a_batch_that_fails_fails_alone(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, broken = slow.forward, [True]

    def sometimes(images: Any, features: str | None = None) -> torch.Tensor:
        if broken[0]:
            raise MemoryError("no memory for this")
        return compute(images, features)

    async def use(client: Any) -> None:
        monkeypatch.setattr(slow, "forward", sometimes)
        answers = await asyncio.gather(*(post(client, n) for n in range(3)))
        assert {answer.status_code for answer in answers} == {500}
        assert answers[0].json() == {"error": {"code": "model_failed", "message": "the model failed on this batch"}}
        broken[0] = False
        assert (await post(client)).json()["predictions"] == slow.predict(picture(0))[0]["predictions"]
        assert (await client.get("/readyz")).status_code == 200

    with_application(slow, use)


def test_what_is_left_of_a_request_that_failed_is_not_computed(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its three images two are in the first batch."""
    compute, sizes = slow.forward, list[int]()

    def first_fails(images: Any, features: str | None = None) -> torch.Tensor:
        sizes.append(len(images))
        if len(sizes) == 1:
            raise MemoryError("no memory for this")
        return compute(images, features)

    async def use(client: Any) -> None:
        monkeypatch.setattr(slow, "forward", first_fails)
        assert (await post(client, count=3)).status_code == 500
        assert (await post(client)).status_code == 200
        assert sizes == [2, 1]
        assert client.hosts["one"].waiting == 0

    with_application(slow, use, max_batch=2)


def test_a_broken_image_is_named_and_harms_no_other_request(slow: Slow) -> None:
    async def use(client: Any) -> None:
        slow.gate.clear()
        good = [post(client, n) for n in range(6)]
        cut = picture(0, size=(50, 50), kind="JPEG")[:-300]
        images = [picture(0), cut, b"", b"\xff\xd8no"]
        bad = await client.post("/v1/predict", files=files(*images[:2], names=("fine.png", "cut.jpg")))
        assert bad.status_code == 422
        assert bad.json()["error"]["message"].startswith("cut.jpg: ")
        for number, broken in enumerate(images[2:]):
            answer = await client.post("/v1/predict", files=files(broken, names=(f"{number}",)))
            assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_image")
        slow.gate.set()
        assert [(await task).status_code for task in good] == [200] * 6
        assert client.hosts["one"].waiting == 0

    with_application(slow, use)


def test_other_calls_take_their_turn_in_the_same_thread(slow: Slow) -> None:
    async def use(client: Any) -> None:
        host = client.hosts["one"]
        assert await host.compute(lambda predictor: predictor) is slow
        with pytest.raises(ZeroDivisionError):
            await host.compute(lambda _: 1 / 0)
        assert host.waiting == 0

    with_application(slow, use)
