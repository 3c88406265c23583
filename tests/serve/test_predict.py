"""What the server answers is what the commands print."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

import vitral.predictor
from tests.helpers import random_model
from tests.serve.serving import Slow, base64_of, files, picture, with_application
from vitral.cli.main import main
from vitral.data.resize import fit_image
from vitral.engines import Takes, TorchEngine
from vitral.export.runtime_engine import with_engine
from vitral.interpret.attention import token_attention
from vitral.models.vit import VisionTransformer
from vitral.predictor import Predictor, load
from vitral.serve import service
from vitral.serve.batcher import Work

MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK")
Client = httpx.AsyncClient


@pytest.fixture(scope="module")
def gray(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("m") / "gray")


@pytest.fixture(scope="module")
def color(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(
        tmp_path_factory.mktemp("m") / "color", in_channels=3, registers=2, class_token=True, pool="cls"
    )


def printed(capsys: pytest.CaptureFixture[str], *argv: str) -> list[Any]:
    assert main(list(argv)) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def encoded(index: int) -> tuple[str, bytes]:
    """A picture of each mode in turn, of a size of its own, in a format that holds the mode."""
    mode = MODES[index % len(MODES)]
    kind = "TIFF" if mode == "CMYK" else "PNG"
    return f"{index}.{kind.lower()}", picture(index, mode if mode != "1" else "L", (5 + 3 * index, 31 - index), kind)


@pytest.mark.parametrize("kind", ["gray", "color"])
def test_predict_answers_what_the_command_prints(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """One request of all kinds of images, one of each alone: as forms, as raw bytes, as base64."""
    model: Path = request.getfixturevalue(kind)
    images = dict(encoded(index) for index in range(len(MODES)))
    for name, data in images.items():
        Path(name).write_bytes(data)
    lines = printed(capsys, "predict", str(model), *images, "topk=2")
    alone = {name: printed(capsys, "predict", str(model), name, "topk=2")[0] for name in images}

    async def use(client: Client) -> None:
        together = await client.post("/v1/predict?topk=2", files=files(*images.values(), names=tuple(images)))
        assert together.json() == lines
        for name, data in images.items():
            one = await client.post("/v1/predict?topk=2", files=files(data, names=(name,)))
            assert one.content.decode() == json.dumps(alone[name], ensure_ascii=False)
            raw = await client.post("/v1/predict?topk=2", content=data, headers={"Content-Type": "image/x-any; a=b"})
            text = await client.post("/v1/predict?topk=2", json={"image": base64_of(data)})
            assert raw.json() == text.json() == {**alone[name], "image": 0}
        many = await client.post("/v1/predict?topk=2", json={"images": [base64_of(data) for data in images.values()]})
        assert many.json() == [{**line, "image": number} for number, line in enumerate(lines)]
        name, data = next(iter(images.items()))
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        assert (await client.post("/v1/predict?topk=2", json={"images": [url]})).json() == [{**alone[name], "image": 0}]

    with_application(model, use)


def test_scores_are_those_of_python_bit_for_bit(gray: Path) -> None:
    """Of the same batch; and to 1e-6 of another one."""
    predictor, images = load(gray, "cpu"), [picture(number, size=(9, 30 - number)) for number in range(7)]
    expected_BC = torch.from_numpy(predictor.probabilities(images))

    async def use(client: Any) -> None:
        ready = [predictor.preprocess(image) for image in images]
        work = Work(predictor, lambda x: predictor.forward(x).unbind())
        found = await client.service._batchers["one"].compute(work, ready)
        assert [row.batch for row in found] == [7] * 7
        for row_C, row in zip(expected_BC, found, strict=True):
            assert torch.equal(row_C, predictor.scores(row.found))
        for row_C, image in zip(expected_BC, ready, strict=True):
            (row,) = await client.service._batchers["one"].compute(work, [image])
            assert torch.allclose(row_C, predictor.scores(row.found), atol=1e-6, rtol=0)

    with_application(predictor, use)


def test_embed_answers_what_the_command_prints(color: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {f"{number}.png": picture(number) for number in range(3)}
    for name, data in images.items():
        Path(name).write_bytes(data)

    async def use(client: Client, features: str, lines: list[Any]) -> None:
        answer = await client.post(f"/v1/embed?features={features}", files=files(*images.values(), names=tuple(images)))
        assert answer.json() == lines
        one = await client.post(
            f"/v1/embed?features={features}", content=images["1.png"], headers={"Content-Type": "image/png"}
        )
        assert one.json()["image"] == 0
        assert torch.allclose(torch.tensor(one.json()["embedding"]), torch.tensor(lines[1]["embedding"]), atol=1e-6)

    for features in ("pooled", "cls_avg", "patches"):
        lines = printed(capsys, "embed", str(color), *images, f"features={features}")
        with_application(color, lambda client, f=features, x=lines: use(client, f, x))


def test_attention_is_that_of_python(color: Path, gray: Path) -> None:
    image = picture(5, size=(40, 21))

    async def use(client: Client) -> None:
        for model, name in ((color, "color"), (gray, "gray")):
            predictor = load(model, "cpu")
            network = predictor.model
            assert isinstance(network, VisionTransformer)
            input_BCHW = predictor.preprocess(image)[None]
            for query, token, layers in (
                ("", None, None), ("&token=mean&layers=0,-1", "mean", [0, 1]), ("&token=2,1&layers=-1", "2,1", [1]),
            ):  # fmt: skip
                answer = await client.post(f"/v1/attention?model={name}{query}", files=files(image))
                found = answer.json()
                expected = token_attention(network, input_BCHW, token, layers)[0]
                assert torch.equal(torch.tensor(found["attention"]), expected)
                assert found["layers"] == (layers or [0, 1])
                assert found["image"] == "0.png"
                assert (found["grid"], found["heads"]) == ([4, 4], [0, 1])
                assert len(found["attention"][0][0]) == len(found["prefix"]) + 16
        assert (await client.post("/v1/attention?model=color", files=files(image))).json()["prefix"] == [
            "cls", "register:0", "register:1",
        ]  # fmt: skip
        for query, part in (("token=nose", "no such token"), ("layers=7", "no such layer"), ("layers=a", "layers")):
            answer = await client.post(f"/v1/attention?{query}", files=files(image))
            assert answer.status_code == 422
            assert part in answer.json()["error"]["message"]
        assert (await client.post("/v1/attention", files=files(image, image))).status_code == 400

    with_application({"color": color, "gray": gray}, use)


def test_attention_of_a_model_with_fewer_tokens_is_of_all_of_them(color: Path) -> None:
    from vitral.compression.tome import ToMe

    predictor, image = load(color, "cpu"), picture(1)
    network = predictor.model
    assert isinstance(network, VisionTransformer)
    expected = token_attention(network, predictor.preprocess(image)[None])[0]
    network.reduce = ToMe(4, "constant")

    async def use(client: Client) -> None:
        for _ in range(2):
            found = await client.post("/v1/attention", files=files(image))
            assert torch.equal(torch.tensor(found.json()["attention"]), expected)
            assert isinstance(network.reduce, ToMe)
            scores = (await client.post("/v1/predict", files=files(image))).json()["predictions"]
            assert scores == predictor.predict(image)[0]["predictions"]

    with_application(predictor, use)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_other_engines_predict_the_same_and_attention_is_still_torchs(color: Path, engine: str) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine), reason=f"the extra for {engine} is not installed")
    plain, images = load(color, "cpu"), [picture(number, size=(40, 9 + number)) for number in range(5)]
    expected, network = plain.predict(images), plain.model
    assert isinstance(network, VisionTransformer)

    async def use(client: Client) -> None:
        for line, image in zip(expected, images, strict=True):
            found = (await client.post("/v1/predict", files=files(image))).json()["predictions"]
            for one, other in zip(found, line["predictions"], strict=True):
                assert one["label"] == other["label"]
                assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        attention = (await client.post("/v1/attention", files=files(images[0]))).json()["attention"]
        expected_LhT = token_attention(network, plain.preprocess(images[0])[None])[0]
        assert torch.equal(torch.tensor(attention), expected_LhT)
        assert (await client.get("/v1/models")).json()[0]["engine"] == {"onnx": "onnxruntime"}.get(engine, engine)

    with_application(with_engine(plain, engine), use)


class Closed(TorchEngine):
    """An engine that resizes by itself, as an export does."""

    takes: Takes = "pixels"

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(predictor.model)
        self._spec, self.sizes = predictor.config.preprocessing, list[int]()

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(images))
        return super().logits(
            torch.stack([fit_image(image, self._spec.image_size, self._spec) for image in images.permute(0, 3, 1, 2)])
        )


def test_what_a_model_cannot_do_is_said(tmp_path: Path, gray: Path) -> None:
    """Of one without a head, and of an export, which takes images of all sizes as they are."""
    headless, plain = load(random_model(tmp_path / "headless", ()), "cpu"), load(gray, "cpu")
    exported = Predictor(None, plain.config, "cpu", Closed(plain))
    images = [picture(number, size=(9 + number // 2, 20)) for number in range(4)]

    async def use(client: Client) -> None:
        answer = await client.post("/v1/predict?model=headless", files=files(*images))
        assert answer.status_code == 422
        assert "has no head" in answer.json()["error"]["message"]
        assert (await client.post("/v1/embed?model=headless", files=files(*images))).status_code == 200
        found = (await client.post("/v1/predict?model=exported", files=files(*images))).json()
        assert [each["predictions"] for each in found] == [each["predictions"] for each in plain.predict(images)]
        for route in ("embed", "attention"):
            answer = await client.post(f"/v1/{route}?model=exported", files=files(images[0]))
            assert answer.status_code == 422
            assert "an export predicts classes" in answer.json()["error"]["message"]

    with_application({"headless": headless, "exported": exported}, use)


def test_an_export_gets_a_few_large_images_at_a_time(gray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(gray, "cpu")
    engine = Closed(plain)
    exported = Predictor(None, plain.config, "cpu", engine)
    images = [picture(number, size=(20, 10) if number != 3 else (50, 30)) for number in range(7)]
    monkeypatch.setattr(vitral.predictor, "_PIXELS_AT_ONCE", 900)
    torch.testing.assert_close(
        torch.from_numpy(exported.probabilities(images)),
        torch.from_numpy(plain.probabilities(images)),
        rtol=0,
        atol=1e-6,
    )
    assert engine.sizes == [4, 2, 1]


def test_large_images_wait_for_an_export_only_where_there_is_room(gray: Path) -> None:
    """Four of the largest size at once, all requests together."""
    slow = Slow(load(gray, "cpu"))
    slow.engine = Closed(slow)
    largest = picture(0, size=(20, 20))

    async def use(client: Any) -> None:
        def post(count: int) -> Any:
            return client.post("/v1/predict", files=files(*[largest] * count))

        refused = (await post(5)).json()["error"]
        assert refused["code"] == "too_many_pixels"
        assert "2,000 pixels together; at most 1,600" in refused["message"]
        slow.gate.clear()
        before = slow.begun
        first = asyncio.create_task(post(3))
        while slow.begun == before:
            await asyncio.sleep(0.01)
        busy = await post(2)
        assert (busy.status_code, busy.json()["error"]["code"]) == (429, "busy")
        second = asyncio.create_task(post(1))
        await asyncio.sleep(0.05)
        slow.gate.set()
        assert [(await task).status_code for task in (first, second)] == [200, 200]
        assert (await post(4)).status_code == 200
        slow.gate.clear()
        before = slow.begun
        fourth = asyncio.create_task(post(4))
        while slow.begun == before:
            await asyncio.sleep(0.01)
        for path in ("predict", "explore"):
            busy = await client.post(f"/v1/{path}", files=files(largest))
            assert (busy.status_code, busy.json()["error"]["code"]) == (429, "busy")
        slow.gate.set()
        assert (await fourth).status_code == 200
        assert not client.service._full_size

    with_application(slow, use, max_pixels=400)


def test_embed_computes_max_batch_at_once_and_limits_its_answer(gray: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(number) for number in range(5)]

    async def use(client: Any) -> None:
        assert (await client.post("/v1/embed", files=files(*images))).status_code == 200
        text = (await client.get("/metrics")).text
        assert 'vitral_images_total{model="one"} 5.0' in text
        assert 'vitral_batch_images_count{model="one"} 3.0' in text
        monkeypatch.setattr(service, "_NUMBERS", 5 * 16)
        assert (await client.post("/v1/embed", files=files(*images))).status_code == 200
        answer = await client.post("/v1/embed?features=patches", files=files(*images))
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large_answer")
        assert "5 images are 1,280 numbers" in answer.json()["error"]["message"]

    with_application(gray, use, max_batch=2)


def test_two_models_answer_by_name(gray: Path, color: Path, tmp_path: Path) -> None:
    other = random_model(tmp_path / "other", ("x", "y"))

    async def use(client: Client) -> None:
        for query, name, count in (("", "first", 3), ("?model=first", "first", 3), ("?model=second", "second", 2)):
            answer = await client.post(f"/v1/predict{query}", files=files(picture(0)))
            assert len(answer.json()["predictions"]) == count
            assert answer.headers["X-Model"] == name
        answer = await client.post("/v1/predict?model=third", files=files(picture(0)))
        assert answer.status_code == 404
        assert "first, second" in answer.json()["error"]["message"]
        listed = (await client.get("/v1/models")).json()
        assert [(each["name"], each["classes"], each["image_size"]) for each in listed] == [
            ("first", 3, [8, 8]), ("second", 2, [8, 8])
        ]  # fmt: skip

    with_application({"first": gray, "second": other}, use)


def test_each_of_many_clients_gets_its_own_answer(gray: Path) -> None:
    """Requests of one to three images, all at once."""
    predictor = load(gray, "cpu")
    requests = [[picture(10 * n + k, size=(8 + n, 8 + k)) for k in range(1 + n % 3)] for n in range(32)]
    expected = [predictor.predict(images) for images in requests]

    async def use(client: Any) -> None:
        answers = await asyncio.gather(*(client.post("/v1/predict", files=files(*images)) for images in requests))
        for answer, lines in zip(answers, expected, strict=True):
            found = answer.json() if len(lines) > 1 else [answer.json()]
            for one, line in zip(found, lines, strict=True):
                for a, b in zip(one["predictions"], line["predictions"], strict=True):
                    assert a["label"] == b["label"]
                    assert a["score"] == pytest.approx(b["score"], abs=2e-6)

    with_application(gray, use)


def test_the_description_lists_the_routes(gray: Path) -> None:
    async def use(client: Client) -> None:
        tree = (await client.get("/openapi.json")).json()
        assert tree["openapi"].startswith("3.")
        assert {"/v1/predict", "/v1/embed", "/v1/attention", "/v1/models", "/healthz", "/readyz", "/metrics"} <= set(
            tree["paths"]
        )
        predict = tree["paths"]["/v1/predict"]["post"]
        assert set(predict["requestBody"]["content"]) == {
            "multipart/form-data", "image/*", "application/octet-stream", "application/json",
        }  # fmt: skip
        for route, keys in (("predict", {"image", "images", "text", "texts"}), ("embed", {"image", "images"})):
            content = tree["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"]["application/json"]
            bodies = {each["required"][0]: set(each["properties"]) for each in content["schema"]["oneOf"]}
            assert bodies == {key: {key} | ({"search", "stream"} if "text" in key else set()) for key in keys}
        assert {"200", "400", "413", "415", "422", "429", "504"} <= set(predict["responses"])
        assert {each["name"] for each in predict["parameters"]} == {"topk", "model", "stream"}
        names = {each["$ref"] for each in _references(tree)}
        assert all(_resolves(tree, name) for name in names)
        assert (await client.get("/docs")).status_code == 404

    with_application(gray, use)


def _references(tree: Any) -> list[dict[str, str]]:
    if isinstance(tree, dict):
        own = [tree] if "$ref" in tree else []
        return own + [each for value in tree.values() for each in _references(value)]
    return [each for value in tree for each in _references(value)] if isinstance(tree, list) else []


def _resolves(tree: Any, name: str) -> bool:
    for part in name.removeprefix("#/").split("/"):
        tree = tree.get(part)
    return tree is not None
