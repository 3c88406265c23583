"""Does one client in ten who means harm cost the others anything? 2,000 requests of 32 clients, with and without.

    python benchmarks/hostile.py                                   # vitral-digits, three rounds of each kind, in turns
    python benchmarks/hostile.py rounds=9 save=benchmarks/results/hostile.json

Every tenth request of the hostile rounds is one of the kinds that tests/serve/test_hostile.py refuses: JSON of millions
of items, images of millions of segments, deep and slow pictures, forms without end. Counted are statuses of honest
requests, and their latency at the 50th and 99th percentile; a ratio is of two rounds one after the other. Memory is
that of the server and its processes, which they do not share with others.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from soak import picture, raw
from train import environment, quartiles

from tests.serve.test_hostile import BODIES, deep_png, slow_picture, tree_mb
from vitral.config import parse_yaml, split_words

HOSTILE_EVERY = 10


def main() -> None:
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {
        "requests": 2000, "clients": 32, "rounds": 3, "model": "vitral-digits", "save": None, "decode_seconds": 10,
    }  # fmt: skip
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    words = ["serve", options["model"], "port=0", "device=cpu", f"decode_seconds={options['decode_seconds']}"]
    with subprocess.Popen(
        [sys.executable, "-m", "vitral", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, encoding="utf-8"
    ) as server:
        try:
            assert server.stdout is not None
            port = int(json.loads(server.stdout.readline())["url"].rsplit(":", 1)[1])
            result = measure(server.pid, port, options)
        finally:
            server.terminate()
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    if options["save"]:
        facts = {"environment": environment(), "load_average": os.getloadavg(), "options": options, **result}
        Path(options["save"]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def measure(pid: int, port: int, options: dict[str, Any]) -> dict[str, Any]:
    """All rounds, honest and hostile ones in turns, after one of each that does not count."""
    honest = [raw(picture(number), "image/png") for number in range(50)]
    _prepare()
    senders = ProcessPoolExecutor(options["clients"], multiprocessing.get_context("fork"))
    asyncio.run(clients(port, honest, senders, options["requests"] // 4, options["clients"]))
    before = tree_mb(pid)
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for turn in range(options["rounds"]):
        found: dict[bool, dict[str, Any]] = {}
        for with_hostile in (False, True) if turn % 2 == 0 else (True, False):
            found[with_hostile] = asyncio.run(
                clients(port, honest, senders if with_hostile else None, options["requests"], options["clients"])
            )
            print(("hostile" if with_hostile else "honest "), found[with_hostile], file=sys.stderr, flush=True)
            time.sleep(2)
        rounds.append((found[False], found[True]))
    without, beside = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    p50, p99 = ([[each[key] for each in part] for part in (beside, without)] for key in ("p50", "p99"))
    statuses: dict[str, int] = {}
    for each in beside:
        for status, count in each["statuses"].items():
            statuses[status] = statuses.get(status, 0) + count
    return {
        "n": len(rounds), "statuses_of_honest": statuses,
        "p50_ms": [round(statistics.median(part), 2) for part in reversed(p50)],
        "p99_ms": [round(statistics.median(part), 2) for part in reversed(p99)],
        "p50_ratio_quartiles": quartiles(*p50), "p99_ratio_quartiles": quartiles(*p99),
        "memory_mb": [round(before, 1), round(tree_mb(pid), 1)], "rounds": rounds,
    }  # fmt: skip


_hostile: list[bytes] = []  # before the processes that send are forked


def _prepare() -> None:
    _hostile.extend(raw(make(), kind) for make, kind, _, _ in BODIES.values())
    _hostile.extend(raw(data, "image/png") for data in (deep_png(4900), slow_picture(7000), deep_png(7000)))


def _send(port: int, number: int) -> int:
    return asyncio.run(ask(port, _hostile[number % len(_hostile)]))


async def clients(
    port: int, honest: list[bytes], senders: ProcessPoolExecutor | None, total: int, count: int
) -> dict[str, Any]:
    """So many requests by so many clients, of which every tenth is hostile: statuses, and latency of the others. The
    hostile ones are sent by other processes, so that the clock of the others does not count the sending."""
    loop = asyncio.get_running_loop()
    done, latencies = [0], list[float]()
    statuses: dict[str, int] = {}
    refused: dict[str, int] = {}

    async def client() -> None:
        while done[0] < total:
            number = done[0]
            done[0] += 1
            if senders is not None and number % HOSTILE_EVERY == 0:
                status, counts = await loop.run_in_executor(senders, _send, port, number // HOSTILE_EVERY), refused
            else:
                start, counts = time.perf_counter(), statuses
                status = await ask(port, honest[number % len(honest)])
                latencies.append(1000 * (time.perf_counter() - start))
            counts[str(status)] = counts.get(str(status), 0) + 1

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(count)))
    p50, p99 = (round(float(np.percentile(latencies, share)), 2) for share in (50, 99))
    seconds = round(time.perf_counter() - start, 2)
    return {"statuses": statuses, "hostile": refused, "p50": p50, "p99": p99, "seconds": seconds}


async def ask(port: int, sent: bytes) -> int:
    """The status of the answer; 0 where the connection is cut."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for place in range(0, len(sent), 2**18):
            writer.write(sent[place : place + 2**18])
            await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0])
        await reader.readexactly(length)
        return int(head.split(b" ", 2)[1])
    except (OSError, asyncio.IncompleteReadError):  # refused in the middle of a body, and cut off
        return 0
    finally:
        writer.close()


if __name__ == "__main__":
    main()
