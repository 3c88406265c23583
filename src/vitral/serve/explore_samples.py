"""Sample images of the explorer: scikit-learn's digits and photographs, and generated drawings."""

from __future__ import annotations

import functools
import importlib.util
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vitral.data.text.digits_read import GAP, SCAN, SIZE, TOP

_SIDE = 256  # pixels of a drawing
_PHOTOGRAPHS = {"china": "A temple in China", "flower": "A flower"}
_STRIPS = ("314", "2026", "90817", "555310")
_INK = ((213, 94, 0), (0, 114, 178), (0, 158, 115), (240, 228, 66))


def sample_names(channels: int, *, strips: bool = False) -> dict[str, str]:
    """Names and titles of the samples for a model of so many channels: digits for gray ones, else pictures. strips: of
    gray images that are wide, for models that read lines."""
    if channels <= 2 and strips:
        return {f"strip-{digits}": f"Digits {digits}" for digits in _STRIPS}
    if channels <= 2:
        return {f"digit-{digit}": f"Digit {digit}" for digit in range(10)}
    there = {name: title for name, title in _PHOTOGRAPHS.items() if _photograph(name) is not None}
    return there | {"shapes": "Drawn shapes", "rings": "Drawn rings"}


def sample(name: str) -> tuple[bytes, str] | None:
    """The file of a sample and its media type; None where there is no such sample. The first digit takes a second."""
    known = sample_names(1) | sample_names(1, strips=True) | sample_names(3)
    return _sample(name) if name in known else None


@functools.cache
def _sample(name: str) -> tuple[bytes, str]:
    photograph = _photograph(name)
    if photograph is not None:
        return photograph.read_bytes(), "image/jpeg"
    kind, _, digits = name.partition("-")
    if kind in ("digit", "strip"):
        drawn = _strip(digits) if kind == "strip" else _digit(int(digits))
    else:
        drawn = _shapes() if name == "shapes" else _rings()
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue(), "image/png"


def _photograph(name: str) -> Path | None:
    """A photograph that comes with scikit-learn, which is found without the seconds that its import takes."""
    package = importlib.util.find_spec("sklearn")
    if name not in _PHOTOGRAPHS or package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "datasets" / "images" / f"{name}.jpg"
    return path if path.is_file() else None


def _digit(digit: int) -> Image.Image:
    """The first of its class among the test images, which the bundled model has not learned from."""
    from vitral.data.config import DataConfig
    from vitral.data.digits import open_digits

    test = open_digits(DataConfig(path="digits")).splits["test"]
    return Image.fromarray(test.read(int(np.argmax(np.asarray(test.labels_N) == digit)))[0].numpy())


def _strip(digits: str) -> Image.Image:
    """Such digits from left to right, as in the strips that `digits_read` learns from."""
    strip = Image.new("L", (SIZE[1], SIZE[0]))
    for place, digit in enumerate(digits):
        strip.paste(_digit(int(digit)), (place * (SCAN + GAP), place * 3 % (TOP + 1)))
    return strip


def _shapes() -> Image.Image:
    """A disc, a square and a triangle, run_in_thread from each other on a plain ground."""
    image = Image.new("RGB", (_SIDE, _SIDE), (232, 232, 226))
    draw = ImageDraw.Draw(image)
    draw.ellipse((24, 30, 120, 126), fill=_INK[0])
    draw.rectangle((150, 44, 232, 126), fill=_INK[1])
    draw.polygon([(128, 140), (200, 234), (56, 234)], fill=_INK[2])
    return image


def _rings() -> Image.Image:
    """Rings around a point off the middle: the same pattern at every distance, so only the position distinguishes
    patches run_in_thread."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    ring = (np.hypot(rows - 150, columns - 110) / (_SIDE / 16 * math.sqrt(2))).astype(int) % len(_INK)
    return Image.fromarray(np.array(_INK, np.uint8)[ring])
