"""Keys of the server: where it listens, what it takes, how long it waits."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, Strict

from vitral.config import Config, Count

KEY_VARIABLE = "VITRAL_API_KEY"
Words = Annotated[tuple[str, ...], Strict(False)]


def _host_name(name: str) -> str:
    """In lower case, as requests are compared. Raises ValueError for what no request would be found to say."""
    if not name or re.search(r"[\s/@\[\]*]", name) or name.count(":") == 1:  # an IPv6 address has several
        raise ValueError(f"{name!r} is no host name: without scheme, port and brackets")
    return name.lower()


HostNames = Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...], Strict(False)]


class ServeConfig(Config):
    """How models are served, whichever they are."""

    host: str = Field(default="127.0.0.1", description="address to listen at; 0.0.0.0: all that this machine has")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen at; 0: a free one")
    names: Words = Field(default=(), description="what requests call the models; empty: the names of their folders")
    allow_hosts: HostNames = Field(
        default=(),
        description="names that requests may call this server by, without port, for one behind a proxy; empty: any, "
        "but on a loopback address only localhost",
    )
    api_key_file: str | None = Field(
        default=None, description=f"file with the key that /v1 then wants; null: the variable {KEY_VARIABLE}, or no key"
    )
    max_batch: Count = Field(default=32, description="images computed at once")
    max_queue: Count = Field(default=256, description="images of a model that may wait; beyond it the answer is 429")
    max_images: Count = Field(default=64, description="images of one request")
    max_bytes: Count = Field(default=32 * 2**20, description="bytes of one request's body")
    max_pixels: Count = Field(
        default=50_000_000,
        description="pixels of one image, by its header, whatever the model's own limit; pixels of more than 4 bytes "
        "(16 bits per channel) count in proportion; 4 times as many are decoded at once, all requests together",
    )
    decode_seconds: float = Field(
        default=10.0, gt=0, description="seconds that decoding one image may take, then its process is ended"
    )
    deadline: float = Field(default=30.0, gt=0, description="seconds from the whole request to its answer")
    body_seconds: float = Field(default=30.0, gt=0, description="seconds within which a request's body has to arrive")
    drain: float = Field(default=30.0, ge=0, description="seconds that requests have to end after SIGTERM")
    reload: float = Field(default=2.0, ge=0, description="seconds between looks for a replaced model folder; 0: never")
    log: Literal["json", "text"] = Field(default="json", description="lines on stderr: for programs or for people")
