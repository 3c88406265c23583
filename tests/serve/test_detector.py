"""A served detector answers what `vitral predict` prints."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.detectors import bright, detector_folder
from tests.serve.serving import files, with_application
from vitral.cli.main import main
from vitral.models.detector import Detector

JPEG = {"Content-Type": "image/jpeg"}


@pytest.fixture(autouse=True)
def _bright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Detector, "forward", bright)
    detector_folder(Path("model"))


def turned() -> bytes:
    """A JPEG that is seen 80 wide and 200 high, stored a quarter turn to the left, white from (20, 50) to (60, 150)."""
    pixels, out, exif = np.zeros((200, 80), np.uint8), io.BytesIO(), Image.Exif()
    pixels[50:150, 20:60] = 255
    exif[274] = 6
    Image.fromarray(np.rot90(pixels)).save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


def test_predict_answers_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.zeros((30, 90), np.uint8)
    pixels[10:20, 30:60] = 255
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    images = {"a.jpg": turned(), "b.png": out.getvalue()}
    for name, data in images.items():
        Path(name).write_bytes(data)
    assert main(["predict", "model", *images]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[0]["detections"][0]["box"] == pytest.approx([20, 50, 60, 150], abs=4)

    async def ask(client: httpx.AsyncClient) -> None:
        both = await client.post("/v1/predict", files=files(*images.values(), names=tuple(images)))
        assert both.json() == printed
        one = await client.post("/v1/predict", content=images["a.jpg"], headers=JPEG)
        assert one.json()["detections"] == printed[0]["detections"]
        refused = await client.post("/v1/predict?topk=3", content=images["a.jpg"], headers=JPEG)
        assert refused.status_code == 422
        assert "above its threshold" in refused.json()["error"]["message"]
        schema = (await client.get("/openapi.json")).json()["components"]["schemas"]
        assert {"image", "detections"} == set(schema["Detected"]["properties"])

    with_application(Path("model"), ask)


def test_the_explorer_has_boxes_of_what_the_model_sees() -> None:
    async def ask(client: httpx.AsyncClient) -> None:
        (described,) = (await client.get("/v1/explore/models")).json()["models"]
        assert {"boxes", "attention"} <= set(described["can"])
        assert not {"predict", "lens", "merge", "attack"} & set(described["can"])
        assert {"lens", "merge", "attack"} <= set(described["why"])
        assert described["threshold"] == 0.3
        refused = await client.post("/v1/explore?topk=3", content=turned(), headers=JPEG)
        assert refused.status_code == 422
        assert "above its threshold" in refused.json()["error"]["message"]
        found = (await client.post("/v1/explore", content=turned(), headers=JPEG)).json()
        again = f"/v1/explore/{found['id']}"
        assert [(await client.get(again + more)).status_code for more in ("", "?topk=3")] == [200, 422]
        dog, cat = found["detections"]
        assert [dog["label"], cat["label"]] == ["dog", "cat"], "also below the threshold"
        # 80 x 200 pixels become 26 x 64, with 19 of gray on both sides.
        assert dog["box"] == pytest.approx([25.4, 16, 38.2, 48], abs=2)
        assert cat["box"] == [0, 0, 64, 64]
        for view in ("attention", "rollout", "norms"):
            assert (await client.get(f"/v1/explore/{found['id']}/{view}")).status_code == 200
        for view in ("lens", "merge?r=2", "attack?eps=0.01"):
            answer: Any = await client.get(f"/v1/explore/{found['id']}/{view}")
            assert answer.status_code == 422, view

    with_application(Path("model"), ask)
