"""Lines of the log: bounded in number, harmless to a terminal, and no trouble where they cannot be written."""

from __future__ import annotations

import errno
import io
import json
import logging
import time
from collections.abc import Callable, Generator

import pytest

from vitral.serve.access_log import log_lines

CONTROLS = "a\x1b[31m\x9b1m\x7f\u202e\u2028\r\tb\ud800"


Log = Callable[..., tuple[logging.Logger, io.StringIO]]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Generator[Log]:
    """Begins to log and gives a logger and its stream.

    A test calls it itself: to loggers that are set up before, pytest adds its own handler, and xdist cannot send a
    lone surrogate.
    """
    loggers = [logging.getLogger(name) for name in ("vitral", "uvicorn.error", "asyncio")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in loggers]

    def begin(kind: str = "json") -> tuple[logging.Logger, io.StringIO]:
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        log_lines(kind)
        return loggers[0], stream

    yield begin
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.parametrize("kind", ["json", "text"])
def test_no_control_character_reaches_a_terminal(log: Log, kind: str) -> None:
    logger, stream = log(kind)
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


def test_a_flood_of_one_error_is_counted(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others and requests are all there; when the period is over, a line says how many were left out."""
    logger, stream = log()
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
    monkeypatch.setattr(time, "time_ns", lambda: int((now + 11) * 1e9))  # Ray's records are dated by it
    logger.error("no room for %d", 100)
    last = next(line for line in map(json.loads, stream.getvalue().splitlines()) if line["event"] == "no room for 100")
    assert last["left_out"] == 99


def test_a_full_disk_costs_the_lines_and_nothing_else(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    logger, stream = log()
    write = stream.write

    def full(_: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    beside = io.StringIO()
    monkeypatch.setattr("sys.stderr", beside)
    monkeypatch.setattr(stream, "write", full)
    for _ in range(3):
        logger.info("lost")
    monkeypatch.setattr(stream, "write", write)
    logger.info("there")
    logger.info("again")
    assert beside.getvalue() == ""
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [(line["event"], line.get("lost_lines")) for line in lines] == [("there", 3), ("again", None)]
