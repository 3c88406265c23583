"""Any picture becomes a uint8 tensor: every mode that Pillow reads, arrays and tensors, by one set of rules.

Order: load, first frame, EXIF orientation, 16-bit and float values scaled (never clipped), palettes and CMYK to colour,
transparency over a background colour where the result has no alpha channel. The format is read from the content, never
from the name. A limit on pixels is held to the header, before memory is taken. Channels: 1 grey, 2 grey + alpha, 3 RGB,
4 RGB + alpha.
Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import functools
import io
import os
import struct
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageColor, UnidentifiedImageError
from PIL.IcnsImagePlugin import IcnsFile
from PIL.IcoImagePlugin import IcoFile
from torch import Tensor

from vitral.data.config import MAX_PIXELS
from vitral.errors import UserError
from vitral.files import CannotOpen, open_regular

Array = np.ndarray[Any, np.dtype[Any]]
Source = str | os.PathLike[str] | bytes | IO[bytes]

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
GREY_MODES = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# EPS starts Ghostscript, IPTC opens whatever it holds; the others are vector, video or containers that Pillow only
# recognises.
_REFUSED_FORMATS = frozenset({"EPS", "IPTC", "WMF", "MPEG", "BUFR", "GRIB", "HDF5", "FPX", "MIC"})
_ORIENTATION_TAG = 0x0112
# Formats that need a plugin of Pillow's: by the file's ending, and by the brand in its first bytes.
PLUGINS = {
    ".heic": "pillow-heif", ".heif": "pillow-heif", ".hif": "pillow-heif", ".avif": "pillow-avif-plugin",
    ".jxl": "pillow-jxl-plugin",
}  # fmt: skip
_PLUGIN_OF_BRAND = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "pillow-heif"),
    **dict.fromkeys((b"avif", b"avis"), "pillow-avif-plugin"),
}
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Header(NamedTuple):
    """What a file says of itself before its pixels are read: Pillow's mode, height and width as it will be seen."""

    mode: str
    height: int
    width: int


class Decoding(NamedTuple):
    """Rules that a user sets: the colour (red, green, blue, 0 to 255) behind transparency, and the largest image."""

    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = MAX_PIXELS


_DEFAULT = Decoding()


def colour(text: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour's name or #rrggbb. Raises UserError for anything else."""
    try:
        values = ImageColor.getrgb(text)
    except ValueError:
        values = ()
    if len(values) != 3:
        raise UserError("not a colour", where="data.background", got=repr(text), wanted="a name (white) or #rrggbb")
    return values[0], values[1], values[2]


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """The Pillow formats that are read, plugins included; those of pillow-heif are, where that is installed."""
    Image.init()
    with suppress(ImportError):
        import pillow_heif  # pyright: ignore[reportMissingImports]

        pillow_heif.register_heif_opener()
    return tuple(name for name in Image.ID if name not in _REFUSED_FORMATS)


@functools.cache
def readable_extensions() -> frozenset[str]:
    """File endings of these formats: lower case, with the dot."""
    formats = set(readable_formats())
    return frozenset(ending for ending, name in Image.registered_extensions().items() if name in formats)


def decode(source: Source, channels: int, *, name: str | None = None, rules: Decoding = _DEFAULT) -> Tensor:
    """The picture in a file, its bytes or an open binary file, as uint8 [C, H, W] with `channels` (1 to 4) channels.

    `name` is what errors call it; a path names itself. 16-bit grey and 32-bit integers up to 65535 are divided by 257;
    floats are taken as [0,1], [0,255] or [0,65535], the smallest that holds them all; values beyond are stretched from
    the image's least to its greatest. 16-bit colour keeps its high bytes (Pillow reads no more of it), within one level
    of the same. Raises UserError, naming the file and the cause, for what is missing, truncated, no image, or larger
    than `rules.max_pixels`.
    """
    label = name or _label(source)
    try:
        with _open(source) as image:
            return _loaded(image, channels, rules)
    except UserError as error:
        raise UserError(error.what, where=label) from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise _unreadable(label, error, source) from error


def pixels(source: Source, *, name: str | None = None) -> tuple[int, int]:
    """Width and height as they are stored, without reading the pixels; of an icon in bytes those of the picture inside,
    whatever its directory says. Raises UserError like `decode`."""
    try:
        if isinstance(source, bytes) and (inside := _size_inside(source)) is not None:
            return inside
        with _open(source) as image:
            return image.size
    except Exception as error:  # as in decode
        raise _unreadable(name or _label(source), error, source) from error


def header(source: Source, *, name: str | None = None) -> Header:
    """Mode and size (after EXIF orientation) without reading the pixels. Raises UserError like `decode`."""
    try:
        with _open(source) as image:
            turned = image.format != "TIFF" and orientation(image) >= 5  # Pillow turns TIFF by itself
            width, height = image.size
            return Header(image.mode, *((width, height) if turned else (height, width)))
    except Exception as error:  # as in decode
        raise _unreadable(name or _label(source), error, source) from error


def as_image(picture: Any, channels: int, *, name: str | None = None, rules: Decoding = _DEFAULT) -> Tensor:
    """Whatever holds one picture, as uint8 [C, H, W] with `channels` (1 to 4) channels.

    Takes a path, bytes, an open binary file or a PIL image; a NumPy array [H,W] or [H,W,C]; a torch tensor [H,W],
    [C,H,W] or [H,W,C] where only one of these is possible. Arrays are uint8, uint16, bool, or floats in [0,1].
    Raises UserError for other types, shapes and ranges.
    """
    if isinstance(picture, (str, bytes, os.PathLike)) or hasattr(picture, "read"):
        return decode(picture, channels, name=name, rules=rules)
    if isinstance(picture, Image.Image):
        try:
            return _loaded(picture, channels, rules, name or _label(picture))
        except OSError as error:
            raise _unreadable(name or _label(picture), error, picture) from error
    if isinstance(picture, Tensor):
        picture_HWC = _channels_last(picture.detach().cpu(), name)
    elif isinstance(picture, np.ndarray):
        picture_HWC = picture
    else:
        raise UserError(
            "no image", where=name, got=type(picture).__name__, wanted="path, bytes, array, tensor or PIL image"
        )
    return to_channels(_from_array(picture_HWC, name), channels, rules.background)


def to_channels(image: Image.Image, channels: int, background: tuple[int, int, int] = _DEFAULT.background) -> Tensor:
    """A loaded PIL image of any mode as uint8 [C, H, W]; what is transparent goes over the background where `channels`
    is 1 or 3."""
    assert channels in MODES, channels
    if image.mode in _DEEP_MODES:
        image = _scaled(image)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode == "PA" or "transparency" in image.info:
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    if channels in (1, 3) and image.mode in ("LA", "RGBA"):
        image = _over(image, background)
    if image.mode != MODES[channels]:
        try:
            image = image.convert(MODES[channels])
        except ValueError:
            raise UserError("this kind of colour is not read", got=f"Pillow's mode {image.mode}") from None
    pixels_HWC = np.array(image).reshape(image.height, image.width, channels)
    return torch.from_numpy(np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)))  # NumPy's copy is the faster one


@contextmanager
def _open(source: Source) -> Generator[Image.Image]:
    with _stream(source) as stream:
        with PILLOWS_LIMIT_OFF:
            image = Image.open(stream, formats=readable_formats())
        with image:
            yield image


def _stream(source: Source) -> AbstractContextManager[IO[bytes]]:
    """Bytes to read. A file that was given open is left open."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return open_regular(source) if isinstance(source, (str, os.PathLike)) else nullcontext(source)


class _LimitOff:
    """While any thread is inside, Pillow's own limit on pixels, which warns at one size and raises at twice that, is
    off: ours says it once, and the user sets it. Afterwards it is as it was."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                Image.MAX_IMAGE_PIXELS = self._before


PILLOWS_LIMIT_OFF = _LimitOff()


def _size_inside(data: bytes) -> tuple[int, int] | None:
    """Width and height of the picture that Pillow would take of a Windows or Mac icon, and of the former decode as soon
    as it is opened; None for anything else, and for icons of raw pixels, which are as large as their kind."""
    starts: list[int] = []
    with suppress(SyntaxError, IndexError, struct.error):  # opening it will say what is wrong
        if data.startswith(b"\0\0\1\0"):
            starts = [IcoFile(io.BytesIO(data)).entry[0].offset]
        elif data.startswith(b"icns"):
            icon = IcnsFile(io.BytesIO(data))
            starts = [icon.dct[code][0] for code, _ in icon.SIZES[icon.bestsize()] if code in icon.dct]
    for start in starts:
        stream = io.BytesIO(data[start:])
        with (
            suppress(UnidentifiedImageError),
            PILLOWS_LIMIT_OFF,
            Image.open(stream, formats=("PNG", "DIB", "JPEG2000")) as image,
        ):
            # Below a bitmap's pixels is its mask, of the same size.
            return image.width, image.height // 2 if image.format == "DIB" else image.height
    return None


def _loaded(image: Image.Image, channels: int, rules: Decoding, name: str | None = None) -> Tensor:
    _check_pixels(image.size, rules, name)
    image.load()
    _check_pixels(image.im.size, rules, name)  # an icon's picture may be larger than the icon says
    return to_channels(_upright(image), channels, rules.background)


def _check_pixels(size: tuple[int, int], rules: Decoding, name: str | None) -> None:
    width, height = size
    pixels = width * height
    if pixels > rules.max_pixels:
        found = f"{width} x {height} = {pixels:,} pixels"
        raise UserError(
            f"larger than the limit of {rules.max_pixels:,} pixels, {found}; data.max_pixels sets the limit", where=name
        )


def _label(source: object) -> str:
    if isinstance(source, bytes):
        return f"image ({len(source)} bytes)"
    if isinstance(source, (str, os.PathLike)):
        return str(Path(source))
    return str(getattr(source, "name", "") or getattr(source, "filename", "") or "image")


def _missing_plugin(source: object) -> str | None:
    """The plugin of Pillow's that would read a file which Pillow alone doesn't know."""
    try:
        if isinstance(source, bytes):
            start = source[:16]
        else:
            with open_regular(source) as file:  # pyright: ignore[reportArgumentType]
                start = file.read(16)
    except (OSError, TypeError, ValueError):
        return None
    if start.startswith(_JPEG_XL):
        return "pillow-jxl-plugin"
    return _PLUGIN_OF_BRAND.get(start[8:12]) if start[4:8] == b"ftyp" else None


def _unreadable(label: str, error: Exception, source: object) -> UserError:
    if isinstance(error, CannotOpen):
        return UserError(error.what, where=label)
    if isinstance(error, UnidentifiedImageError):
        plugin = _missing_plugin(source)
        if plugin is not None:
            kind = {"pillow-heif": "HEIC", "pillow-avif-plugin": "AVIF"}.get(plugin, "JPEG XL")
            how = f"pip install {plugin}" + ("" if plugin == "pillow-heif" else ", or convert it to PNG or JPEG")
            return UserError(f"a {kind} image, which Pillow reads only with a plugin: {how}", where=label)
        return UserError("not an image in a format that is read here", where=label)
    return UserError(f"unreadable image: {error or type(error).__name__}", where=label)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF orientation says. To be called after load(): PNG keeps its EXIF behind the pixels."""
    method = TRANSPOSE.get(orientation(image))
    return image if method is None else image.transpose(method)


def orientation(image: Image.Image) -> int:
    """1 to 8; 1 (as stored) where there is no EXIF or none that can be read, as every viewer takes it."""
    try:
        value: Any = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block raises nearly anything, and the pixels are fine
        return 1
    return value if isinstance(value, int) else 1


def _scaled(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float grey as 8-bit grey."""
    values_HW: Array = np.asarray(image).astype(np.float64)
    if not np.isfinite(values_HW).all():
        raise UserError("holds values that are not finite (NaN or infinity)")
    low, high = float(values_HW.min()), float(values_HW.max())
    if image.mode.startswith("I;16"):
        scaled_HW = values_HW / 257
    elif image.mode == "F" and low >= 0 and high <= 1:
        scaled_HW = values_HW * 255
    elif low >= 0 and high <= 255 and (image.mode == "F" or image.format not in ("PNG", "PPM")):  # those hold 16 bits
        scaled_HW = values_HW
    elif low >= 0 and high <= 65535:
        scaled_HW = values_HW / 257
    else:
        scaled_HW = (values_HW - low) / (high - low or 1.0) * 255
    grey_HW = np.rint(scaled_HW).clip(0, 255).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):  # the one value that stands for transparent
        return Image.fromarray(np.dstack([grey_HW, np.where(values_HW == key, 0, 255).astype(np.uint8)]))
    return Image.fromarray(grey_HW)


def _over(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """Opaque; grey stays grey where the background is a grey."""
    if image.mode == "LA" and len(set(background)) > 1:
        image = image.convert("RGBA")
    pixels_HWC: Array = np.asarray(image).astype(np.float32)
    colour_HWC, alpha_HW1 = pixels_HWC[..., :-1], pixels_HWC[..., -1:] / 255
    behind_C = np.array(background[: colour_HWC.shape[2]], np.float32)
    over_HWC = np.rint(colour_HWC * alpha_HW1 + behind_C * (1 - alpha_HW1)).astype(np.uint8)
    return Image.fromarray(over_HWC[..., 0] if image.mode == "LA" else over_HWC)


def _channels_last(image: Tensor, name: str | None) -> Array:
    if image.dtype == torch.bfloat16:
        image = image.float()
    if image.ndim != 3:
        return image.numpy()
    first, last = image.shape[0] in MODES, image.shape[2] in MODES
    if first == last:
        cause = "channels first or last cannot be told" if first else "neither first nor last axis is 1 to 4 channels"
        raise UserError(
            f"a tensor of this shape is ambiguous: {cause}", where=name, got=tuple(image.shape), wanted="[C,H,W]"
        )
    return (image.permute(1, 2, 0) if first else image).numpy()


def _from_array(image: Array, name: str | None) -> Image.Image:
    """[H,W] or [H,W,C] as a PIL image of mode L, LA, RGB or RGBA."""
    image_HWC = image[..., None] if image.ndim == 2 else image
    if image_HWC.ndim != 3 or image_HWC.shape[2] not in MODES or 0 in image_HWC.shape:
        hint = "Channels come last in arrays: array.transpose(1, 2, 0)." if image.ndim == 3 else None
        hint = "One image at a time." if image.ndim == 4 else hint
        raise UserError(
            "not the shape of one image", where=name, got=image.shape, wanted="[H,W] or [H,W,1..4]", hint=hint
        )
    if image_HWC.dtype == np.bool_:
        image_HWC = image_HWC * np.uint8(255)
    elif image_HWC.dtype == np.uint16:
        image_HWC = np.rint(image_HWC / 257).astype(np.uint8)
    elif image_HWC.dtype.kind == "f":
        low, high = float(image_HWC.min()), float(image_HWC.max())
        if not (low >= 0 and high <= 1):  # NaN ends here too
            raise UserError("floats outside of [0,1]", where=name, got=f"{low:g} to {high:g}", wanted="[0,1], or uint8")
        image_HWC = np.rint(image_HWC.astype(np.float64) * 255).astype(np.uint8)
    elif image_HWC.dtype != np.uint8:
        raise UserError(
            "not the type of an image", where=name, got=str(image_HWC.dtype), wanted="uint8, or floats in [0,1]"
        )
    pixels_HWC = np.ascontiguousarray(image_HWC)
    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
