"""Log of the server on stderr: one line per event, JSON for programs or text for people."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

from vitral.errors import json_safe, shown_lines

log = logging.getLogger("vitral")

_PERIOD, _TRACEBACKS = 10.0, 5  # seconds, and errors of one kind with a traceback in them; without one: one


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "event": record.getMessage(), **getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json_safe(json.dumps(line, ensure_ascii=False))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items()]
        line = " ".join([self.formatTime(record, "%H:%M:%S"), record.levelname.lower(), record.getMessage(), *fields])
        line = f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
        return shown_lines(line)


def _plain(value: object) -> str:
    """As it is printed; a text quoted and escaped where it would make another field, line or color, as a path may."""
    is_word = not isinstance(value, str) or (value.isprintable() and not re.search(r"[ ='\"]", value))
    return str(value) if is_word else repr(value)


class _Sparing(logging.Filter):
    """Of errors of one kind, some per period, and then how many were left out: a flood of them fills a disk."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[object, ...], list[float]] = {}  # when this period began, how many it has

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.ERROR or (hasattr(record, "fields") and not record.exc_info):
            return True
        kind = (record.name, record.msg, record.exc_info[0] if record.exc_info else None)
        if len(self._seen) > 1000:
            self._seen.clear()
        period = self._seen.setdefault(kind, [record.created, 0])
        most = _TRACEBACKS if record.exc_info else 1
        if record.created - period[0] > _PERIOD:
            left_out, period[:] = int(period[1]) - most, [record.created, 0]
            if left_out > 0:
                record.fields = {**getattr(record, "fields", {}), "left_out": left_out}
        period[1] += 1
        return period[1] <= most


class _Lines(logging.StreamHandler[Any]):
    """Lines that cannot be written, to a full disk say, are counted, and the next one that can be says how many."""

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        if self._lost:
            record.fields = {**getattr(record, "fields", {}), "lost_lines": self._lost}
        before = self._lost
        super().emit(record)
        if self._lost == before:
            self._lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        if isinstance(sys.exc_info()[1], OSError) or self.stream.closed:
            self._lost += 1
        else:
            super().handleError(record)


def log_lines(kind: str) -> None:
    """From now on everything that is logged goes to stderr as "json" or "text", that of the HTTP server too."""
    handler = _Lines(sys.stderr)
    handler.addFilter(_Sparing())
    handler.setFormatter(_Json() if kind == "json" else _Text())
    for name, level in (("vitral", logging.INFO), ("uvicorn.error", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
