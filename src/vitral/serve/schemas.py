"""Response schemas for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel


class Prediction(BaseModel):
    """One class of an image with its probability `score`, or one number with its `value`, in units of its column."""

    label: str
    index: int
    score: float | None = None
    value: float | None = None


class Predicted(BaseModel):
    """What `vitral predict` prints of an image."""

    image: str | int
    predictions: list[Prediction]


class Detection(BaseModel):
    """An object: its class, its score, and its box (x0, y0, x1, y1) in pixels of the upright image as it was sent."""

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


class Detected(BaseModel):
    """What a detector finds on an image, best first."""

    image: str | int
    detections: list[Detection]


class OneText(BaseModel):
    """A text that a model has written. score: the sum of the log-probabilities of its tokens, divided as the search's
    length penalty says; finished: false where it was cut at the search's max_length."""

    text: str
    score: float
    finished: bool


class WrittenText(BaseModel):
    """What a model writes for a text (`source`, its number) or an image, best first."""

    source: int | None = None
    image: str | int | None = None
    predictions: list[OneText]


class Embedded(BaseModel):
    """What `vitral embed` prints of an image: features; of every patch with features=patches."""

    image: str | int
    embedding: list[float] | list[list[float]]


class Attended(BaseModel):
    """How a token shares its attention out: attention[layer][head][token], rows of one head sum to 1; the first tokens
    are those that `prefix` names, the others patches, row by row of the grid."""

    image: str | int
    grid: tuple[int, int]
    prefix: list[str]
    token: str
    layers: list[int]
    heads: list[int]
    attention: list[list[list[float]]]


class Model(BaseModel):
    """A model that is served. failure: why a replaced folder could not be loaded; null: there is none such."""

    name: str
    architecture: str
    classes: int
    image_size: tuple[int, int]
    channels: int
    engine: str
    precision: str
    loaded: str
    provenance: dict[str, Any]
    failure: str | None


class TextModel(BaseModel):
    """A model that is served and writes text. reads: text or image; search: how it writes unless a request says
    otherwise; failure: as in `Model`."""

    name: str
    architecture: str
    task: str
    reads: str
    vocabulary: int
    search: dict[str, Any]
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    engine: str
    precision: str
    loaded: str
    provenance: dict[str, Any]
    failure: str | None


class Problem(BaseModel):
    """A short code for programs, a sentence for people."""

    code: str
    message: str


class Failed(BaseModel):
    """Any answer but 200."""

    error: Problem


_CODES = {
    400: "no image, or a form or JSON that cannot be read", 401: "no key, or a wrong one",
    403: "a page of another origin", 404: "no such model", 408: "the body came too slowly",
    413: "too many bytes, pixels or images, or too large an answer", 415: "another content type",
    421: "a host name that is not this server's",
    422: "an image that cannot be read, a wrong parameter, or something this model cannot do",
    429: "the queue is full: Retry-After says when to come back", 500: "the model failed",
    504: "no answer within the deadline",
}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Failed, "description": text} for code, text in _CODES.items()
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "array", "items": _BINARY["schema"]}},
}
_TEXT = {"type": "string"}
_HOW = {"search": {"type": "object"}, "stream": {"type": "boolean"}}


def _body(*objects: dict[str, Any]) -> dict[str, Any]:
    """A request with images in any form, or with one of these objects in JSON."""
    content = {
        "multipart/form-data": {"schema": _FORM}, "image/*": _BINARY, "application/octet-stream": _BINARY,
        "application/json": {"schema": {"oneOf": list(objects)}},
    }  # fmt: skip
    return {"requestBody": {"required": True, "content": content}}


def _object(name: str, value: dict[str, Any], **others: Any) -> dict[str, Any]:
    """JSON that holds one value under this name, and nothing beside it but `others`, which it may lack."""
    properties = {name: value, **others}
    return {"type": "object", "required": [name], "properties": properties, "additionalProperties": False}


_IMAGES = _object("image", _BASE64), _object("images", {"type": "array", "items": _BASE64})
_TEXTS = _object("text", _TEXT, **_HOW), _object("texts", {"type": "array", "items": _TEXT}, **_HOW)
IMAGES, SOURCES = _body(*_IMAGES), _body(*_IMAGES, *_TEXTS)
