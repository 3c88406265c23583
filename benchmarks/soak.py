"""A server under many thousand requests, good and bad: is its memory flat, does everybody get the right answer?

    python benchmarks/soak.py                                      # 50,000 requests to vitral-digits
    python benchmarks/soak.py requests=5000 clients=8 save=benchmarks/results/soak.json

One request in ten is bad, of seven kinds in turn: a broken image, no image, a wrong content type, a picture of 400
million pixels, a body that is too long, a connection cut in the middle, one that stops and waits for the server's 408.
Good requests are checked against `Predictor.predict`, bad ones for the status that they must get. Memory is the
resident set of the server's process; the slope is that of a straight line through all samples after the first fifth.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import environment

from vitral.config import parse_yaml, split_words
from vitral.predictor import load

BAD_EVERY = 10
BODY_SECONDS, MAX_BYTES = 2, 200_000
HEAD = "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {"requests": 50_000, "clients": 16, "model": "vitral-digits", "save": None}
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    words = [
        "serve",
        options["model"],
        "port=0",
        f"body_seconds={BODY_SECONDS}",
        f"max_bytes={MAX_BYTES}",
        "device=cpu",
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "vitral", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as server:
        try:
            assert server.stdout is not None
            port = int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
            result = asyncio.run(soak(server.pid, port, options))
        finally:
            server.terminate()
    print(json.dumps(result))
    if options["save"]:
        facts = {"environment": environment(), "load_average": os.getloadavg(), "options": options, **result}
        Path(options["save"]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


async def soak(pid: int, port: int, options: dict[str, Any]) -> dict[str, Any]:
    """All requests, by so many clients; statuses, wrong answers, and the memory meanwhile."""
    predictor, images = load(options["model"], "cpu"), [picture(number) for number in range(50)]
    answers = [predictor.predict(image)[0]["predictions"] for image in images]
    bad = bad_requests()
    total, done, wrong = options["requests"], [0], [0]
    statuses: dict[str, int] = {}
    samples: list[tuple[int, float]] = []
    start = time.monotonic()

    async def client() -> None:
        while done[0] < total:
            number = done[0]
            done[0] += 1
            if number % max(1, total // 200) == 0:
                samples.append((number, memory_mb(pid)))
            if number % BAD_EVERY == 0:
                sent, expected = bad[number // BAD_EVERY % len(bad)]
                status, _ = await ask(port, sent, expected == 0)
                wrong[0] += status != expected
            else:
                status, answer = await ask(port, raw(images[number % len(images)], "image/png"), False)
                wrong[0] += status != 200 or not alike(json.loads(answer)["predictions"], answers[number % len(images)])
            statuses[str(status)] = statuses.get(str(status), 0) + 1

    await asyncio.gather(*(client() for _ in range(options["clients"])))
    settled = [sample for sample in samples if sample[0] >= total / 5]
    slope = statistics.linear_regression(*zip(*settled, strict=True)).slope if len(settled) > 1 else 0.0
    return {
        "requests": total, "wrong": wrong[0], "statuses": statuses, "seconds": round(time.monotonic() - start, 1),
        "memory_mb": {"first": samples[0][1], "after_a_fifth": settled[0][1], "last": memory_mb(pid)},
        "slope_mb_per_10000": round(slope * 10_000, 3),
    }  # fmt: skip


async def ask(port: int, sent: bytes, cut: bool) -> tuple[int, bytes]:
    """Status and body; 0 for a request that is cut off on purpose."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(sent)
        if cut:
            await writer.drain()
            return 0, b""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0])
        return int(head.split(b" ", 2)[1]), await reader.readexactly(length)
    finally:
        writer.close()


def bad_requests() -> list[tuple[bytes, int]]:
    """What is sent, and the status that it must get; 0: the client goes away before there is one."""
    good, huge = picture(0), io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")
    unfinished = raw(good, "image/png", len(good) + 1)
    return [
        (raw(good[:60], "image/png"), 422), (raw(b"", "image/png"), 400), (raw(good, "text/plain"), 415),
        (raw(huge.getvalue(), "image/png"), 413), (raw(good, "image/png", MAX_BYTES + 1), 413), (unfinished, 0),
        (unfinished, 408),
    ]  # fmt: skip


def raw(image: bytes, kind: str, length: int | None = None) -> bytes:
    """A whole request."""
    length = len(image) if length is None else length
    return f"{HEAD}Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n".encode() + image


def picture(number: int) -> bytes:
    """Noise of some size."""
    random, out = np.random.default_rng(number), io.BytesIO()
    shape = (int(random.integers(5, 60)), int(random.integers(5, 60)))
    Image.fromarray(random.integers(0, 255, shape, np.uint8)).save(out, "PNG")
    return out.getvalue()


def alike(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Equal classes and scores, to the millionth that another batch may make of difference."""
    pairs = list(zip(found, expected, strict=True))
    return all(a["label"] == b["label"] and abs(a["score"] - b["score"]) <= 3e-6 for a, b in pairs)


def memory_mb(pid: int) -> float:
    """Resident memory of a process, megabytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


if __name__ == "__main__":
    main()
