"""What the server says on stderr: one line an event, JSON for programs or text for people."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any

log = logging.getLogger("vitral")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(), "event": record.getMessage(), **getattr(record, "fields", {}),
        }  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = [f"{name}={_plain(value)}" for name, value in getattr(record, "fields", {}).items()]
        line = " ".join([self.formatTime(record, "%H:%M:%S"), record.levelname.lower(), record.getMessage(), *fields])
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: object) -> str:
    """As it is printed; a text quoted and escaped where it would make another field, line or colour, as a path may."""
    is_word = not isinstance(value, str) or (value.isprintable() and not re.search(r"[ ='\"]", value))
    return str(value) if is_word else repr(value)


def log_lines(kind: str) -> None:
    """From now on everything that is logged goes to stderr as "json" or "text", that of the HTTP server too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if kind == "json" else _Text())
    for name, level in (("vitral", logging.INFO), ("uvicorn.error", logging.ERROR), ("asyncio", logging.ERROR)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
