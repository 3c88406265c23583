"""Read size and kind of an image from its first bytes, without Pillow, in a bounded number of steps.

Pillow reads a header segment by segment, in Python and for as long as the file makes it; this module decides
beforehand which files are cheap enough for a thread, and refuses files of more segments than any encoder writes.
"""

from __future__ import annotations

from typing import NamedTuple

MOST_STEPS = 2000  # segments, chunks, blocks or filler bytes before the pixels
_IDAT_BYTES = 512  # a PNG may have one more chunk per so many bytes: encoders write its pixels in chunks of 8 KB
_LIGHT_STEPS, _LIGHT_SCANS = 64, 32
_LIGHT_PIXELS = 2**20
_LIGHT_METADATA = 2**14  # bytes of EXIF, whose entries may each claim all of it
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_PLAIN = (b"IDAT", b"IEND", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"bKGD", b"sBIT")
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers without a length
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})


class Outline(NamedTuple):
    """Width, height and bytes per pixel as the file states them, None where that takes a decoder; whether decoding is
    cheap for certain; whether the file has more segments than are read."""

    width: int | None = None
    height: int | None = None
    pixel_bytes: int | None = None
    is_light: bool = False
    is_endless: bool = False


def outline(data: bytes) -> Outline:
    """The outline of a file; for formats other than JPEG, PNG and GIF, and for damaged ones, nothing is known."""
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    return Outline(is_endless=data[:6] in (b"GIF87a", b"GIF89a") and _is_endless_gif(data))


def _png(data: bytes) -> Outline:
    if data[12:16] != b"IHDR" or len(data) < 29:
        return Outline()
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    pixel_bytes = _PNG_CHANNELS.get(data[25], 4) * max(1, data[24] // 8)
    place, steps, plain = 33, 0, True
    most = MOST_STEPS + len(data) // _IDAT_BYTES
    while place + 8 <= len(data) and steps <= most:
        length, kind = int.from_bytes(data[place : place + 4]), data[place + 4 : place + 8]
        plain &= kind in _PNG_PLAIN or (kind in (b"eXIf", b"iCCP", b"tEXt") and length <= _LIGHT_METADATA // 4)
        place += 12 + length
        steps += 1
    light = plain and steps <= _LIGHT_STEPS and 0 < width * height * pixel_bytes <= 4 * _LIGHT_PIXELS
    return Outline(width, height, pixel_bytes, light, steps > most)


def _jpeg(data: bytes) -> Outline:
    place, steps, metadata = 2, 0, 0
    width = height = channels = None
    while place + 4 <= len(data) and steps <= MOST_STEPS:
        steps += 1
        if data[place] != 0xFF or data[place + 1] in (0xFF, 0):  # filler, which Pillow skips byte by byte
            place += 1
            continue
        marker = data[place + 1]
        if marker in _BARE:
            place += 2
            continue
        if marker == 0xDA:  # the pixels begin
            break
        length = int.from_bytes(data[place + 2 : place + 4])
        if marker in _FRAMES and place + 10 <= len(data):
            height, width = int.from_bytes(data[place + 5 : place + 7]), int.from_bytes(data[place + 7 : place + 9])
            channels = data[place + 9]
        if marker in (0xE1, 0xE2):  # EXIF, color profiles, indexes of several images
            metadata += length
        place += 2 + length
    light = (
        width is not None
        and height is not None
        and 0 < width * height <= _LIGHT_PIXELS
        and steps <= _LIGHT_STEPS
        and metadata <= _LIGHT_METADATA
        # A progressive file may have thousands of scans, each as slow as a whole image.
        and data.count(b"\xff\xda") <= _LIGHT_SCANS
    )
    return Outline(width, height, channels, light, steps > MOST_STEPS)


def _is_endless_gif(data: bytes) -> bool:
    """Whether there are too many blocks before the first image, those inside extensions included."""
    place = 13 + ((3 << (data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    inside = False  # an extension, which is a label, then blocks of up to 255 bytes, then an empty one
    for _ in range(MOST_STEPS + 1):
        if place >= len(data) or (not inside and data[place] == 0x2C):
            return False
        if inside:
            inside = data[place] > 0
            place += 1 + data[place]
        else:
            inside = data[place] == 0x21
            place += 2 if inside else 1
    return True
