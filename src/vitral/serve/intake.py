"""The images of a request: a form, the bytes themselves, or base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from functools import partial
from typing import Any, NamedTuple

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from vitral.data.decode import pixels
from vitral.errors import UserError
from vitral.serve.host import Refused, Upload

FIELD = "image"
_KINDS = "multipart/form-data with fields called image, image/* or application/octet-stream, or application/json"
_SMALL = 2**16  # bytes that are taken apart at once; more of them by a thread, for a hostile form takes it seconds
_CURL = 'with curl: -F image=@FILE, or --data-binary @FILE -H "Content-Type: image/jpeg"'


class Images(NamedTuple):
    """What a request holds; `many`: the answer is a list, also of one."""

    uploads: list[Upload]
    many: bool


async def read_images(request: Request, max_images: int) -> Images:
    """The images of a request, undecoded, of which there is one at least. Raises Refused: 400 for none or a form that
    is none, 413 for too many, 415 for another content type, 422 for broken base64."""
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    name = kind.decode("latin-1").lower()
    if not (name in ("multipart/form-data", "application/json", "application/octet-stream") or name[:6] == "image/"):
        got = name or "no content type"
        raise Refused(415, "content_type", f"{got} is not taken; wanted: {_KINDS} ({_CURL})")
    body = await request.body()
    if name == "multipart/form-data":
        form = partial(_form, body, parameters.get(b"boundary"), max_images)
        uploads = form() if len(body) < _SMALL else await asyncio.to_thread(form)
        images = Images(uploads, len(uploads) > 1)
    elif name == "application/json":
        images = _json(body)
    else:
        images = Images([Upload(None, body)] if body else [], False)
    if not images.uploads:
        raise Refused(400, "no_image", f"there is no image in this request; wanted: {_KINDS}")
    if len(images.uploads) > max_images:
        raise _too_many(max_images)
    return images


def check_pixels(upload: Upload, number: int, max_pixels: int) -> int:
    """Height x width by the image's header. Raises Refused, 413, if they are more than `max_pixels`; 422 for what is no
    image."""
    try:
        width, height = pixels(upload.data)  # `header` would read a PNG to its end, for its EXIF
    except UserError as error:
        raise bad_image(upload, number, error) from None
    if height * width > max_pixels:
        size = f"{width} x {height} = {height * width:,} pixels"
        message = f"{_called(upload, number)}: {size}, and the limit is {max_pixels:,} (max_pixels)"
        raise Refused(413, "too_many_pixels", message)
    return height * width


def bad_image(upload: Upload, number: int, error: UserError) -> Refused:
    """The answer to an image that cannot be read."""
    return Refused(422, "bad_image", f"{_called(upload, number)}: {error.what}")


def _called(upload: Upload, number: int) -> str:
    return f"image {number}" if upload.name is None else upload.name


def _too_many(max_images: int) -> Refused:
    return Refused(413, "too_many_images", f"a request may hold {max_images} images")


class _Parts:
    """The parts of a form as the parser comes upon them."""

    def __init__(self, most: int) -> None:
        self.found: list[Upload] = []
        self._most, self._name, self._value = most, bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()
        self.is_complete = False

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin, "on_part_data": self._add, "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header, "on_end": self._finish,
        }  # fmt: skip

    def _begin(self) -> None:
        self._headers, self._data = {}, bytearray()

    def _header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._data += memoryview(data)[start:end]

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        field = options.get(b"name", b"").decode("utf-8", "replace")
        if field != FIELD:
            raise Refused(400, "unknown_field", f"the form has a field {field!r}; wanted: {FIELD}")
        if len(self.found) == self._most:
            raise _too_many(self._most)
        name = options.get(b"filename")
        self.found.append(Upload(name.decode("utf-8", "replace") if name else None, bytes(self._data)))

    def _finish(self) -> None:
        self.is_complete = True


def _form(body: bytes, boundary: bytes | None, max_images: int) -> list[Upload]:
    if not boundary:
        raise Refused(400, "bad_form", "the content type of a form has to say its boundary")
    if body.count(b"\r\n--" + boundary) > max_images + 1:  # one before each but the first, and one behind the last
        raise _too_many(max_images)
    parts = _Parts(max_images)
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise Refused(400, "bad_form", f"the form cannot be read: {error}") from None
    if not parts.is_complete:
        raise Refused(400, "bad_form", "the form is cut off")
    return parts.found


def _json(body: bytes) -> Images:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "bad_json", "the body is no JSON") from None
    if not isinstance(tree, dict) or len(tree) != 1 or not {"image", "images"} & tree.keys():
        raise Refused(400, "bad_json", 'wanted: {"image": BASE64} or {"images": [BASE64, ...]}')
    many = "images" in tree
    texts: Any = tree["images"] if many else [tree["image"]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(400, "bad_json", "an image is text in base64")
    return Images([Upload(None, _bytes(text, number)) for number, text in enumerate(texts)], many)


def _bytes(text: str, number: int) -> bytes:
    try:  # browsers make data URLs
        return base64.b64decode(re.sub(r"^data:[^,]{0,99};base64,", "", text), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, "bad_image", f"image {number}: not base64") from None
