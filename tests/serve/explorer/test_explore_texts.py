"""The explorer's numbers of models that write text are Python's own, for every kind of model."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from tests.models.text_models import image_writer, save, text_writer
from tests.serve.explorer.app import make_app, random_host
from tests.serve.explorer.test_explore_views import PNG, picture
from vitral.data.text.tokenizer import Characters
from vitral.data.text.tokenizer_file import Tokenizers
from vitral.interpret.alignment import alignment, ctc_frames
from vitral.models.image_to_text import ImageToText
from vitral.models.search_config import SearchConfig
from vitral.run.text_export import export_text_model
from vitral.run.text_options import TextExportOptions
from vitral.serve import explore_samples, explore_texts
from vitral.serve.model_worker import ModelWorker
from vitral.text_predictor import TextPredictor, load_text

KINDS = ("transformer", "additive", "none", "image", "ctc")
BEAM = {"search.search": "beam", "search.beams": 3, "search.n_best": 3}


def make_writers() -> dict[str, TextPredictor]:
    return {
        "transformer": text_writer(scale=1.5),
        "additive": text_writer("lstm_tiny", attention="additive"),
        "none": text_writer("lstm_tiny", attention="none"),
        "image": image_writer(),
        "ctc": image_writer("ctc"),
    }


@pytest.fixture(scope="module")
def writers() -> dict[str, TextPredictor]:
    return make_writers()


@pytest.fixture(scope="module")
def client(writers: dict[str, TextPredictor]) -> TestClient:
    return TestClient(make_app({name: ModelWorker(name, each) for name, each in writers.items()}))


def ask(client: TestClient, writer: TextPredictor, source: Any, **params: Any) -> Any:
    if writer.reads_images:
        response = client.post("/v1/explore/text", params=params, content=source, headers=PNG)
    else:
        response = client.post("/v1/explore/text", params=params, json={"text": source})
    assert response.status_code == 200, response.text
    return response.json()


def numbers(packed: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(packed["data"]), "<f4").reshape(packed["shape"])


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_texts_steps_and_alignment_are_pythons(
    client: TestClient, writers: dict[str, TextPredictor], name: str, rank: int
) -> None:
    writer = writers[name]
    source: Any = picture(8, 40, 5) if writer.reads_images else "abcea"
    found = ask(client, writer, source, model=name, rank=rank, **BEAM)
    texts = writer.write([source], SearchConfig(search="beam", beams=3, n_best=3, max_length=10))[0]
    assert [row["text"] for row in found["texts"]] == [each.text for each in texts]
    assert [row["score"] for row in found["texts"]] == pytest.approx([each.score for each in texts], abs=1e-5)
    tokens = [*texts[rank - 1].tokens, *([2] if texts[rank - 1].finished else [])]
    if name == "ctc":
        tokens = [token for token in tokens if token != 2]
    names = (*writer.tokenizers.target.vocabulary, "<blank>")
    assert [step["token"] for step in found["steps"]] == [names[token] for token in tokens]
    x_1, frames = writer.preprocess([source]), list[int]()
    with torch.no_grad():
        inputs = [x_1] if name == "ctc" else [x_1, torch.tensor([[1, *tokens[:-1]]])]
        log_probs_FV = log_probs_TV = writer.model(*inputs)[0].log_softmax(-1)
    if name == "ctc":
        frames = ctc_frames(log_probs_FV, tokens, 9)
        log_probs_TV = log_probs_FV[frames]
    for step, token, log_probs_V in zip(found["steps"], tokens, log_probs_TV, strict=True):
        assert step["probability"] == pytest.approx(float(log_probs_V[token].exp()), abs=1e-5)
        top = log_probs_V.exp().topk(5).values.tolist()
        assert [each["probability"] for each in step["top"]] == pytest.approx(top, abs=1e-5)
    if name != "ctc":  # the text's log-probability is that of its steps
        whole = sum(np.log(step["probability"]) for step in found["steps"])
        assert whole == pytest.approx(found["texts"][rank - 1]["log_prob"], abs=1e-4)
    if name == "none":
        assert found["attention"] is None
        return
    shown = numbers(found["attention"])
    if name == "ctc":
        assert [step["frame"] for step in found["steps"]] == frames
        assert shown.shape == (1, 1, len(tokens), 1, 20)
        assert shown[0, 0, :, 0].argmax(-1).tolist() == frames
        assert shown.sum() == len(tokens)
        best = log_probs_FV.exp().max(-1)
        assert [each["probability"] for each in found["columns"]] == pytest.approx(best.values.tolist(), abs=1e-5)
        assert [each["token"] for each in found["columns"]] == [names[k] for k in best.indices.tolist()]
        return
    truth = alignment(writer.model, x_1, torch.tensor([tokens]))[0].numpy()
    if writer.reads_images:
        assert isinstance(writer.model, ImageToText)
        truth = truth[..., -80:].reshape(*truth.shape[:3], *writer.model.encoder.grid)
    else:
        assert found["source"] == [*"abcea", "<end>"]
        np.testing.assert_allclose(shown.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(shown, truth, atol=1e-6)


def test_models_say_what_they_have(client: TestClient, tmp_path: Path) -> None:
    found = client.get("/v1/explore/models").json()
    assert found["models"] == []
    kinds = {each["name"]: (each["reads"], each["kind"], each["why"] is None) for each in found["writers"]}
    assert kinds == {
        "transformer": ("text", "attention", True), "additive": ("text", "attention", True),
        "none": ("text", None, False), "image": ("image", "attention", True), "ctc": ("image", "ctc", True),
    }  # fmt: skip
    image = found["writers"][3]
    assert (image["image_size"], image["beams"], image["most_beams"]) == ([8, 40], 5, 9)
    assert image["samples"][0] == {"id": "strip-314", "title": "Digits 314"}
    both = TestClient(
        make_app({"text": ModelWorker("text", text_writer()), "cats": random_host(tmp_path, "cats")}),
    )
    found = both.get("/v1/explore/models").json()
    assert [[each["name"] for each in found[kind]] for kind in ("models", "writers")] == [["cats"], ["text"]]
    pages = both.get("/"), both.get("/texts"), client.get("/"), client.get("/texts")
    assert ["texts.js" in page.text for page in pages] == [False, True, True, True]
    assert both.post("/v1/explore/text", json={"text": "abc"}).json()["model"] == "text"
    assert both.post("/v1/explore", content=picture(), headers=PNG).json()["model"] == "cats"


def test_the_page_is_given_the_keys_of_the_models_own_search() -> None:
    own = SearchConfig(search="beam", beams=3, allowed="123", min_length=3, max_length=9, early_stopping=True)
    digits = Tokenizers(Characters("12345"), Characters("abcde"))
    base = text_writer(scale=2.0)
    config = base.config.model_copy(update={"search": own, "tokenizer": digits.digest})
    writer = TextPredictor(base.model, config, digits, "cpu")
    client = TestClient(make_app({"one": ModelWorker("one", writer)}))
    (model,) = client.get("/v1/explore/models").json()["writers"]
    assert model["beams"] == 3
    assert model["search"] == {
        "search.allowed": "123", "search.min_length": 3, "search.max_length": 9, "search.early_stopping": True,
    }  # fmt: skip
    found = ask(client, writer, "abc", **model["search"], **BEAM)
    texts = writer.write(["abc"], own.model_copy(update={"n_best": 3}))[0]
    assert [row["text"] for row in found["texts"]] == [each.text for each in texts]


def test_an_export_shows_its_texts_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    save(text_writer(), tmp_path / "model")
    out = str(tmp_path / "export")
    export_text_model(str(tmp_path / "model"), TextExportOptions(format="onnx", out=out, samples=2))
    writer = load_text(out)
    client = TestClient(make_app({"one": ModelWorker("one", writer)}))
    (model,) = client.get("/v1/explore/models").json()["writers"]
    assert model["kind"] is None
    assert "export" in model["why"]
    found = ask(client, writer, "abc")
    assert (found["steps"], found["attention"]) == ([], None)
    assert found["texts"][0]["text"] == writer.write(["abc"])[0][0].text


@pytest.mark.parametrize(
    ("body", "params", "status", "says"),
    [
        ({"text": "aXb"}, {}, 422, "no such characters"),
        ({"text": ""}, {}, 422, "empty text"),
        ({"texts": ["a", "b"]}, {}, 422, "One text or image"),
        ({"text": "a"}, {"rank": 2}, 422, "rank=2"),
        ({"text": "a"}, {"rank": 0}, 422, "rank"),
        ({"text": "a"}, {"search.search": "sample", "search.n_best": 99}, 422, "max_beams"),
        ({"text": "a"}, {"model": "nobody"}, 404, "no model 'nobody'"),
        ({"text": "a"}, {"topk": 3}, 422, "topk: Extra inputs are not permitted, got '3'"),
        ({"text": "a"}, {"stream": "true"}, 422, "stream: Extra inputs are not permitted, got 'true'"),
        ({"text": "a", "stream": True}, {}, 422, "not streamed"),
    ],
)
def test_what_is_wrong_is_said(
    client: TestClient, body: dict[str, Any], params: dict[str, Any], status: int, says: str
) -> None:
    answer = client.post("/v1/explore/text", params=params, json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]["message"]


def test_kinds_of_models_keep_to_their_routes(tmp_path: Path, client: TestClient) -> None:
    refused = client.post("/v1/explore?model=transformer", content=picture(), headers=PNG)
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "writes_text")
    cats = TestClient(make_app({"cats": random_host(tmp_path, "cats")}))
    refused = cats.post("/v1/explore/text", json={"text": "abc"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "writes_no_text")


def test_too_many_numbers_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore_texts, "MOST_NUMBERS", 100)
    refused = client.post("/v1/explore/text?model=transformer", json={"text": "abc"})
    assert refused.status_code == 413
    assert "at most 100" in refused.json()["error"]["message"]


def test_a_model_that_fails_says_so(writers: dict[str, TextPredictor]) -> None:
    broken = text_writer()
    with torch.no_grad():
        for parameter in broken.model.parameters():
            parameter.fill_(float("nan"))
    client = TestClient(make_app({"one": ModelWorker("one", broken)}))
    refused = client.post("/v1/explore/text", json={"text": "abc"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (500, "not_finite")


def test_strips_are_read_from_their_digits() -> None:
    for name in explore_samples.sample_names(1, strips=True):
        found = explore_samples.sample(name)
        assert found is not None
        with Image.open(io.BytesIO(found[0])) as strip:
            assert strip.size == (60, 12)
            for place, digit in enumerate(name.removeprefix("strip-")):
                single = explore_samples.sample(f"digit-{digit}")
                assert single is not None
                top = place * 3 % 5
                part = strip.crop((place * 10, top, place * 10 + 8, top + 8))
                assert part.tobytes() == Image.open(io.BytesIO(single[0])).tobytes()
