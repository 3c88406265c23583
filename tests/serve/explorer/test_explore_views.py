"""The explorer's numbers are Python's own, for every kind of model; the model is as it was afterwards."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

import vitral
from tests.serve.explorer.app import conv_host, make_app, random_host
from vitral.attacks.registry import create_attack
from vitral.compression.tome import ToMe
from vitral.errors import UserError
from vitral.interpret.attention import stream_maps, token_attention
from vitral.interpret.logit_lens import logit_lens
from vitral.interpret.patches import patch_norms, patch_similarity
from vitral.interpret.rollout import rollout
from vitral.models.vit import VisionTransformer
from vitral.predictor import Predictor
from vitral.serve import explore_samples
from vitral.serve import explore_views as views
from vitral.serve.image_cache import CachedImage, ImageCache
from vitral.serve.model_worker import ModelWorker

FOLDER = Path(views.__file__).with_name("explorer")
CLASSES = ("cat", "dog", "owl", "eel")
PNG = {"Content-Type": "image/png"}
KINDS: dict[str, dict[str, Any]] = {
    "registers": {"registers": 3, "image_size": (12, 8), "depth": 3},
    "average": {"class_token": False, "pool": "avg", "in_channels": 3},
    "distilled": {"distill_token": True, "registers": 1, "in_channels": 2},
    "map": {"pool": "map", "class_token": False, "in_channels": 4},
    "headless": {"classes": ()},
    "pruner": {"pruner_blocks": [1], "pruner_keep": 0.5, "depth": 3},
    "uneven heads": {"block_heads": [2, 1], "heads": 2},
}  # fmt: skip


def picture(height: int = 23, width: int = 37, seed: int = 0) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelWorker]:
    root = tmp_path_factory.mktemp("models")
    return {name: random_host(root, name, **options) for name, options in KINDS.items()}


@pytest.fixture(scope="module")
def client(hosts: dict[str, ModelWorker]) -> TestClient:
    return TestClient(make_app(hosts), headers=PNG)


def give(client: TestClient, model: str, data: bytes | None = None, **params: Any) -> dict[str, Any]:
    response = client.post("/v1/explore", params={"model": model, **params}, content=data or picture())
    assert response.status_code == 200, response.text
    return response.json()


def floats(client: TestClient, key: str, view: str, **params: Any) -> np.ndarray[Any, Any]:
    response = client.get(f"/v1/explore/{key}/{view}", params=params)
    assert response.status_code == 200, response.text
    shape = [int(size) for size in response.headers["x-shape"].split(",")]
    return np.frombuffer(response.content, "<f4").reshape(shape)


def seen(host: ModelWorker, data: bytes) -> tuple[VisionTransformer, torch.Tensor]:
    """The model and its input, as Python has them."""
    vit = host.predictor.model
    assert isinstance(vit, VisionTransformer)
    return vit, host.predictor.preprocess(data)[None]


def tokens_of(vit: VisionTransformer) -> list[str]:
    return [f"{vit.grid[0] - 1},{1}", "mean", *views.token_names(vit.config)]


@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("pruner", "uneven heads")])
def test_every_view_equals_python(client: TestClient, hosts: dict[str, ModelWorker], name: str) -> None:
    data = picture(seed=len(name))
    answer = give(client, name, data, topk=2)
    key, (vit, x_BCHW) = answer["id"], seen(hosts[name], data)
    assert key == hashlib.sha256(data).hexdigest()
    assert answer["size"] == [23, 37]
    with Image.open(io.BytesIO(base64.b64decode(answer["input"].partition(",")[2]))) as shown:
        pixels_HWC = np.asarray(shown).reshape(*vit.config.image_size, -1)
    np.testing.assert_array_equal(pixels_HWC, (x_BCHW[0] * 255).round().permute(1, 2, 0).numpy())
    if vit.config.num_classes:
        assert answer["predictions"] == hosts[name].predictor.predict(data, topk=2)[0]["predictions"]
    else:
        assert (answer["predictions"], answer["latency_ms"]) == ([], None)
    for token in tokens_of(vit):
        both = floats(client, key, "attention", model=name, token=token)
        np.testing.assert_array_equal(both[0], token_attention(vit, x_BCHW, token)[0].numpy())
        rows = views.token_rows(vit.config, token, vit.grid)
        for layer, map_BhTT in stream_maps(vit, x_BCHW):
            np.testing.assert_allclose(both[1, layer], map_BhTT[0][:, :, rows].mean(2), atol=1e-7)
        for fuse in ("mean", "max"):
            rolled = floats(client, key, "rollout", model=name, token=token, fuse=fuse)
            np.testing.assert_allclose(rolled, rollout(vit, x_BCHW, token, fuse)[0], atol=1e-7)
    np.testing.assert_array_equal(
        floats(client, key, "similarity", model=name, patch="1,3"), patch_similarity(vit, x_BCHW, (1, 3))[0]
    )
    np.testing.assert_array_equal(floats(client, key, "norms", model=name), patch_norms(vit, x_BCHW)[0])


def test_without_a_token_it_is_what_the_head_reads(client: TestClient, hosts: dict[str, ModelWorker]) -> None:
    for name, token in (("registers", "cls"), ("average", "mean")):
        key = give(client, name)["id"]
        same = floats(client, key, "attention", model=name, token=token)
        np.testing.assert_array_equal(floats(client, key, "attention", model=name), same)


@pytest.mark.parametrize("name", ["registers", "average", "distilled", "map"])
def test_the_lens_equals_python(client: TestClient, hosts: dict[str, ModelWorker], name: str) -> None:
    data, predictor = picture(seed=3), hosts[name].predictor
    answer = give(client, name, data)
    vit, x_BCHW = seen(hosts[name], data)
    found = client.get(f"/v1/explore/{answer['id']}/lens", params={"model": name, "topk": 3}).json()
    scores_LS = predictor.scores(logit_lens(vit, x_BCHW)[0])
    final = int(scores_LS[-1].argmax())
    assert found["final"] == {"label": CLASSES[final], "index": final}
    for row_S, layer in zip(scores_LS, found["layers"], strict=True):
        best = row_S.sort(descending=True)
        assert [each["index"] for each in layer["predictions"]] == best.indices[:3].tolist()
        assert [each["score"] for each in layer["predictions"]] == pytest.approx(best.values[:3].tolist(), abs=1e-6)
        assert layer["final_score"] == pytest.approx(float(row_S[final]), abs=1e-6)
    whole = {each["index"]: each["score"] for each in answer["predictions"]}
    last = found["layers"][-1]["predictions"]
    assert [whole[each["index"]] for each in last] == pytest.approx([each["score"] for each in last], abs=2e-6)


@pytest.mark.parametrize("name", ["registers", "average", "headless", "pruner"])
@pytest.mark.parametrize("r", [0, 3])
def test_merging_equals_python(client: TestClient, hosts: dict[str, ModelWorker], name: str, r: int) -> None:
    data, predictor = picture(seed=5), hosts[name].predictor
    key, (vit, x_BCHW) = give(client, name, data)["id"], seen(hosts[name], data)
    before = vit.reduce
    found = client.get(f"/v1/explore/{key}/merge", params={"model": name, "r": r, "topk": 2}).json()
    assert vit.reduce is before
    merging = ToMe(r=r)
    with torch.no_grad():
        out = vit.encode_tokens(*vit.embed(x_BCHW), reduce=merging)
        wholly = vit.encode_tokens(*vit.embed(x_BCHW), reduce=ToMe(r=0))
    count = vit.grid[0] * vit.grid[1]
    assert found["groups"] == (list(range(count)) if out.groups_BN is None else out.groups_BN[0].tolist())
    assert found["counts"] == merging.counts(count, vit.config.depth)
    assert len(set(found["groups"])) == found["counts"][-1]
    for side, each in (("whole", wholly), ("merged", out)):
        if not vit.config.num_classes:
            assert found[side] == []
            continue
        scores_S = predictor.scores(vit.classify(vit.pool(each)).detach())[0]
        best = scores_S.sort(descending=True)
        assert [row["index"] for row in found[side]] == best.indices[:2].tolist()
        assert [row["score"] for row in found[side]] == pytest.approx(best.values[:2].tolist(), abs=1e-6)
    assert found["ms"]["n"] >= 3
    assert found["ms"]["whole"] > 0
    assert found["ms"]["merged"] > 0


def test_a_model_that_drops_patches_is_shown_whole(client: TestClient, hosts: dict[str, ModelWorker]) -> None:
    data = picture()
    vit, x_BCHW = seen(hosts["pruner"], data)
    pruner = vit.reduce
    assert pruner is not None
    key = give(client, "pruner", data)["id"]
    found = floats(client, key, "attention", model="pruner", token="cls")
    assert vit.reduce is pruner
    with views.reduced_by(vit, None):
        expected = token_attention(vit, x_BCHW, "cls")[0].numpy()
    np.testing.assert_array_equal(found[0], expected)
    for view in ("norms?", "lens?", "similarity?patch=0,0&", "merge?r=1&"):
        assert client.get(f"/v1/explore/{key}/{view}model=pruner").status_code == 200
        assert vit.reduce is pruner


def test_the_reduction_is_put_back_after_an_error(hosts: dict[str, ModelWorker]) -> None:
    predictor = hosts["registers"].predictor
    vit, x_BCHW = seen(hosts["registers"], picture())
    vit.reduce = ToMe(r=1)
    try:
        for call in (
            lambda: views.similarity(predictor, x_BCHW[0], "99,99"),
            lambda: views.norms(predictor, x_BCHW[0, :, :5]),
            lambda: views.merged(predictor, x_BCHW[0, :, :5], 2, 3),
        ):
            with pytest.raises(UserError):
                call()
            assert vit.reduce == ToMe(r=1)
    finally:
        vit.reduce = None


def test_heads_that_a_layer_lacks_are_no_numbers(client: TestClient, hosts: dict[str, ModelWorker]) -> None:
    data = picture()
    key, (vit, x_BCHW) = give(client, "uneven heads", data)["id"], seen(hosts["uneven heads"], data)
    both = floats(client, key, "attention", model="uneven heads", token="0,1")
    assert np.isnan(both[:, 1, 1]).all()
    for layer, map_BhTT in stream_maps(vit, x_BCHW):
        row = views.token_rows(vit.config, "0,1", vit.grid)[0]
        np.testing.assert_array_equal(both[0, layer, : map_BhTT.shape[1]], map_BhTT[0, :, row])


def test_half_precision_models_answer_in_float32(tmp_path: Path) -> None:
    host = random_host(tmp_path, "half")
    host.predictor.model.bfloat16()
    client, data = TestClient(make_app({"half": host}), headers=PNG), picture()
    key, (vit, x_BCHW) = give(client, "half", data)["id"], seen(host, data)
    both = floats(client, key, "attention", token="cls")
    np.testing.assert_array_equal(both[0], token_attention(vit, x_BCHW, "cls")[0].float().numpy())
    np.testing.assert_array_equal(floats(client, key, "norms"), patch_norms(vit, x_BCHW)[0].float().numpy())
    for view in ("lens", "merge?r=1"):
        assert client.get(f"/v1/explore/{key}/{view}").status_code == 200


@pytest.mark.parametrize("kind", ["fgsm", "pgd"])
def test_an_attack_equals_python(client: TestClient, hosts: dict[str, ModelWorker], kind: str) -> None:
    data, eps = picture(seed=6), 8 / 255
    clean, (vit, x_BCHW) = give(client, "registers", data, topk=2), seen(hosts["registers"], data)
    steps = {"steps": 4} if kind == "pgd" else {}
    params: dict[str, Any] = {"model": "registers", "kind": kind, "eps": eps, "topk": 2, **steps}
    answer = client.get(f"/v1/explore/{clean['id']}/attack", params=params).json()
    label_B = vit(x_BCHW).detach().argmax(1)
    found_BCHW = create_attack(kind, eps=eps, **steps)(vit, x_BCHW, label_B)
    assert float((found_BCHW - x_BCHW).abs().max()) == pytest.approx(eps, abs=1e-6)
    predictor = hosts["registers"].predictor
    assert answer["before"] == clean["predictions"]
    assert answer["predictions"] == predictor.postprocess(predictor.forward(found_BCHW), 2)[0]["predictions"]
    with Image.open(io.BytesIO(base64.b64decode(answer["input"].partition(",")[2]))) as shown:
        pixels_HWC = np.asarray(shown).reshape(*vit.config.image_size, -1)
    np.testing.assert_array_equal(pixels_HWC, (found_BCHW[0] * 255).round().permute(1, 2, 0).numpy())
    both = floats(client, answer["id"], "attention", model="registers", token="cls")
    np.testing.assert_array_equal(both[0], token_attention(vit, found_BCHW, "cls")[0].detach().numpy())
    same = floats(client, clean["id"], "attention", model="registers", token="cls")
    assert not np.array_equal(both, same)
    assert all(parameter.grad is None for parameter in vit.parameters())
    assert client.get(f"/v1/explore/{clean['id']}/attack", params=params).json()["id"] == answer["id"]


@pytest.mark.parametrize(
    "words", ["eps=0", "eps=0.07", "eps=-1", "eps=8", "", "eps=0.01&steps=21", "eps=0.01&kind=apgd"]
)
def test_an_attack_has_limits(client: TestClient, words: str) -> None:
    key = give(client, "registers")["id"]
    assert client.get(f"/v1/explore/{key}/attack?{words}").status_code == 422


def test_a_model_without_classes_is_not_attacked(client: TestClient, hosts: dict[str, ModelWorker]) -> None:
    key = give(client, "headless")["id"]
    response = client.get(f"/v1/explore/{key}/attack?eps=0.03&model=headless")
    assert (response.status_code, "one class per image" in response.text) == (422, True)
    assert "attack" not in views.describe(hosts["headless"].predictor)["can"]
    assert client.get(f"/v1/explore/{'0' * 64}/attack?eps=0.03").json()["error"]["code"] == "gone"


def test_models_say_what_they_have(client: TestClient, hosts: dict[str, ModelWorker]) -> None:
    found = {each["name"]: each for each in client.get("/v1/explore/models").json()["models"]}
    assert list(found) == list(hosts)
    registers = found["registers"]
    assert (registers["grid"], registers["layers"], registers["heads"]) == ([6, 4], 3, [2, 2, 2])
    assert registers["tokens"] == ["cls", "register:0", "register:1", "register:2"]
    assert registers["can"] == ["predict", "attack", "attention", "lens", "merge"]
    assert (registers["default_token"], found["average"]["default_token"]) == ("cls", "mean")
    assert found["headless"]["can"] == ["attention", "merge"]
    assert "no head" in found["headless"]["why"]["lens"]
    assert found["pruner"]["reduced"]
    assert not registers["reduced"]
    assert registers["samples"][3] == {"id": "digit-3", "title": "Digit 3"}
    assert "shapes" in [sample["id"] for sample in found["average"]["samples"]]


def test_relative_positions_refuse_merging_alone(tmp_path: Path) -> None:
    host = random_host(tmp_path, "relative", positions="relative")
    client = TestClient(make_app({"relative": host}), headers=PNG)
    assert client.get("/v1/explore/models").json()["models"][0]["can"] == ["predict", "attack", "attention", "lens"]
    key = give(client, "relative")["id"]
    assert floats(client, key, "norms").shape == (2, 16)
    refused = client.get(f"/v1/explore/{key}/merge?r=1")
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "unprocessable")


def test_convolutional_networks_and_exports_answer_alone(tmp_path: Path) -> None:
    cnn = conv_host().predictor
    network = cnn.model

    class Closed:
        name, precision, takes = "closed", "float32", "resized"
        metadata = None

        @torch.no_grad()
        def logits(self, images: torch.Tensor) -> torch.Tensor:
            return network(images)

    export = Predictor(None, cnn.config, "cpu", Closed())  # type: ignore[arg-type]
    client = TestClient(
        make_app({"cnn": ModelWorker("cnn", cnn), "export": ModelWorker("export", export)}), headers=PNG
    )
    first, second = client.get("/v1/explore/models").json()["models"]
    assert (first["can"], second["can"]) == (["predict", "attack"], ["predict"])
    assert "convolutional" in first["why"]["attention"]
    assert "export" in second["why"]["attention"]
    data = picture()
    answers = [give(client, name, data) for name in ("cnn", "export")]
    assert answers[0]["predictions"] == answers[1]["predictions"] == cnn.predict(data)[0]["predictions"]
    for name in ("cnn", "export"):
        for view in ("attention?", "rollout?", "norms?", "similarity?patch=0,0&", "lens?", "merge?r=1&"):
            refused = client.get(f"/v1/explore/{answers[0]['id']}/{view}model={name}")
            assert refused.status_code == 422, view


def test_what_is_wrong_is_said(client: TestClient) -> None:
    key = give(client, "registers")["id"]
    wrong = {
        f"{key}/attention?token=9,9": (422, "no such token"),
        f"{key}/attention?token=clss": (422, "did you mean 'cls'"),
        f"{key}/similarity?patch=1": (422, "not a patch"), f"{'0' * 64}/norms": (404, "give it again"),
        "samples/nothing": (404, "no sample"), f"{key}/norms?model=nobody": (404, "registers, average"),
    }  # fmt: skip
    for path, (status, part) in wrong.items():
        response = client.get(f"/v1/explore/{path}")
        assert (response.status_code, part in response.text) == (status, True), response.text
    assert client.get(f"/v1/explore/{'0' * 64}/norms").json()["error"]["code"] == "gone"
    assert client.post("/v1/explore", content=b"no image").status_code == 422
    assert client.get("/v1/explore/short/norms").status_code == 422
    assert client.get(f"/v1/explore/{key}/merge?r=-1").status_code == 422


def test_an_image_is_kept_and_found_again(client: TestClient) -> None:
    answer = give(client, "average", picture(5, 9, seed=77))
    again = client.get(f"/v1/explore/{answer['id']}", params={"model": "average"}).json()
    assert again | {"latency_ms": 0} == answer | {"latency_ms": 0}
    # By another model, too, which it was not given to; only that one's views were not there.
    assert client.get(f"/v1/explore/{answer['id']}/norms?model=registers").json()["error"]["code"] == "gone"
    other = client.get(f"/v1/explore/{answer['id']}", params={"model": "registers", "topk": 2}).json()
    given = give(client, "registers", picture(5, 9, seed=77), topk=2)
    assert other | {"latency_ms": 0} == given | {"latency_ms": 0}
    assert client.get(f"/v1/explore/{answer['id']}/norms?model=registers").status_code == 200


def test_a_replaced_model_has_not_seen_the_images(tmp_path: Path) -> None:
    host = random_host(tmp_path, "one")
    client = TestClient(make_app({"one": host}), headers=PNG)
    key = give(client, "one")["id"]
    assert client.get(f"/v1/explore/{key}/norms").status_code == 200
    host.predictor = vitral.load(tmp_path / "one", "cpu")
    assert client.get(f"/v1/explore/{key}/norms").json()["error"]["code"] == "gone"
    assert client.get(f"/v1/explore/{key}").status_code == 200  # the image is there, and answered anew
    assert client.get(f"/v1/explore/{key}/norms").status_code == 200


def test_kept_images_are_bounded(hosts: dict[str, ModelWorker]) -> None:
    predictor = hosts["registers"].predictor
    one = CachedImage(weakref.ref(predictor), torch.zeros(3, 10, 10), b"x" * 100)
    assert one.nbytes == 1300
    kept = ImageCache(most_images=3, most_bytes=2 * 1300)
    for number in range(2):
        kept.put("m", str(number), dataclasses.replace(one))
    assert kept.get("m", "0", predictor) is not None  # and so the last one asked for
    kept.put("m", "2", dataclasses.replace(one))
    assert (len(kept), kept.get("m", "1", predictor)) == (2, None)
    kept.put("m", "2", dataclasses.replace(one))
    assert (len(kept), kept.nbytes) == (2, 2600)
    kept.put("m", "large", dataclasses.replace(one, x_CHW=torch.zeros(3, 30, 30)))
    assert kept.get("m", "large", predictor) is None
    many = ImageCache(most_images=3)
    for number in range(9):
        many.put("m", str(number), dataclasses.replace(one))
    assert len(many) == 3


def test_maps_of_one_image_are_kept(hosts: dict[str, ModelWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    client = TestClient(make_app(hosts), headers=PNG)
    calls: list[int] = []
    original = views.attention_maps
    monkeypatch.setattr(views, "attention_maps", lambda *given: calls.append(1) or original(*given))
    keys = [give(client, "registers", picture(seed=seed))["id"] for seed in (1, 2)]
    for token in ("cls", "0,0", "mean"):
        floats(client, keys[0], "attention", token=token)
        floats(client, keys[0], "rollout", token=token)
    assert len(calls) == 1
    floats(client, keys[1], "attention")
    floats(client, keys[0], "attention")
    assert len(calls) == 3
    # Too large for that, they come one after the other, with the same numbers.
    expected = [floats(client, keys[0], view) for view in ("attention", "rollout")]
    monkeypatch.setattr("vitral.serve.explorer_routes.MOST_MAP_BYTES", 100)
    other = TestClient(make_app(hosts), headers=PNG)
    give(other, "registers", picture(seed=1))
    for view, values in zip(("attention", "rollout"), expected, strict=True):
        np.testing.assert_array_equal(floats(other, keys[0], view), values)
    assert len(calls) == 5


def test_names_that_are_no_samples_are_not_remembered(client: TestClient) -> None:
    before = explore_samples._sample.cache_info().currsize
    for number in range(5):
        assert client.get(f"/v1/explore/samples/none-{number}").status_code == 404
    assert explore_samples._sample.cache_info().currsize == before


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_samples_are_pictures(channels: int, client: TestClient) -> None:
    for name in explore_samples.sample_names(channels):
        response = client.get(f"/v1/explore/samples/{name}")
        with Image.open(io.BytesIO(response.content)) as image:
            image.load()
            assert Image.MIME[image.format or ""] == response.headers["content-type"]


def test_the_digits_are_recognized() -> None:
    predictor = vitral.load("vitral-digits", "cpu")
    files = [explore_samples.sample(f"digit-{digit}") for digit in range(10)]
    labels = [said["predictions"][0]["label"] for said in predictor.predict([file[0] for file in files if file])]
    assert labels == list("0123456789")


def test_the_page_is_small_and_whole(client: TestClient) -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 110_000  # of both pages
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for path in files:
        response = client.get(f"/explorer/{path.name}")
        assert response.content == path.read_bytes()
        again = client.get(f"/explorer/{path.name}", headers={"If-None-Match": response.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        text = path.read_text(encoding="utf-8")
        assert "style=" not in text.partition("const html")[0], path.name
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in text
    assert client.get("/explorer/explore.py").status_code == 404
    assert client.get("/explorer/..%2fhost.py").status_code == 404
