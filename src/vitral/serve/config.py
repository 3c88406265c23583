"""Keys of the server: address, limits, timeouts."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict

from vitral.config import Config, Count

KEY_VARIABLE = "VITRAL_API_KEY"
Words = Annotated[tuple[str, ...], Strict(False)]


def _host_name(name: str) -> str:
    """Return the name in lower case. Raises ValueError for text that no Host header can match."""
    if not name or re.search(r"[\s/@\[\]*]", name) or name.count(":") == 1:  # an IPv6 address has several
        raise ValueError(f"{name!r} is not a host name: expected one without scheme, port and brackets")
    return name.lower()


HostNames = Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...], Strict(False)]


class ServeConfig(Config):
    """Keys of the HTTP server."""

    host: str = Field(default="127.0.0.1", description="address to listen on; 0.0.0.0: all interfaces")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0: a free port")
    names: Words = Field(default=(), description="model names in requests; empty: the names of the model folders")
    allow_hosts: HostNames = Field(
        default=(),
        description="allowed host names of requests, without port, for a server behind a proxy; empty: any; on a "
        "loopback address only localhost",
    )
    api_key_file: str | None = Field(
        default=None, description=f"file with the API key of /v1; null: the variable {KEY_VARIABLE}, or no key"
    )
    max_batch: Count = Field(default=32, description="largest number of images, or of texts times beams, per batch")
    max_queue: Count = Field(
        default=256, description="largest number of waiting images or texts per model; further requests get status 429"
    )
    max_images: Count = Field(default=64, description="largest number of images per request")
    max_texts: Count = Field(default=64, description="models that write text: largest number of texts per request")
    max_characters: Count = Field(
        default=10_000, description="models that write text: characters of one text, besides the model's own limit"
    )
    max_beams: Count = Field(
        default=16, description="models that write text: largest number of beams, or of samples, per text or image"
    )
    max_bytes: Count = Field(default=32 * 2**20, description="size limit of a request body, in bytes")
    max_pixels: Count = Field(
        default=50_000_000,
        description="size limit of one image, in pixels, checked in the file header in addition to the model's own "
        "limit; pixels of more than 4 bytes (16 bits per channel) count in proportion; 4 times as many are "
        "decoded at once over all requests",
    )
    decode_seconds: float = Field(default=10.0, gt=0, description="time limit for decoding one image, in seconds")
    deadline: float = Field(default=30.0, gt=0, description="time limit of a request until its response, in seconds")
    body_seconds: float = Field(default=30.0, gt=0, description="time limit for receiving a request body, in seconds")
    drain: float = Field(default=30.0, ge=0, description="time for running requests to end after SIGTERM, in seconds")
    reload: float = Field(default=2.0, ge=0, description="seconds between checks for a replaced model folder; 0: never")
    log: Literal["json", "text"] = Field(default="json", description="log format on stderr; json: one object per line")
