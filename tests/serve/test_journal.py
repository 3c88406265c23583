"""Lines of the log: bounded in number, harmless to a terminal, and no trouble where they cannot be written."""

from __future__ import annotations

import errno
import io
import json
import logging
import time
from collections.abc import Generator
from typing import Any

import pytest

from vitral.serve.journal import log_lines

CONTROLS = "a\x1b[31m\x9b1m\x7f\u202e\u2028\r\tb\ud800"


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Generator[Any]:
    """A logger and its stream; the parameter is the kind of its lines."""
    loggers = [logging.getLogger(name) for name in ("vitral", "uvicorn.error", "asyncio")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    log_lines(getattr(request, "param", "json"))
    yield loggers[0], stream
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.parametrize("log", ["json", "text"], indirect=True)
def test_no_control_character_reaches_a_terminal(log: Any) -> None:
    logger, stream = log
    logger.info(CONTROLS, extra={"fields": {"path": CONTROLS}})
    try:
        raise ValueError(CONTROLS)
    except ValueError:
        logger.exception("it failed")
    text = stream.getvalue()
    assert not [sign for sign in text if not sign.isprintable() and sign != "\n"]
    if text.startswith("{"):
        line = json.loads(text.splitlines()[0])
        assert (line["event"], line["path"]) == (CONTROLS, CONTROLS)


def test_a_flood_of_one_error_is_counted(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others and requests are all there; when the period is over, a line says how many were left out."""
    logger, stream = log
    for number in range(100):
        logger.error("no room for %d", number)
        logger.error("request", extra={"fields": {"status": 500, "id": number}})
        try:
            raise MemoryError(number)
        except MemoryError:
            logger.exception("it failed")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines if line["event"] != "request"].count("no room for 0") == 1
    assert len([line for line in lines if line["event"] == "request"]) == 100
    assert len([line for line in lines if "traceback" in line]) == 5
    assert len(lines) == 106
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 11)
    logger.error("no room for %d", 100)
    assert json.loads(stream.getvalue().splitlines()[-1])["left_out"] == 99


def test_a_full_disk_costs_the_lines_and_nothing_else(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, stream = log
    write = stream.write

    def full(_: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    beside = io.StringIO()
    monkeypatch.setattr("sys.stderr", beside)
    stream.write = full
    for _ in range(3):
        logger.info("lost")
    stream.write = write
    logger.info("there")
    logger.info("again")
    assert beside.getvalue() == ""
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line.get("lost_lines")) for line in lines] == [("there", 3), ("again", None)]
