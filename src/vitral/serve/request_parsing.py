"""Parse the images of a request: a form, raw bytes, or base64 in JSON.

A request states its structure in few bytes: quotes, delimiters, heads. These are counted while the body arrives, and
before anything is built of them, so that no body costs more than the images that it may hold.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple

from fastapi import Request
from python_multipart.multipart import parse_options_header

from vitral.serve.model_worker import APIError, Upload

FIELD = "image"
_KINDS = "multipart/form-data with fields called image, image/* or application/octet-stream, or application/json"
_SMALL = 2**16  # bytes that are taken apart at once; more of them by a thread
_CURL = 'with curl: -F image=@FILE, or --data-binary @FILE -H "Content-Type: image/jpeg"'
_BOUNDARY = 256  # characters; RFC 2046 allows 70
_HEAD_BYTES = 8192  # of a form's part
_AROUND, _BETWEEN = 1024, 256  # bytes of JSON outside of texts: of a request, and per image
_SLICE = 2**20  # bytes of base64 at once: a multiple of 4; Python lets other threads work in between
_STANDARD = bytes.maketrans(b"-_", b"+/")  # the alphabet for URLs
_BLANKS = re.compile(rb"[ \t]{0,64}")
_DATA_URL = re.compile(rb"data:[^,]{0,99};base64,")


class Images(NamedTuple):
    """What a request holds; `many`: the answer is a list, also of one."""

    uploads: list[Upload]
    many: bool


async def read_images(request: Request, max_images: int) -> Images:
    """The images of a request, undecoded, of which there is one at least. Raises APIError: 400 for none or a form that
    is none, 413 for too many, 415 for another content type, 422 for broken base64."""
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    name = kind.decode("latin-1").lower()
    count = None
    if name == "multipart/form-data":
        take = partial(_form, _boundary(parameters.get(b"boundary")), max_images)
    elif name == "application/json":
        take, count = partial(_json, max_images), _JsonCount(max_images)
    elif name == "application/octet-stream" or name.startswith("image/"):
        take = _raw
    else:
        got = name or "no content type"
        raise APIError(415, "content_type", f"{got} is not taken; expected: {_KINDS} ({_CURL})")
    pieces: list[bytes] = []
    async for piece in request.stream():
        if count is not None:
            count.add(piece)
        pieces.append(piece)
    body = b"".join(pieces)
    images = take(body) if len(body) < _SMALL or take is _raw else await asyncio.to_thread(take, body)
    if not images.uploads:
        raise APIError(400, "no_image", f"there is no image in this request; expected: {_KINDS}")
    if len(images.uploads) > max_images:
        raise _too_many(max_images)
    return images


def _raw(body: bytes) -> Images:
    return Images([Upload(None, body)] if body else [], False)


def _too_many(max_images: int) -> APIError:
    return APIError(413, "too_many_images", f"a request may hold {max_images} images")


def _boundary(given: bytes | None) -> bytes:
    if not given:
        raise APIError(400, "bad_form", "the content type of a form has to say its boundary")
    if len(given) > _BOUNDARY:
        message = f"the boundary of a form has at most {_BOUNDARY} characters, got {len(given):,}"
        raise APIError(400, "bad_form", message)
    return b"--" + given


def _form(delimiter: bytes, max_images: int, body: bytes) -> Images:
    if body.count(b"\r\n" + delimiter) > max_images + 1:  # one before each but the first, and one behind the last
        raise _too_many(max_images)
    uploads: list[Upload] = []
    place = _next(delimiter, body, -2 if body.startswith(delimiter) else 0)[1]
    while not body.startswith(b"--", place):
        head_end = body.find(b"\r\n\r\n", place, place + _HEAD_BYTES)
        if head_end < 0:
            raise APIError(400, "bad_form", f"a part of the form has no head of at most {_HEAD_BYTES:,} bytes")
        end, following = _next(delimiter, body, head_end + 2)
        name = _file_name(body[place:head_end])
        if len(uploads) == max_images:
            raise _too_many(max_images)
        uploads.append(Upload(name, body[head_end + 4 : end]))
        place = following
    return Images(uploads, len(uploads) > 1)


def _next(delimiter: bytes, body: bytes, start: int) -> tuple[int, int]:
    """Where the next delimiter begins, its line break included, and where it ends. `start` -2: a delimiter without line
    break begins the body. A line that continues is data that looks alike."""
    while True:
        place = start if start < 0 else body.find(b"\r\n" + delimiter, start)
        if place < 0 and start >= 0:
            raise APIError(400, "bad_form", "the form is cut off")
        end = place + 2 + len(delimiter)
        blanks = _BLANKS.match(body, end)
        end = blanks.end() if blanks else end
        if body.startswith((b"\r\n", b"--"), end):
            return place, end
        start = end


def _file_name(head: bytes) -> str | None:
    """The file's name by the head of a part, whose field has to be `image`."""
    lines = (line.partition(b":") for line in head.split(b"\r\n"))
    fields = {name.strip().lower(): value.strip() for name, _, value in lines}
    _, options = parse_options_header(fields.get(b"content-disposition"))
    field = options.get(b"name", b"").decode("utf-8", "replace")
    if field != FIELD:
        raise APIError(400, "unknown_field", f"the form has a field {field!r}; expected: {FIELD}")
    name = options.get(b"filename")
    return name.decode("utf-8", "replace") if name else None


class _JsonCount:
    """Texts, and bytes outside of them, of a JSON body as it arrives. Raises APIError beyond what images need."""

    def __init__(self, max_images: int) -> None:
        self._max_images, self._quotes = max_images, 0
        self._room = _AROUND + _BETWEEN * max_images

    def add(self, piece: bytes) -> None:
        is_outside = self._quotes % 2 == 0
        self._quotes += piece.count(b'"')
        if self._quotes > 2 * (self._max_images + 1):
            raise _too_many(self._max_images)
        texts = piece.split(b'"')
        self._room -= sum(len(text) for text in texts[0 if is_outside else 1 :: 2])
        if self._room < 0:
            raise _bad_json()


def _bad_json() -> APIError:
    return APIError(400, "bad_json", 'expected: {"image": BASE64} or {"images": [BASE64, ...]}')


def _json(max_images: int, body: bytes) -> Images:
    """The structure is parsed without the texts, of which only their numbers are left in it: base64 has no quotes."""
    pieces = body.split(b'"')
    texts, outside = pieces[1::2], pieces[0::2]
    if len(outside) != len(texts) + 1 or not texts:
        raise APIError(400, "bad_json", "the body is no JSON")
    key = texts[0]
    names = [key if key in (b"image", b"images") else b""] + [b"%d" % number for number in range(1, len(texts))]
    shape = b"".join(b'%b"%b"' % pair for pair in zip(outside, names, strict=False)) + outside[-1]
    try:
        tree = json.loads(shape)
    except (ValueError, RecursionError):
        raise APIError(400, "bad_json", "the body is no JSON") from None
    if not isinstance(tree, dict) or len(tree) != 1 or not {"image", "images"} & tree.keys():
        raise _bad_json()
    many = "images" in tree
    found: Any = tree["images"] if many else [tree["image"]]
    if not isinstance(found, list) or not all(isinstance(number, str) for number in found):
        raise APIError(400, "bad_json", "an image is text in base64")
    if len(found) > max_images:
        raise _too_many(max_images)
    return Images([Upload(None, _bytes(texts[int(each)], number)) for number, each in enumerate(found)], many)


def _bytes(text: bytes, number: int) -> bytes:
    """Base64 of either alphabet, in one line or several, with padding or without."""
    try:
        if not text.isascii():
            text.decode("utf-8")
        start = _DATA_URL.match(text)  # browsers make data URLs
        found = b"".join(_unescaped(text[start.end() :] if start else text))
        found += b"=" * (-len(found) % 4)
        if b"=" in found[:-2]:
            raise ValueError("padding inside")
        slices = range(0, len(found), _SLICE)
        return b"".join(base64.b64decode(found[place : place + _SLICE], validate=True) for place in slices)
    except UnicodeDecodeError:
        raise APIError(400, "bad_json", "the body is no JSON") from None
    except (binascii.Error, ValueError):
        raise APIError(422, "bad_image", f"image {number}: not base64") from None


def _unescaped(text: bytes) -> Generator[bytes]:
    """The text in pieces, without JSON's escapes, spaces and line breaks, in the standard alphabet."""
    place = 0
    while place < len(text):
        end = min(place + _SLICE, len(text))
        if end < len(text) and (escape := text.rfind(b"\\", end - 6, end)) >= 0:
            end = escape  # not through the middle of it
        piece = text[place:end]
        if b"\\" in piece:
            piece = json.loads(b'"' + piece + b'"').encode("ascii")
        yield piece.translate(_STANDARD, b" \t\r\n")
        place = end
