"""`vitral serve` under closed-loop clients that send JPEG files, beside LitServe and beside the same work offline.

    python benchmarks/serve.py                                # needs python tools/install.py -e ".[bench]"
    python benchmarks/serve.py rounds=5 seconds=10 save=benchmarks/results/serve.json
    python benchmarks/serve.py rows=digits clients=[32] engine=auto peer=false

Three processes: this one, which is all clients (plain sockets, requests made beforehand, each client sends as soon as
it has its answer), our server and LitServe's (which has workers of its own). They share the cores, and the clients'
work is counted against the servers. Offline is `Predictor.predict` on the same bytes in batches of `batch`, in this
process, while the servers are idle. In each round everybody has `seconds`, in an order that turns with the rounds.

LitServe has the same model through `vitral.load`, the same batch limit, no wait for a batch to fill, and the same JPEG
files as forms. A row gives medians over the rounds: images a second, latency at the 50th and 99th percentile, and
serving efficiency: served rate over the offline rate of the same round. Processor milliseconds an image are those of
the server's processes alone, and no other work on the machine counts.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from train import environment, quartiles

from tests.helpers import random_model
from tests.processes import free_port
from vitral.config import parse_yaml, split_words
from vitral.predictor import Predictor, load

ROWS = {
    "vit_tiny_patch16_224, 1000 classes, photos of 500 x 375": "vit_tiny_patch16_224",
    "vitral-digits, photos of 28 x 28": "vitral-digits",
}
_LITSERVE = """
import sys
import litserve, torch, vitral
from fastapi import UploadFile

class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(int(sys.argv[4]))
        self.predictor = vitral.load(sys.argv[1], "cpu")
    def decode_request(self, request: UploadFile):
        return request.file.read()
    def batch(self, inputs):
        return list(inputs)
    def predict(self, inputs):
        return self.predictor.predict(inputs, batch_size=len(inputs))
    def unbatch(self, output):
        return output
    def encode_response(self, output):
        return output

if __name__ == "__main__":
    api = Api(max_batch_size=int(sys.argv[3]), batch_timeout=0)
    server = litserve.LitServer(api, accelerator="cpu", timeout=120)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="warning")
"""


class Server(NamedTuple):
    """A server that runs, and what a client sends it."""

    port: int
    path: str
    field: str
    group: int  # of its processes


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end too
    _, pairs = split_words(sys.argv[1:])
    options: dict[str, Any] = {
        "rounds": 5, "seconds": 10, "threads": 2, "save": None, "rows": "", "clients": [1, 8, 32], "batch": 32,
        "engine": "torch", "peer": True,
    }  # fmt: skip
    options |= {key: parse_yaml(value) for key, value in pairs.items()}
    torch.set_num_threads(options["threads"])
    results, loads = list[dict[str, Any]](), [os.getloadavg()]
    for title, model in ROWS.items():
        if str(options["rows"]) in title:
            found = measure(title, model, options)
            loads.append(os.getloadavg())
            results += found
            for result in found:
                print(show(result), flush=True)
    if options["save"]:
        facts = {"environment": environment(), "options": options, "load_averages": loads, "results": results}
        Path(options["save"]).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def measure(title: str, model: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """One result for each number of clients."""
    with tempfile.TemporaryDirectory() as folder:
        if model == "vitral-digits":
            images = jpegs(64, (28, 28))
        else:
            names = tuple(f"class {number}" for number in range(1000))
            whole = {"width": 192, "depth": 12, "heads": 3, "mlp_dim": 768, "in_channels": 3}
            model, images = str(random_model(Path(folder) / "model", names, model, **whole)), jpegs(64, (375, 500))
        offline = load(model, "cpu")
        with servers(model, folder, options) as running:
            check_equal(offline, running, images)
            found: dict[int, dict[str, list[Any]]] = {count: {} for count in options["clients"]}
            for turn in range(options["rounds"]):
                for count, parts in found.items():
                    names = ["offline", *running]
                    for name in names[turn % len(names) :] + names[: turn % len(names)]:
                        with alone(name, running):
                            if name == "offline":
                                part: Any = offline_rate(offline, images, options["batch"], options["seconds"])
                            else:
                                part = asyncio.run(clients(running[name], images, count, options["seconds"]))
                        parts.setdefault(name, []).append(part)
            return [summary(title, count, parts, options) for count, parts in found.items()]


@contextmanager
def alone(name: str, running: dict[str, Server]) -> Generator[None]:
    """The other servers stand still: LitServe looks for requests without a pause where it waits for no batch to fill,
    and would take a core from whoever is measured."""
    others = [server.group for other, server in running.items() if other != name]
    for group in others:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in others:
            os.killpg(group, signal.SIGCONT)


def jpegs(count: int, size: tuple[int, int]) -> list[bytes]:
    """Pictures as compressible as photographs: smooth color with some noise, at quality 90."""
    random, found = np.random.default_rng(0), list[bytes]()
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 255, (8, 10, 3), np.uint8)).resize(
            size[::-1], Image.Resampling.BICUBIC
        )
        noise = random.normal(0, 6, (*size, 3))
        out = io.BytesIO()
        Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


@contextmanager
def servers(model: str, folder: str, options: dict[str, Any]) -> Generator[dict[str, Server]]:
    """Ours and the peer's, ready for requests; they end with the context."""
    threads = str(options["threads"])
    ours, theirs = free_port(), free_port()
    words = [model, f"port={ours}", f"max_batch={options['batch']}", f"engine={options['engine']}", "device=cpu"]
    commands = {"vitral": [sys.executable, "-m", "vitral", "serve", *words, "reload=0"]}
    places = {"vitral": (int(ours), "/v1/predict", "image")}
    if options["peer"]:
        script = Path(folder) / "litserve_app.py"
        script.write_text(_LITSERVE, encoding="utf-8")
        commands["litserve"] = [sys.executable, str(script), model, theirs, str(options["batch"]), threads]
        places["litserve"] = (int(theirs), "/predict", "request")
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands.values():
            with open(Path(folder) / f"{len(started)}.log", "wb") as log:
                environ = {**os.environ, "OMP_NUM_THREADS": threads}
                started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True))
        for process, (port, _, _), path in zip(started, places.values(), ("/readyz", "/health"), strict=False):
            wait_for(process, port, path, folder)
        yield {
            name: Server(*place, process.pid) for (name, place), process in zip(places.items(), started, strict=True)
        }
    finally:
        for process in started:  # LitServe's workers outlive a signal to their parent
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_for(process: subprocess.Popen[bytes], port: int, path: str, folder: str) -> None:
    """Until the server says that it is ready."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        with suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.1)
    logs = [path.read_text(encoding="utf-8")[-2000:] for path in Path(folder).glob("*.log")]
    sys.exit("a server did not start\n" + "\n".join(logs))


def request_of(server: Server, image: bytes) -> bytes:
    """A whole HTTP request with the file in a form."""
    part = f'--b\r\nContent-Disposition: form-data; name="{server.field}"; filename="a.jpg"\r\n'
    body = f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + image + b"\r\n--b--\r\n"
    head = f"POST {server.path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def check_equal(offline: Predictor, running: dict[str, Server], images: Sequence[bytes]) -> None:
    """Everybody gives the same classes, and scores within 1e-5."""
    for number, image in enumerate(images[:4]):
        expected = offline.predict(image)[0]["predictions"]
        for name, server in running.items():
            connection = HTTPConnection("127.0.0.1", server.port)
            _, body = request_of(server, image).split(b"\r\n\r\n", 1)
            connection.request("POST", server.path, body, {"Content-Type": "multipart/form-data; boundary=b"})
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, (name, response.status, answer)
            got = json.loads(answer).get("predictions", answer)
            differs = max(abs(a["score"] - b["score"]) for a, b in zip(expected, got, strict=True))
            assert differs < 1e-4, (name, number, expected, got)


def processor_seconds(group: int) -> float:
    """Of all processes of a group that live."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = path.read_text(encoding="utf-8").rpartition(")")[2].split()
            ticks += (int(words[11]) + int(words[12])) * (int(words[2]) == group)
    return ticks / os.sysconf("SC_CLK_TCK")


def offline_rate(predictor: Predictor, images: Sequence[bytes], batch: int, seconds: float) -> dict[str, float]:
    """Images a second without a server, and processor milliseconds an image."""
    start, count, busy = time.perf_counter(), 0, time.process_time()
    while time.perf_counter() - start < seconds:
        chosen = [images[(count + place) % len(images)] for place in range(batch)]
        count += len(predictor.predict(chosen, batch_size=batch))
    rate = count / (time.perf_counter() - start)
    return {"rate": rate, "processor_ms": 1000 * (time.process_time() - busy) / count}


async def clients(server: Server, images: Sequence[bytes], count: int, seconds: float) -> dict[str, Any]:
    """So many connections for so many seconds, after a tenth of them to settle: rate and latencies in milliseconds."""
    requests = [request_of(server, image) for image in images]
    begin = time.perf_counter() + seconds / 10
    latencies: list[float] = []
    answers, busy = [0], processor_seconds(server.group)

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        while (start := time.perf_counter()) < begin + seconds or not latencies:
            writer.write(requests[number % len(requests)])
            number += count
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n", 1)[0])
            await reader.readexactly(length)
            answers[0] += 1
            if start >= begin:
                latencies.append(1000 * (time.perf_counter() - start))
        writer.close()

    await asyncio.gather(*(one(number) for number in range(count)))
    p50, p99 = (float(np.percentile(latencies, share)) for share in (50, 99))
    rate, busy = len(latencies) / (time.perf_counter() - begin), processor_seconds(server.group) - busy
    return {"rate": rate, "p50": p50, "p99": p99, "processor_ms": 1000 * busy / answers[0]}


def summary(title: str, count: int, parts: dict[str, list[Any]], options: dict[str, Any]) -> dict[str, Any]:
    """Medians over the rounds, with quartiles of what is a ratio."""
    offline: list[float] = [part["rate"] for part in parts["offline"]]
    found: dict[str, Any] = {}
    for name in parts.keys() - {"offline"}:
        medians = {key: round(statistics.median(part[key] for part in parts[name]), 2) for key in parts[name][0]}
        efficiency = [part["rate"] / rate for part, rate in zip(parts[name], offline, strict=True)]
        found[name] = {**medians, "efficiency": statistics.median(efficiency), "efficiencies": efficiency}
    result = {
        "row": title, "clients": count, "rounds": options["rounds"], "engine": options["engine"],
        "offline_rate": statistics.median(offline), "servers": found,
        "offline_processor_ms": round(statistics.median(part["processor_ms"] for part in parts["offline"]), 2),
    }  # fmt: skip
    if "litserve" in parts:
        rates = [[part["rate"] for part in parts[name]] for name in ("vitral", "litserve")]
        result["rate_over_litserve_quartiles"] = quartiles(*rates) if len(offline) > 1 else None
    return result


def show(result: dict[str, Any]) -> str:
    """One row as a few lines."""
    rate = f"offline {result['offline_rate']:.1f} images/s, {result['offline_processor_ms']} processor ms an image"
    lines = [f"{result['row']}: {result['clients']} clients, engine {result['engine']}, {rate}, n = {result['rounds']}"]
    for name, said in sorted(result["servers"].items(), reverse=True):
        times = f"p50 {said['p50']:8.2f} ms  p99 {said['p99']:8.2f} ms  {said['processor_ms']:.2f} processor ms"
        lines.append(f"  {name:<9} {said['rate']:8.1f} images/s  {times}  efficiency {said['efficiency']:.2f}")
    if result.get("rate_over_litserve_quartiles"):
        q = result["rate_over_litserve_quartiles"]
        lines.append(f"  rate, ours / LitServe's: {q[1]:.2f} [{q[0]:.2f}, {q[2]:.2f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
