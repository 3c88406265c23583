"""Draw boxes with the names of their classes on a picture.

Shape letters: H W height and width, C channels.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LONG_SIDE = 480  # pixels of the drawing: smaller pictures are enlarged by whole numbers, so that lines stay thin


def draw_boxes(image_HWC: NDArray[Any], boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> NDArray[Any]:
    """The uint8 picture [H, W, C] in color, uint8 [H, W, 3], with the boxes (x0, y0, x1, y1) around what they hold, in
    one color per class. A small picture is enlarged, a large one made smaller; what is outside stays outside."""
    pixels = image_HWC[..., :3] if image_HWC.shape[2] > 2 else np.repeat(image_HWC[..., :1], 3, axis=2)
    height, width = pixels.shape[:2]
    scale = _LONG_SIDE / max(height, width)
    scale = float(max(1, int(scale))) if scale >= 1 else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resample)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for (x0, y0, x1, y1), label in zip(boxes, labels, strict=True):
        color = class_color(label)
        left, top, right, bottom = (round(edge * scale) for edge in (x0, y0, x1, y1))
        corners = left, top, max(right - 1, left), max(bottom - 1, top)
        draw.rectangle(corners, outline=color, width=2)
        if label:
            where = max(left, 0), max(top - 13, 0)
            draw.rectangle(draw.textbbox(where, label, font=font), fill=color)
            draw.text(where, label, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def class_color(label: str) -> tuple[int, int, int]:
    """A bright color that follows from the name, so that a class has it on every picture."""
    red, green, blue = colorsys.hls_to_rgb(zlib.crc32(label.encode("utf-8", "replace")) % 360 / 360, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
