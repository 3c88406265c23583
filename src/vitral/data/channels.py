"""Convert a decoded image to uint8 with 1 to 4 channels, a few rows at a time, so that no second copy is needed.

Samples of more than 8 bits are mapped by one rule, `value_range`: low becomes 0, high becomes 255, what lies beyond is
clipped, with a note. Without a rule the format has to say what its samples mean: unsigned 16 bits end at 65535, floats
at 1. A picture that contradicts its format, or whose format says nothing (32-bit integers), is refused.
Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor

from vitral.data.config import MAX_PIXELS, DataConfig
from vitral.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]
Range = tuple[float, float]
Rgb = tuple[int, int, int]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
GRAY_WORDS = "gray words"  # in the info of an RGBA image: its bytes are gray and alpha of 16 bits, high bytes first
_WORD: Range = (0, 65535)  # what an unsigned sample of 16 bits means by its format
_LEAST_INSIDE = 0.01  # share of samples between black and white in a picture that is still one
_SAMPLES = 4096  # of an image, that its quantiles are measured by
_OVERSHOOT = 0.05  # of floats beyond [0,1], by rounding or filters, that is clipped
_STRIPE = 1 << 18  # pixels that are computed with at once: a few MB
_FIRST_TO = {"La": "LA", "RGBa": "RGBA", "LAB": "RGB", "HSV": "RGB"}  # Pillow takes these to nothing else
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # tags of TIFF

log = logging.getLogger("vitral")
_noted: set[tuple[Range, bool]] = set()


class Decoding(NamedTuple):
    """Rules that a user sets, and what their keys are called in the running command.

    background: the color (red, green, blue, 0 to 255) behind transparency. max_pixels: the largest image, of up to four
    bytes per pixel; deeper ones count in proportion. value_range: samples that are black and white in pictures of more
    than 8 bits; None: what their format says.
    """

    background: Rgb = (255, 255, 255)
    max_pixels: int = MAX_PIXELS
    value_range: Range | None = None
    limit_key: str = "data.max_pixels"
    range_key: str = "data.value_range"

    @classmethod
    def of(cls, config: DataConfig) -> Decoding:
        """The rules of a data configuration; its value_range `auto` is none yet."""
        limits = config.value_range if config.value_range != "auto" else None
        return cls(color(config.background), config.max_pixels, limits, range_key=config.range_key)


DEFAULT = Decoding()


def color(text: str) -> Rgb:
    """Red, green and blue, 0 to 255, of a color's name or #rrggbb. Raises UserError for anything else."""
    try:
        values = ImageColor.getrgb(text)
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UserError("not a color", where="data.background", got=repr(text), expected="a name (white) or #rrggbb")
    return values[0], values[1], values[2]


class Extent(NamedTuple):
    """Least and largest sample of a picture of more than 8 bits, and whether its samples are floats.

    body: the 1 % and 99 % quantiles of the samples that are neither the least nor the largest (no-data values, hot
    pixels); None where it is not measured or there are no such samples.
    """

    low: float
    high: float
    is_float: bool
    body: Range | None = None


def to_uint8(
    image: Image.Image,
    channels: int,
    rules: Decoding = DEFAULT,
    *,
    low_bytes: Image.Image | None = None,
    turn: int = 1,
    name: str | None = None,
) -> Array:
    """uint8 [C, H, W] of a loaded PIL image of any mode, turned by the EXIF orientation `turn`. What is transparent
    goes over the background where `channels` is 1 or 3.

    low_bytes: of 16-bit color the image whose samples are the low bytes of those in `image`, which are the high ones.
    Beside the result it takes a few MB. Raises UserError for samples that `rules.value_range` doesn't fit, or that need
    such a range.
    """
    assert channels in MODES, channels
    is_deep = image.mode in DEEP_MODES or low_bytes is not None
    scale = _scale_of(image, low_bytes, rules, name) if is_deep else _WORD
    width, height = image.size
    out_CHW = np.empty((channels, width, height) if turn >= 5 else (channels, height, width), np.uint8)
    stored_CHW = as_stored(out_CHW, turn)
    for top, part, low in _stripes(image, low_bytes):
        if low is not None:
            part = _color(_words(part, low), part.mode, scale, image.info.get("transparency"))
        elif is_deep:
            part = _gray(_samples(part, image), scale, image)
        part_HWC = np.asarray(_converted(part, channels, rules.background)).reshape(part.height, width, channels)
        stored_CHW[:, top : top + part.height] = part_HWC.transpose(2, 0, 1)
    return out_CHW


def as_stored(upright_CHW: Array, turn: int) -> Array:
    """The same memory as it is stored in a file of the EXIF orientation `turn`."""
    down = -1 if turn in (3, 4, 7, 8) else 1
    right = -1 if turn in (2, 3, 6, 7) else 1
    stored_CHW = upright_CHW[:, ::down, ::right]
    return stored_CHW.transpose(0, 2, 1) if turn >= 5 else stored_CHW


def extent(image: Image.Image, low_bytes: Image.Image | None = None, *, with_body: bool = False) -> Extent:
    """Least and largest sample of a loaded image of more than 8 bits. Raises UserError for samples that are not
    finite."""
    least, most, some = np.inf, -np.inf, list[Array]()
    for values in _values(image, low_bytes):
        if not np.isfinite(values).all():
            raise UserError("holds values that are not finite (NaN or infinity)")
        least, most = min(least, float(values.min())), max(most, float(values.max()))
        if with_body:
            some.append(_spaced(values, image))
    return Extent(least, most, image.mode == "F", _body(some, least, most))


def extent_of_high_bytes(image: Image.Image) -> Extent:
    """Return the same, with the body, of 16-bit color by its high bytes alone: the largest is rounded up."""
    parts = [np.asarray(part)[..., :3] for _, part, _ in _stripes(image, None)]
    highest = max(int(part.max()) for part in parts)
    some = [256.0 * _spaced(part, image) for part in parts]
    return Extent(0, 256 * highest + 255, False, _body(some, 0, 256 * highest))


def _spaced(values: Array, image: Image.Image) -> Array:
    """Evenly spaced samples of a part: about 4,096 of the whole image."""
    return values.reshape(-1)[:: max(image.width * image.height // _SAMPLES, 1)]


def _body(some: list[Array], least: float, most: float) -> Range | None:
    values_N = np.concatenate(some) if some else np.empty(0)
    values_N = values_N[(values_N > least) & (values_N < most)]
    if not len(values_N):
        return None
    low, high = np.quantile(values_N, (0.01, 0.99)).tolist()
    return low, high


def deep_array(values: Array, rules: Decoding) -> Array:
    """An array of 16-bit, 32-bit or float samples as uint8, by the same rule as a picture's."""
    if not np.isfinite(values).all():
        raise UserError("holds values that are not finite (NaN or infinity)")
    found = Extent(float(values.min()), float(values.max()), values.dtype.kind == "f")
    scale = rules.value_range or own_range(found, values.dtype == np.uint16, rules)
    _check_fit(found, scale, lambda: float(_inside(values, scale).mean()), rules, None)
    return _scaled(values, scale)


def own_range(found: Extent, is_word: bool, rules: Decoding = DEFAULT) -> Range:
    """What the format alone says is black and white; is_word: unsigned 16 bits. Raises UserError where the format says
    nothing, or something else than the picture."""
    shown, key = f"values from {found.low:.9g} to {found.high:.9g}", rules.range_key
    if is_word:
        if 0 < found.high < 1 << 14:
            bits = max(int(found.high).bit_length(), 8)
            raise UserError(
                f"16-bit image that uses {bits} bits ({shown}), so its white is unknown. "
                f"Set {key}=0,{(1 << bits) - 1}, or {key}=0,65535 if it is only dark"
            )
        return _WORD
    if found.is_float:
        if not -_OVERSHOOT <= found.low <= found.high <= 1 + _OVERSHOOT:
            raise UserError(f"floats outside of [0,1] ({shown}). Set {key}=LOW,HIGH to the values of black and white")
        return 0, 1
    raise UserError(f"integers without a known range ({shown}). Set {key}=LOW,HIGH to the values of black and white")


def _stripes(image: Image.Image, low: Image.Image | None) -> Iterator[tuple[int, Image.Image, Image.Image | None]]:
    """(first row, rows of the image, the same rows of `low`)."""
    width, height = image.size
    rows = max(_STRIPE // max(width, 1), 1)
    if rows >= height:
        yield 0, image, low
        return
    for top in range(0, height, rows):
        box = (0, top, width, min(top + rows, height))
        yield top, image.crop(box), None if low is None else low.crop(box)


def _samples(part: Image.Image, whole: Image.Image) -> Array:
    """The samples as the file means them: Pillow reads unsigned 32 bits as signed ones."""
    values_HW: Array = np.asarray(part)
    tags: Any = getattr(whole, "tag_v2", None)
    if part.mode != "I" or tags is None:
        return values_HW
    is_unsigned = _first(tags.get(_BITS, 1)) == 32 and _first(tags.get(_SAMPLE_FORMAT, 1)) == 1
    return values_HW.view(np.uint32) if is_unsigned else values_HW


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, tuple) else value


def _is_inverted(image: Image.Image) -> bool:
    """Whether zero is white (TIFF's MINISWHITE), which Pillow heeds up to 8 bits only."""
    return _first(getattr(image, "tag_v2", {}).get(_PHOTOMETRIC, 1)) == 0


def _values(image: Image.Image, low_bytes: Image.Image | None) -> Iterator[Array]:
    """The samples of the image, alpha left out, some rows at a time."""
    for _, part, low in _stripes(image, low_bytes):
        if low is None:
            yield _samples(part, image)
        else:
            yield _words(part, low)[..., : 4 if image.mode == "CMYK" else 3]


def _scale_of(image: Image.Image, low_bytes: Image.Image | None, rules: Decoding, name: str | None) -> Range:
    """What is black and what is white in this image. Raises UserError where that is not known, or can't be."""
    if image.mode == "I" and image.format == "PPM":  # its file states the range, and Pillow has applied it
        return _WORD
    found = extent(image, low_bytes)
    is_word = low_bytes is not None or image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    bits = _first(getattr(image, "tag_v2", {}).get(_BITS, 16))
    if rules.value_range is None and image.mode.startswith("I;16") and 8 < bits < 16:  # packed: the file states it
        return 0, (1 << bits) - 1
    scale = rules.value_range or own_range(found, is_word, rules)

    def inside() -> float:
        counts = [(int(_inside(values, scale).sum()), values.size) for values in _values(image, low_bytes)]
        return sum(n for n, _ in counts) / sum(n for _, n in counts)

    _check_fit(found, scale, inside, rules, name)
    return scale


def _inside(values: Array, scale: Range) -> Array:
    return (values > scale[0]) & (values < scale[1])


def _check_fit(found: Extent, scale: Range, inside: Callable[[], float], rules: Decoding, name: str | None) -> None:
    """Log a warning, once per range, for samples that are clipped, and for integers that all become black.

    Raises UserError where nearly all samples would be clipped, and for floats that all become one level: in [0,1]
    beside a range of integers, or below the first of 255 levels. inside() is the share of the samples between low and
    high.
    """
    low, high = scale
    shown, key = f"values from {found.low:.9g} to {found.high:.9g}", f"{rules.range_key}={low:g},{high:g}"
    is_black = low <= found.low < found.high < low + (high - low) / 255
    is_share = found.is_float and 0 <= found.low < found.high <= 1 and high - low >= 255
    if found.is_float and (is_black or is_share):
        raise UserError(
            f"{shown} use less than 1/255 of {key}: they would become one gray level. Scale them like the training "
            f"images, or set {rules.range_key}=LOW,HIGH to the values of black and white"
        )
    is_clipped = found.low < low or found.high > high
    if is_clipped and inside() < _LEAST_INSIDE:
        raise UserError(f"{shown} do not fit {key}: nearly all of them would become black or white")
    if (is_clipped or is_black) and (scale, is_black) not in _noted:
        _noted.add((scale, is_black))
        what = f"become black under {key}" if is_black else f"are clipped to {key}"
        log.warning("%s: %s %s (noted once, for the first image)", name or "image", shown, what)


def _scaled(values: Array, scale: Range) -> Array:
    low, high = scale
    scaled: Array = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def _gray(values_HW: Array, scale: Range, whole: Image.Image) -> Image.Image:
    gray_HW = _scaled(values_HW, scale)
    if _is_inverted(whole):
        gray_HW = 255 - gray_HW
    key = whole.info.get("transparency")
    if isinstance(key, int):  # the one value that stands for transparent
        return Image.fromarray(np.dstack([gray_HW, _opaque(values_HW != key)]))
    return Image.fromarray(gray_HW)


def _words(high: Image.Image, low: Image.Image) -> Array:
    low_HWC: Array = np.asarray(low)
    if low.info.get(GRAY_WORDS):
        low_HWC = low_HWC[..., [1, 1, 1, 3]]
    return np.asarray(high).astype(np.uint16) << 8 | low_HWC


def _opaque(mask_HW: Array) -> Array:
    return np.where(mask_HW, 255, 0).astype(np.uint8)


def _color(words_HWC: Array, mode: str, scale: Range, key: Any) -> Image.Image:
    """16-bit color as 8 bits; alpha always ends at 65535."""
    if mode in ("RGBA", "RGBa"):
        found_HWC = np.dstack([_scaled(words_HWC[..., :3], scale), _scaled(words_HWC[..., 3:], _WORD)])
    elif isinstance(key, tuple):  # the one color that stands for transparent
        found_HWC = np.dstack([_scaled(words_HWC, scale), _opaque((words_HWC != np.array(key)).any(2))])
        mode = "RGBA"
    else:
        found_HWC = _scaled(words_HWC, scale)
    size = (words_HWC.shape[1], words_HWC.shape[0])
    return Image.frombytes(mode, size, np.ascontiguousarray(found_HWC).tobytes())


def _converted(image: Image.Image, channels: int, background: Rgb) -> Image.Image:
    """8 bits, any mode, to the mode of these channels."""
    if image.mode in _FIRST_TO:
        image = image.convert(_FIRST_TO[image.mode])
    if image.mode == "PA" or "transparency" in image.info:
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if channels in (1, 3) and image.mode in ("LA", "RGBA"):
        image = _over(image, background)
    if image.mode != MODES[channels]:
        try:
            image = image.convert(MODES[channels])
        except ValueError:
            raise UserError("this kind of color is not read", got=f"Pillow's mode {image.mode}") from None
    return image


def _over(image: Image.Image, background: Rgb) -> Image.Image:
    """Opaque, rounded to the nearest; gray stays gray where the background is a gray."""
    if image.getextrema()[-1] == (255, 255):
        return image.convert("L" if image.mode == "LA" else "RGB")
    if image.mode == "LA" and len(set(background)) > 1:
        image = image.convert("RGBA")
    pixels_HWC: Array = np.asarray(image)
    alpha_HW1 = pixels_HWC[..., -1:].astype(np.uint16)
    background_C = np.array(background[: pixels_HWC.shape[2] - 1], np.uint16)
    # 255 times the result, at most 255 * 255 + 127 < 2^16.
    sum_HWC = pixels_HWC[..., :-1] * alpha_HW1 + (255 - alpha_HW1) * background_C + 127
    over_HWC = (sum_HWC // 255).astype(np.uint8)
    return Image.fromarray(over_HWC[..., 0] if image.mode == "LA" else over_HWC)
