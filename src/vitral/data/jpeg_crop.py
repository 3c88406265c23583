"""Decode only the part of an image file that a random resized crop needs: for training only.

A JPEG is decoded at the smallest DCT scale (1, 1/2, 1/4, 1/8) that still covers the model's size, down to the last row
of the box and not further; the box is cut and resized in uint8 with antialiasing. Orientation, modes and channels are
those of `decode.py`. Other formats are decoded whole. A JPEG that is cut off below the box is not noticed here: the
check of the data reads every file whole. Shape letters: C channels, H height, W width, B images, V views of
each, 4 a box.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile
from torch import Tensor

from vitral.data.channels import as_stored, to_uint8
from vitral.data.decode import PILLOWS_LIMIT_OFF, orientation
from vitral.files import open_regular

Box = tuple[int, int, int, int]
Size = tuple[int, int]
_START = b"\xff\xd8\xff"
_EXIF = b"\xff\xe1"  # the segments that may hold an orientation
_FORMATS = ("JPEG",)
_SCALES = (8, 4, 2)
# Rows decoded beyond the box, so that its last rows see the chroma below them as they would in the whole picture.
_MARGIN = 16


class Jpeg(NamedTuple):
    """A JPEG file whose header has been read: height and width as it is seen, EXIF orientation applied; and where in it
    the frame header stands (0: nowhere)."""

    data: bytes
    frame: int
    turn: int
    height: int
    width: int


def open_jpeg(source: str | os.PathLike[str] | bytes) -> Jpeg | None:
    """The header of a JPEG file or its bytes; None for any other format. Raises what Pillow does for damaged ones."""
    if isinstance(source, bytes):
        data = source
    else:
        with open_regular(source) as file:
            data = file.read(len(_START))
            if data == _START:
                data += file.read()
    if not data.startswith(_START):
        return None
    frame = _frame(data)
    height, width = (int.from_bytes(data[frame + at : frame + at + 2], "big") for at in (5, 7))
    if frame and height and width and data.find(_EXIF, 0, frame) < 0:
        return Jpeg(data, frame, 1, height, width)
    with _open(data) as image:
        turn, (width, height) = orientation(image), image.size
    return Jpeg(data, frame, turn, *((width, height) if turn >= 5 else (height, width)))


def crop_jpeg(jpeg: Jpeg, boxes: Sequence[Box], sizes: Sequence[Size], channels: int) -> list[tuple[Tensor, Box]]:
    """Each box (top, left, height, width, in pixels as seen) as uint8 [C, *size], and the box that it really shows; the
    file is decoded once, at the DCT scale that all of them need.

    They differ by less than that scale (8 pixels at most, and less than a pixel of the result).
    """
    swapped, back = jpeg.turn >= 5, _BACK.get(jpeg.turn, jpeg.turn)
    stored_height, stored_width = (jpeg.width, jpeg.height) if swapped else (jpeg.height, jpeg.width)
    stored = [_turned(box, jpeg.turn, stored_height, stored_width) for box in boxes]
    expected = [(size[1], size[0]) if swapped else size for size in sizes]
    scale = min(_scale(box, size) for box, size in zip(stored, expected, strict=True))
    data = _shortened(jpeg, max(top + height for top, _, height, _ in stored), stored_height)
    shown: list[tuple[Tensor, Box]] = []
    with _open(data) as image:
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        image.decodermaxblock = len(data)  # in one piece: the decoder goes back to the row's start at every end
        image.load()
        for (top, left, height, width), size in zip(stored, sizes, strict=True):
            left, top, right, bottom = (round(edge / scale) for edge in (left, top, left + width, top + height))
            right, bottom = min(right, image.width), min(bottom, image.height)
            part_CHW = _upright(image.crop((left, top, right, bottom)), channels, jpeg.turn)
            # The last row and column of a scaled picture may stand for less than `scale` pixels.
            lowest, outermost = min(bottom * scale, stored_height), min(right * scale, stored_width)
            box = top * scale, left * scale, lowest - top * scale, outermost - left * scale
            shown.append((_resized(part_CHW, size), _turned(box, back, jpeg.height, jpeg.width)))
    return shown


def _scale(box: Box, size: Size) -> int:
    return next((scale for scale in _SCALES if box[2] >= scale * size[0] and box[3] >= scale * size[1]), 1)


def crop_image(image_CHW: Tensor, box: Box, size: Size) -> Tensor:
    """The same part of a decoded uint8 image, as uint8 [C, *size]."""
    top, left, height, width = box
    return _resized(image_CHW[:, top : top + height, left : left + width], size)


def _resized(part_CHW: Tensor, size: Size) -> Tensor:
    """uint8 [C, H, W] in any memory order to uint8 [C, *size], antialiased."""
    if tuple(part_CHW.shape[1:]) == size:
        return part_CHW
    return F.interpolate(part_CHW[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def random_crops(
    files: Sequence[Callable[[], str | bytes] | None],
    reads: Sequence[Callable[[], Tensor]],
    draw_boxes: Callable[[list[int], Tensor], Tensor],
    sizes: Sequence[Size],
    channels: int,
    *,
    max_pixels: int,
) -> Iterator[list[tuple[Tensor, Box]]]:
    """Of each image as many parts as there are sizes, and the boxes that they show. `draw_boxes(which, sizes_B2)` gives
    the boxes [B, V, 4] of those images.

    The boxes of JPEG files are drawn together from their headers. What fails on the fast way is read whole by `reads`,
    which knows what to say of a damaged file.
    """
    jpegs: dict[int, Jpeg] = {}
    for number, file in enumerate(files):
        with suppress(Exception):  # a damaged header makes Pillow raise nearly anything; `reads` says what is wrong
            found = open_jpeg(file()) if file is not None else None
            if found is not None and found.height * found.width <= max_pixels:
                jpegs[number] = found
    boxes = _drawn(draw_boxes, {number: (jpeg.height, jpeg.width) for number, jpeg in jpegs.items()})
    for number, read in enumerate(reads):
        cut: list[tuple[Tensor, Box]] = []
        if number in jpegs:
            with suppress(Exception):  # as above, of the pixels
                cut = crop_jpeg(jpegs.pop(number), boxes[number], sizes, channels)
        if not cut:
            image_CHW = read()
            drawn = _drawn(draw_boxes, {number: (image_CHW.shape[1], image_CHW.shape[2])})[number]
            cut = [(crop_image(image_CHW, box, size), box) for box, size in zip(drawn, sizes, strict=True)]
        yield cut


def _open(data: bytes) -> ImageFile.ImageFile:
    with PILLOWS_LIMIT_OFF:
        return Image.open(io.BytesIO(data), formats=_FORMATS)


def _drawn(draw_boxes: Callable[[list[int], Tensor], Tensor], sizes: dict[int, Size]) -> dict[int, list[Box]]:
    if not sizes:
        return {}
    rows = draw_boxes(list(sizes), torch.tensor(list(sizes.values()))).tolist()
    return {number: [tuple(box) for box in row] for number, row in zip(sizes, rows, strict=True)}


_BACK = {6: 8, 8: 6}  # the orientation that undoes one; the others undo themselves


def _turned(box: Box, turn: int, height: int, width: int) -> Box:
    """A box of an upright picture as a box of the stored one, which is height x width pixels."""
    top, left, tall, wide = box
    if turn >= 5:
        top, left, tall, wide = left, top, wide, tall
    if turn in (2, 3, 7, 8):
        left = width - left - wide
    if turn in (3, 4, 6, 7):
        top = height - top - tall
    return top, left, tall, wide


def _upright(part: Image.Image, channels: int, turn: int) -> Tensor:
    """The pixels by the usual rules; RGB stays in Pillow's order of memory, which torch resizes faster."""
    if part.mode != "RGB" or channels != 3:
        return torch.from_numpy(to_uint8(part, channels, turn=turn))
    upright_CHW = as_stored(np.asarray(part).transpose(2, 0, 1), _BACK.get(turn, turn))
    return torch.from_numpy(np.array(upright_CHW.transpose(1, 2, 0), order="C")).permute(2, 0, 1)


def _frame(data: bytes) -> int:
    """Where the marker of the frame header stands; 0 if there is none before the scan."""
    place = 2
    while place + 9 < len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return place
        if marker == 0xDA:
            return 0
        place += 1 if marker == 0xFF else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return 0


def _shortened(jpeg: Jpeg, bottom: int, height: int) -> bytes:
    """Return the baseline JPEG with a header that ends it a little below row `bottom`: the decoder stops there."""
    rows, at = min(height, -(-bottom // _MARGIN) * _MARGIN + _MARGIN), jpeg.frame + 5
    baseline = jpeg.data[jpeg.frame + 1] in (0xC0, 0xC1)  # baseline and extended sequential, Huffman
    if rows > height - _MARGIN or not jpeg.frame or not baseline:
        return jpeg.data
    return b"".join((jpeg.data[:at], rows.to_bytes(2, "big"), jpeg.data[at + 2 :]))
