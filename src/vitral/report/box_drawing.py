"""Draw boxes with the names of their classes on a picture.

Shape letters: H W height and width, C channels.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_LONG_SIDE = 480  # pixels of the drawing: smaller pictures are enlarged by whole numbers, so that lines stay thin
_DASH = 5  # pixels, of a dash and of the gap after it

Color = tuple[int, int, int]


class Outline(NamedTuple):
    """A box (x0, y0, x1, y1) in pixels of the picture, what is written at it, and how it is drawn. A dashed one has its
    label below, so that it does not cover that of a box in the same place."""

    box: Sequence[float]
    label: str
    color: Color
    dashed: bool = False


def draw_boxes(image_HWC: NDArray[Any], boxes: Sequence[Sequence[float]], labels: Sequence[str]) -> NDArray[Any]:
    """The uint8 picture [H, W, C] in color, uint8 [H, W, 3], with the boxes (x0, y0, x1, y1) around what they hold, in
    one color per class. A small picture is enlarged, a large one made smaller; what is outside stays outside."""
    return draw_outlines(
        image_HWC, [Outline(box, label, class_color(label)) for box, label in zip(boxes, labels, strict=True)]
    )


def draw_outlines(
    image_HWC: NDArray[Any], outlines: Sequence[Outline], side: int = _LONG_SIDE, text: int = 11
) -> NDArray[Any]:  # fmt: skip
    """The same with any outlines, the later ones over the earlier ones, and labels over all of them. side, text: pixels
    of the longer side, at most, and of a letter."""
    pixels = image_HWC[..., :3] if image_HWC.shape[2] > 2 else np.repeat(image_HWC[..., :1], 3, axis=2)
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    scale = float(max(1, int(scale))) if scale >= 1 else scale
    size = max(1, round(width * scale)), max(1, round(height * scale))
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, resample)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(text)
    places: list[tuple[int, int, int, int]] = []
    for each in outlines:
        left, top, right, bottom = (round(edge * scale) for edge in each.box)
        places.append((left, top, max(right - 1, left), max(bottom - 1, top)))
        if each.dashed:
            _dashed(draw, places[-1], each.color)
        else:
            draw.rectangle(places[-1], outline=each.color, width=2)
    for each, (left, top, _, bottom) in zip(outlines, places, strict=True):
        if each.label:
            # Above the box, or below a dashed one, moved into the picture.
            x1, y1 = (int(edge) for edge in draw.textbbox((0, 0), each.label, font=font)[2:])
            high = bottom + 1 if each.dashed else top - y1 - 1
            where = max(min(left, size[0] - x1 - 1), 0), max(min(high, size[1] - y1 - 1), 0)
            draw.rectangle(draw.textbbox(where, each.label, font=font), fill=each.color)
            draw.text(where, each.label, fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def _dashed(draw: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], color: Color) -> None:
    left, top, right, bottom = corners
    for start in range(left, right + 1, 2 * _DASH):
        end = min(start + _DASH, right)
        draw.rectangle((start, top, end, top + 1), fill=color)
        draw.rectangle((start, max(bottom - 1, top), end, bottom), fill=color)
    for start in range(top, bottom + 1, 2 * _DASH):
        end = min(start + _DASH, bottom)
        draw.rectangle((left, start, left + 1, end), fill=color)
        draw.rectangle((max(right - 1, left), start, right, end), fill=color)


def class_color(label: str) -> Color:
    """A bright color that follows from the name, so that a class has it on every picture."""
    red, green, blue = colorsys.hls_to_rgb(zlib.crc32(label.encode("utf-8", "replace")) % 360 / 360, 0.65, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
