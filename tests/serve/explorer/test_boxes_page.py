"""In a browser, the explorer draws the boxes of a detector, from a score on that a slider sets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import vitral
from tests.detectors import detector_folder
from tests.serve.explorer.app import make_app, serving
from tests.serve.explorer.browser import Visit, expect
from tests.serve.explorer.truth import rows_of
from vitral.serve.model_worker import ModelWorker

if TYPE_CHECKING:
    from playwright.sync_api import Browser


def test_boxes_and_their_slider(browser: Browser, tmp_path: Path) -> None:
    folder = detector_folder(tmp_path / "model", sure=4.0, second_stage=8, proposals=12)
    predictor = vitral.load(folder, "cpu")
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)).save(out, "PNG")
    (answer,) = predictor.predict(Image.open(io.BytesIO(out.getvalue())))
    found = answer["detections"]
    assert len(found) > 1
    with serving(make_app({"detector": ModelWorker("detector", predictor)})) as base:
        visit = Visit(browser, base)
        page = visit.open()
        visit.hand_over("paste", out.getvalue())
        expect(page.locator("#seen")).to_contain_text("Given: 64 × 64 pixels")
        visit.quiet()
        expect(page.locator("#box-value")).to_contain_text(f"{len(found)} of ")
        assert [row[0] for row in rows_of(page, "boxes-table")] == [each["label"] for each in found]
        page.locator("#boxes-table tbody tr").first.hover()
        expect(page.locator("#box-value")).to_contain_text(f"{found[0]['label']}, ")
        expect(page.locator("#box-value")).to_contain_text(f"x {found[0]['box'][0]:.1f} to ")
        page.mouse.move(0, 0)
        page.locator("#least").fill("0.99")
        expect(page.locator("#box-value")).to_contain_text("0 of ")
        assert not rows_of(page, "boxes-table")
        visit.close()
