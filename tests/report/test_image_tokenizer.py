"""Sections of an image tokenizer's report."""

from __future__ import annotations

import numpy as np

from vitral.report.image_tokenizer import CODES, use_sections
from vitral.report.sections import Picture


def test_the_sheet_of_codes_is_large_enough_to_see() -> None:
    """64 patches of 2 x 2 pixels are 16 pixels wide, and are shown 32 times as large, each pixel a square."""
    sheet_HWC = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    *_, use = use_sections([3, 1], "test", {CODES: sheet_HWC[None]})
    (shown,) = [part for part in use.parts if isinstance(part, Picture)]
    pixels = np.asarray(shown.image).squeeze()
    assert pixels.shape == (512, 512)
    assert (pixels[::32, ::32] == sheet_HWC[..., 0]).all()
