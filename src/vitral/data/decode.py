"""Decode any image to a uint8 tensor: every mode that Pillow reads, arrays and tensors, by one set of rules.

Order: load, first frame, EXIF orientation, samples of more than 8 bits scaled by one rule (see `channels`), palettes
and CMYK to color, transparency over a background color where the result has no alpha channel. The format is read from
the content, never from the name. A limit on pixels and bytes is held to the header, before memory is taken. Channels: 1
gray, 2 gray + alpha, 3 RGB, 4 RGB + alpha.
Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import io
import os
import struct
import sys
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.IcnsImagePlugin import IcnsFile
from PIL.IcoImagePlugin import IcoFile
from torch import Tensor

from vitral.data.channels import (
    DEEP_MODES,
    DEFAULT,
    GRAY_WORDS,
    MODES,
    Array,
    Decoding,
    Extent,
    deep_array,
    extent,
    extent_of_high_bytes,
    own_range,
    to_uint8,
)
from vitral.errors import UserError
from vitral.files import open_regular

Source = str | os.PathLike[str] | bytes | IO[bytes]

GREY_MODES = frozenset({"1", "L", "LA", "La"}) | DEEP_MODES
BYTES_OF_A_PIXEL = 4  # that `max_pixels` counts on: RGB and alpha, 8 bits each
# EPS starts Ghostscript, IPTC opens whatever it holds; the others are vector, video or containers that Pillow only
# recognizes.
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
_FORMAT_OF_PLUGIN = {  # for people, and for Pillow
    "pillow-heif": ("HEIC", "HEIF"), "pillow-avif-plugin": ("AVIF", "AVIF"), "pillow-jxl-plugin": ("JPEG XL", "JXL"),
}  # fmt: skip
_START = 256  # leading bytes that identify a file format
# Bytes per pixel that some decoders hold whatever the image is, measured: WebP's canvas, the one before it and Pillow's
# two copies; the integers of OpenJPEG; the planes of AVIF and HEIC.
_DECODERS_NEED = {"WEBP": 16, "JPEG2000": 20, "AVIF": 12, "HEIF": 12}
_JPEG_XL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")


class Header(NamedTuple):
    """What a file says of itself before its pixels are read: Pillow's mode, height and width as it will be seen."""

    mode: str
    height: int
    width: int


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


def decode(source: Source, channels: int, *, name: str | None = None, rules: Decoding = DEFAULT) -> Tensor:
    """The picture in a file, its bytes or an open binary file, as uint8 [C, H, W] with `channels` (1 to 4) channels.

    `name` is what errors call it; a path names itself. Samples of more than 8 bits are mapped by `rules.value_range`,
    or by what their format says (see `channels`). 16-bit color without such a range keeps its high bytes, within one
    level of the same. At its peak it takes `decoded_bytes`, 8 bytes per pixel and a constant.
    Raises UserError, naming the file and the cause, for what is missing, truncated, no image, larger than
    `rules.max_pixels`, or of an unknown range.
    """
    with _open(source, name) as image:
        return _loaded(image, channels, rules, name or _label(source), source)


def decoded_bytes(source: Source) -> int:
    """Bytes that decoding takes for the pixels, by the header alone: width x height x channels x bytes per sample, or
    what the format's decoder holds where that is more. Raises UserError like `decode`."""
    with _naming(None, source):
        if isinstance(source, bytes) and (inside := _size_inside(source)) is not None:
            return inside[0] * inside[1] * BYTES_OF_A_PIXEL
        with _open(source) as image:
            return _bytes_of(image)


def is_deep(source: Source) -> bool:
    """Whether samples have more than 8 bits, without reading the pixels. Raises UserError like `decode`."""
    with _open(source) as image:
        return _is_deep(image)


def sample_extent(source: Source, rules: Decoding = DEFAULT) -> Extent | None:
    """Least and largest sample of a picture of more than 8 bits, whose pixels are read; None for any other, without
    reading them. Raises UserError like `decode`."""
    with _open(source) as image:
        if not _is_deep(image):
            return None
        _check_size(image, rules)
        is_color, rawmode = image.mode not in DEEP_MODES, _rawmode(image)
        image.load()
        if not is_color:
            return None if image.mode == "I" and image.format == "PPM" else extent(image, with_body=True)
        found = extent_of_high_bytes(image)
        return found if found.high > 255 else extent(image, _low_bytes(source, rawmode), with_body=True)


def pixels(source: Source) -> tuple[int, int]:
    """Width and height as they are stored, without reading the pixels; of an icon in bytes those of the picture inside,
    whatever its directory says. Raises UserError like `decode`."""
    with _naming(None, source):
        if isinstance(source, bytes) and (inside := _size_inside(source)) is not None:
            return inside
        with _open(source) as image:
            return image.size


def header(source: Source, *, name: str | None = None) -> Header:
    """Mode and size (after EXIF orientation) without reading the pixels. Raises UserError like `decode`."""
    with _open(source, name) as image:
        turned = image.format != "TIFF" and orientation(image) >= 5  # Pillow rotates TIFF automatically
        width, height = image.size
        return Header(image.mode, *((width, height) if turned else (height, width)))


def as_image(picture: Any, channels: int, *, rules: Decoding = DEFAULT) -> Tensor:
    """Whatever holds one picture, as uint8 [C, H, W] with `channels` (1 to 4) channels.

    Takes a path, bytes, an open binary file or a PIL image; a NumPy array [H,W] or [H,W,C]; a torch tensor [H,W],
    [C,H,W] or [H,W,C] where only one of these is possible. Arrays are uint8, uint16, bool, or floats in [0,1]; with
    `rules.value_range` any integers and floats.
    Raises UserError for other types, shapes and ranges.
    """
    if isinstance(picture, (str, bytes, os.PathLike)) or hasattr(picture, "read"):
        return decode(picture, channels, rules=rules)
    if isinstance(picture, Image.Image):
        with _naming(None, picture):
            return _loaded(picture, channels, rules, _label(picture), None)
    if isinstance(picture, Tensor):
        picture = _channels_last(picture.detach().cpu())
    if not isinstance(picture, np.ndarray):
        raise UserError("no image", got=type(picture).__name__, expected="path, bytes, array, tensor or PIL image")
    return torch.from_numpy(to_uint8(_from_array(picture, rules), channels, rules))


@contextmanager
def _naming(name: str | None, source: Source | Image.Image) -> Generator[None]:
    """Whatever goes wrong inside is a UserError that names the image and the cause."""
    try:
        yield
    except UserError as error:
        raise UserError(error.what, where=name or _label(source)) from None
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise _unreadable(name or _label(source), error, source) from error


@contextmanager
def _open(source: Source, name: str | None = None) -> Generator[Image.Image]:
    _quiet_libtiff()
    with _naming(name, source), _stream(source) as stream:
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


def _loaded(image: Image.Image, channels: int, rules: Decoding, name: str, source: Source | None) -> Tensor:
    """source: where to read the image again; None: from the file that it holds open."""
    _check_size(image, rules, name)
    rawmode = _rawmode(image)
    low_bytes = None
    if _is_deep(image) and image.mode not in DEEP_MODES:
        if source is None and (stream := getattr(image, "fp", None)) is not None:
            place = stream.tell()
            stream.seek(0)
            source = stream.read()
            stream.seek(place)
        image.load()
        found, has_key = extent_of_high_bytes(image), isinstance(image.info.get("transparency"), tuple)
        if source is not None and (has_key or found.high == 255 or rules.value_range not in (None, (0, 65535))):
            low_bytes = _low_bytes(source, rawmode)
        elif rules.value_range is None:
            own_range(found, True, rules)
    image.load()
    _check_size(image, rules, name)  # an icon's picture may be larger than the icon says
    # After load(): PNG keeps its EXIF behind the pixels.
    return torch.from_numpy(to_uint8(image, channels, rules, low_bytes=low_bytes, turn=orientation(image), name=name))


def _rawmode(image: Image.Image) -> str:
    """How Pillow's decoder takes the samples of an image that is not loaded: "RGB;16B"; "" where that is not known."""
    tiles: Any = getattr(image, "tile", ())
    arguments = tiles[0].args if tiles else ""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _is_deep(image: Image.Image) -> bool:
    """Whether the samples of an image that is not loaded have more than 8 bits and Pillow can give them all."""
    return image.mode in DEEP_MODES or _rawmode(image).endswith((";16B", ";16L", ";16N"))


def _low_bytes(source: Source, rawmode: str) -> Image.Image:
    """The low bytes of 16-bit color, of which Pillow itself keeps the high ones: read in the other order of bytes."""
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[rawmode[-1]]
    gray = rawmode == "LA;16B"  # two samples are four bytes
    other = "RGBA" if gray else rawmode[:-1] + order
    with _open(source) as image:
        assert isinstance(image, ImageFile.ImageFile)
        image.tile = [
            tile._replace(args=(other, *tile.args[1:]) if isinstance(tile.args, tuple) else other)
            for tile in image.tile
        ]
        image.load()
    if gray:
        image.info[GRAY_WORDS] = True
    return image


def _bytes_of(image: Image.Image) -> int:
    """Bytes of the decoded pixels by the header, or what the format's decoder needs where that is more."""
    width, height = image.size
    rawmode = _rawmode(image)
    if image.mode in ("I", "F"):
        each = 4
    elif rawmode == "LA;16B" or image.mode.startswith("I;16"):
        each = 4 if rawmode == "LA;16B" else 2
    else:
        each = len(image.getbands()) * (2 if _is_deep(image) else 1)
    return width * height * max(each, _DECODERS_NEED.get(image.format or "", 0))


def _check_size(image: Image.Image, rules: Decoding, name: str | None = None) -> None:
    width, height = image.size
    size, limit = _bytes_of(image), BYTES_OF_A_PIXEL * rules.max_pixels
    key = rules.limit_key
    found = f"{width} x {height} = {width * height:,} pixels"
    if width * height > rules.max_pixels:
        raise UserError(
            f"larger than the limit of {rules.max_pixels:,} pixels, {found}; {key} sets the limit", where=name
        )
    if size > limit:
        raise UserError(
            f"larger than the limit of {limit:,} bytes ({BYTES_OF_A_PIXEL} per pixel of {key}), {found} of "
            f"{size // (width * height)} bytes; {key} sets the limit", where=name,
        )  # fmt: skip


@functools.cache
def _quiet_libtiff() -> None:
    """What libtiff says of a damaged file goes to stderr, past Python; the error that Pillow raises is enough."""
    beside = Path(PIL.__file__).parent.parent
    for library in glob.glob(str(beside / "pillow.libs" / "libtiff*")):
        with suppress(OSError, AttributeError):
            for kind in ("Error", "Warning"):
                getattr(ctypes.CDLL(library), f"TIFFSet{kind}Handler")(None)


def _label(source: object) -> str:
    if isinstance(source, bytes):
        return f"image ({len(source)} bytes)"
    if isinstance(source, (str, os.PathLike)):
        return str(Path(source))
    return str(getattr(source, "name", "") or getattr(source, "filename", "") or "image")


def _start(source: Any) -> bytes | None:
    """The first bytes of a file; None where they can't be had."""
    with suppress(OSError, AttributeError, TypeError, ValueError), _stream(source) as stream:
        stream.seek(0)
        return stream.read(_START)
    return None


def _not_an_image(source: object) -> str:
    """What a file is that no format fits, by its first bytes."""
    start = _start(source)
    if start is None:
        return "not an image in a format that is read here"
    if not start:
        return "empty file (0 bytes), not an image"
    plugin = _PLUGIN_OF_BRAND.get(start[8:12]) if start[4:8] == b"ftyp" else None
    plugin = "pillow-jxl-plugin" if start.startswith(_JPEG_XL) else plugin
    if plugin is not None:
        kind, name = _FORMAT_OF_PLUGIN[plugin]
        readable_formats()
        if name in Image.OPEN:
            return f"damaged {kind} image"
        how = f"pip install {plugin}" + ("" if plugin == "pillow-heif" else ", or convert it to PNG or JPEG")
        return f"a {kind} image, which Pillow reads only with a plugin: {how}"
    if start.startswith(b"version https://git-lfs"):
        return "Git LFS pointer instead of the image. Get the images with: git lfs pull"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "HTML page instead of an image (a failed download). Download the image again"
    if not any(start):
        return f"not an image: its first {len(start)} bytes are zero"
    return "not an image in a format that is read here"


def _unreadable(label: str, error: Exception, source: object) -> UserError:
    if isinstance(error, UnidentifiedImageError):
        return UserError(_not_an_image(source), where=label)
    if isinstance(source, Image.Image) and isinstance(error, ValueError | AssertionError | AttributeError):
        return UserError("image is closed; pass it open, or its path", where=label)
    return UserError(f"unreadable image: {error or type(error).__name__}", where=label)


def orientation(image: Image.Image) -> int:
    """1 to 8; 1 (as stored) where there is no EXIF or none that can be read, as every viewer takes it."""
    try:
        value: Any = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block raises nearly anything, and the pixels are fine
        return 1
    return value if isinstance(value, int) else 1


def _channels_last(image: Tensor) -> Array:
    if image.dtype == torch.bfloat16:
        image = image.float()
    if image.ndim != 3:
        return image.numpy()
    first, last = image.shape[0] in MODES, image.shape[2] in MODES
    if first == last:
        cause = "channels may be first or last" if first else "neither first nor last axis is 1 to 4 channels"
        raise UserError(f"a tensor of this shape is ambiguous: {cause}", got=tuple(image.shape), expected="[C,H,W]")
    return (image.permute(1, 2, 0) if first else image).numpy()


def _from_array(image: Array, rules: Decoding) -> Image.Image:
    """[H,W] or [H,W,C] as a PIL image of mode L, LA, RGB or RGBA."""
    image_HWC = image[..., None] if image.ndim == 2 else image
    if image_HWC.ndim != 3 or image_HWC.shape[2] not in MODES or 0 in image_HWC.shape:
        hint = "Channels come last in arrays: array.transpose(1, 2, 0)." if image.ndim == 3 else None
        hint = "One image at a time." if image.ndim == 4 else hint
        raise UserError("not the shape of one image", got=image.shape, expected="[H,W] or [H,W,1..4]", hint=hint)
    if image_HWC.dtype == np.bool_:
        image_HWC = image_HWC * np.uint8(255)
    elif image_HWC.dtype != np.uint8:
        has_rule = rules.value_range is not None or image_HWC.dtype == np.uint16 or image_HWC.dtype.kind == "f"
        if image_HWC.dtype.kind not in "uif" or not has_rule:
            expected = f"uint8, floats in [0,1], or {rules.range_key}=LOW,HIGH"
            raise UserError("not the type of an image", got=str(image_HWC.dtype), expected=expected)
        color = image_HWC.shape[2] - (1 if image_HWC.shape[2] in (2, 4) else 0)
        parts = [deep_array(image_HWC[..., :color], rules)]
        if color < image_HWC.shape[2]:
            whole = rules._replace(value_range=(0, 1 if image_HWC.dtype.kind == "f" else np.iinfo(image_HWC.dtype).max))
            parts.append(deep_array(image_HWC[..., color:], whole))
        image_HWC = np.dstack(parts)
    pixels_HWC = np.ascontiguousarray(image_HWC)
    return Image.fromarray(pixels_HWC[..., 0] if pixels_HWC.shape[2] == 1 else pixels_HWC)
