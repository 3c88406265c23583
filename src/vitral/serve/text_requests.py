"""Parse requests to models that write text: texts in JSON, and how they are to be written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from fastapi import Request
from python_multipart.multipart import parse_options_header

from vitral.config import build, with_overrides
from vitral.errors import UserError
from vitral.files import parse_json
from vitral.models.search_config import SearchConfig
from vitral.serve.config import ServeConfig
from vitral.serve.middleware import shortened
from vitral.serve.model_worker import APIError
from vitral.text_predictor import TextPredictor

EVENTS = "text/event-stream"
SEARCH = "search."  # before the keys of `SearchConfig` in a query
_SHAPE = '{"text": "TEXT"} or {"texts": ["TEXT", ...]}, with "search": {...} and "stream": true by option'
_LONGEST_ESCAPE = 12  # bytes of JSON per character, at most
_AROUND, _BETWEEN = 2048, 8  # bytes of JSON outside of texts: of a request, and per text
_KEYS = 64  # texts of a request that are keys or values of search
_SMALL = 2**16  # bytes that are parsed on the event loop; more of them by a thread
_ESCAPED = re.compile(rb"\\.", re.DOTALL)


class TextRequest(NamedTuple):
    """What a request holds; `many`: the answer is a list, also of one. search: keys of `SearchConfig`, unchecked."""

    texts: list[str]
    many: bool
    search: dict[str, Any]
    stream: bool


async def read_texts(request: Request, options: ServeConfig) -> TextRequest:
    """The texts of a request, one at least. Raises APIError: 400 for a body that is no such JSON, 413 for too many or
    too long texts, 415 for another content type."""
    kind, _ = parse_options_header(request.headers.get("content-type"))
    if kind.lower() != b"application/json":
        got = shortened(kind.decode("latin-1")) or "no content type"
        message = f"{got} is not taken: this model reads texts; expected: application/json, {_SHAPE}"
        raise APIError(415, "content_type", message)
    room = min(options.max_bytes, 2 * _AROUND + options.max_texts * options.max_characters * _LONGEST_ESCAPE)
    pieces, size = list[bytes](), 0
    async for piece in request.stream():
        size += len(piece)
        if size > room:
            raise APIError(413, "too_large", f"a request with texts may hold {room:,} bytes")
        pieces.append(piece)
    body = b"".join(pieces)
    return _parsed(body, options) if size < _SMALL else await asyncio.to_thread(_parsed, body, options)


def _parsed(body: bytes, options: ServeConfig) -> TextRequest:
    bare = _ESCAPED.sub(b"", body)  # what follows counts what would be built, before anything is
    if bare.count(b'"') > 2 * (options.max_texts + _KEYS):
        raise _too_many(options)
    if sum(map(len, bare.split(b'"')[::2])) > _AROUND + _BETWEEN * options.max_texts:
        raise _bad_json()
    try:
        tree = parse_json(body, where="the body")
    except UserError:
        raise APIError(400, "bad_json", "the body is no JSON") from None
    if not isinstance(tree, dict) or len({"text", "texts"} & tree.keys()) != 1:
        raise _bad_json()
    if unknown := tree.keys() - {"text", "texts", "search", "stream"}:
        raise APIError(400, "unknown_field", f"unknown field {shortened(min(unknown))!r}; expected: {_SHAPE}")
    many, search, stream = "texts" in tree, tree.get("search", {}), tree.get("stream", False)
    texts: Any = tree["texts"] if many else [tree["text"]]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise _bad_json()
    if not isinstance(search, dict) or not isinstance(stream, bool):
        raise _bad_json()
    if not texts:
        raise APIError(400, "no_text", f"there is no text in this request; expected: {_SHAPE}")
    if len(texts) > options.max_texts:
        raise _too_many(options)
    for number, text in enumerate(texts):
        if len(text) > options.max_characters:
            message = f"text {number} has {len(text):,} characters; at most {options.max_characters:,} (max_characters)"
            raise APIError(413, "too_long", message)
    return TextRequest(texts, many, search, stream)


def _too_many(options: ServeConfig) -> APIError:
    return APIError(413, "too_many_texts", f"a request may hold {options.max_texts} texts (max_texts)")


def _bad_json() -> APIError:
    return APIError(400, "bad_json", f"expected: {_SHAPE}")


def search_keys(query: Mapping[str, str]) -> dict[str, Any]:
    """The keys of `SearchConfig` in a query, `?search.beams=3`, parsed by their types."""
    pairs = {name.removeprefix(SEARCH): value for name, value in query.items() if name.startswith(SEARCH)}
    return with_overrides(SearchConfig, {}, pairs)


def search_of(keys: Mapping[str, Any], predictor: TextPredictor, options: ServeConfig, stream: bool) -> SearchConfig:
    """How the texts of a request are written: as the folder says, or by these keys. Raises UserError for keys that do
    not fit together or the model, for too many beams, and for a search that cannot be streamed."""
    search = predictor.resolve_search(build(SearchConfig, keys, where="search") if keys else None)
    copies = copies_of(search)
    if copies > options.max_beams:
        raise UserError(
            "too many outputs per source", where="search", got=copies,
            expected=f"at most {options.max_beams} (max_beams)",
        )  # fmt: skip
    if stream and copies > 1:
        raise UserError(
            "several outputs cannot be streamed: which is the best is known at the end", where="stream",
            got=f"search={search.search}, n_best={search.n_best}", expected="search=greedy or search=sample, n_best=1",
        )  # fmt: skip
    if stream and not predictor.config.architecture.decodes_steps:
        raise UserError("CTC gives all tokens at once, so nothing is streamed", where="stream")
    return search


def copies_of(search: SearchConfig) -> int:
    """Outputs per source that are computed at once."""
    return search.beams if search.search == "beam" else search.n_best
