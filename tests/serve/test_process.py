"""A whole server, as people and machines use and mistreat it: curl, signals, slow and cut connections, its log."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.helpers import random_model
from tests.serve.serving import Process, files, picture, serving
from vitral.predictor import load

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
IMAGE = picture(0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tmp_path_factory.mktemp("m") / "m")


@pytest.fixture(scope="module")
def server(model: Path) -> Generator[Process]:
    with serving(str(model), "body_seconds=1", "max_bytes=100000") as process:
        yield process


def request_of(image: bytes, *, length: int | None = None, key: str | None = None) -> bytes:
    head = "POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
    head += "" if key is None else f"Authorization: Bearer {key}\r\n"
    return f"{head}Content-Length: {len(image) if length is None else length}\r\n\r\n".encode() + image


def connected(server: Process) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=30)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    while piece := connection.recv(65536):
        found += piece
    return found


def test_curl_is_answered(server: Process, model: Path) -> None:
    """Forms with one and several files, raw bytes, base64, and a large upload that is refused."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    Path("a b.png").write_bytes(IMAGE)
    Path("b.png").write_bytes(picture(1))
    Path("large.png").write_bytes(b"x" * 3_000_000)

    def asked(*words: str) -> tuple[int, Any]:
        command = [curl, "-q", "-sS", "--noproxy", "*", "-w", "\n%{http_code}", *words, f"{server.url}/v1/predict"]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=60)
        text, _, code = done.stdout.rpartition("\n")
        return int(code), json.loads(text)

    expected = load(model).predict(["a b.png", "b.png"])
    assert asked("-F", "image=@a b.png") == (200, expected[0])
    assert asked("-F", "image=@a b.png", "-F", "image=@b.png") == (200, expected)
    assert asked("--data-binary", "@b.png", "-H", "Content-Type: image/png") == (200, {**expected[1], "image": 0})
    assert asked("-T", "b.png", "-X", "POST", "-H", "Content-Type: application/octet-stream")[0] == 200
    code, answer = asked("--data-binary", "@b.png")
    assert code == 415
    assert "-F image=@FILE" in answer["error"]["message"]
    assert asked("-F", "image=@large.png")[0] == 413


def test_slow_cut_and_senseless_connections_harm_nobody(server: Process) -> None:
    """While others are served: a body that stops, one that is too long, connections cut in all places, no HTTP."""
    stopped = connected(server)
    stopped.sendall(request_of(IMAGE[:50], length=len(IMAGE)))
    silent = connected(server)
    for end in (10, 60, 120, 300):
        cut = connected(server)
        cut.sendall(request_of(IMAGE)[:end])
        cut.close()
    rude = connected(server)
    rude.sendall(request_of(IMAGE))
    rude.close()
    senseless = connected(server)
    senseless.sendall(b"\x16\x03\x01 hello\r\n\r\n")
    assert b" 400 " in read_all(senseless)
    headless = connected(server)
    headless.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000)
    assert b" 400 " in read_all(headless)
    lengthy = connected(server)
    lengthy.sendall(request_of(b"x" * 1000, length=10**9))
    assert b" 413 " in lengthy.recv(1000)
    start = time.monotonic()
    for number in range(20):
        answer = server.client.post("/v1/predict", files=files(picture(number)))
        assert answer.status_code == 200
    assert time.monotonic() - start < 20
    assert b" 408 " in read_all(stopped)
    for connection in (stopped, silent, senseless, headless, lengthy):
        connection.close()
    text = server.client.get("/metrics").text
    assert 'vitral_queue_images{model="m"} 0.0' in text


def lines_since(server: Process, before: str) -> list[dict[str, Any]]:
    """Whole lines of the log after `before`."""
    return [json.loads(line) for line in server.log().removeprefix(before).splitlines(True) if line.endswith("\n")]


def test_who_hangs_up_in_the_middle_of_a_body_is_logged_and_counted_as_gone(server: Process) -> None:
    cut = connected(server)
    cut.sendall(request_of(IMAGE)[:-20])
    while "vitral_requests_in_flight 2.0" not in server.client.get("/metrics").text:
        time.sleep(0.01)
    before = server.log()
    cut.close()
    gone = '{route="/v1/predict",status="499"}'
    while gone not in (text := server.client.get("/metrics").text):
        time.sleep(0.01)
    assert 'status="500"' not in text
    while not (found := [line for line in lines_since(server, before) if line["path"] == "/v1/predict"]):
        time.sleep(0.01)  # the line follows the count
    assert [(line["status"], line["level"]) for line in found] == [(499, "info")]


def test_requests_in_one_connection_and_in_pieces_are_answered(server: Process) -> None:
    """Two sent at once, and one byte by byte."""
    connection = connected(server)
    connection.sendall(request_of(IMAGE) * 2)
    connection.settimeout(20)
    found = b""
    while found.count(b'"predictions"') < 2:
        found += connection.recv(65536)
    assert found.count(b"HTTP/1.1 200 OK") == 2
    for byte in request_of(IMAGE)[:-1]:
        connection.send(bytes([byte]))
    connection.sendall(IMAGE[-1:])
    assert b"HTTP/1.1 200 OK" in connection.recv(65536)
    connection.close()


def test_log_lines_are_json_with_what_one_looks_for(server: Process) -> None:
    server.client.post("/v1/predict", files=files(IMAGE), headers={"X-Request-ID": "look-for-me"})
    end = time.monotonic() + 10
    while not (found := [line for line in server.log().splitlines() if "look-for-me" in line]):
        assert time.monotonic() < end  # it is written after the answer
        time.sleep(0.01)
    (line,) = map(json.loads, found)
    assert {"time", "level", "event", "id", "method", "path", "status", "ms", "model", "images", "batch"} == line.keys()
    assert (line["level"], line["event"], line["status"], line["model"]) == ("info", "request", 200, "m")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_what_is_in_flight_at_a_signal_is_answered(model: Path, signum: int, code: int) -> None:
    """A request whose body is half sent, and one whose images are being decoded; afterwards nobody is let in."""
    large = io.BytesIO()
    Image.new("L", (2000, 2000)).save(large, "PNG")
    images = [large.getvalue()] * 64
    with serving(str(model)) as server, ThreadPoolExecutor(1) as pool:
        half = connected(server)
        half.sendall(request_of(IMAGE)[:-20])
        asked = pool.submit(server.client.post, "/v1/predict", files=files(*images))
        while 'vitral_queue_images{model="m"} 64.0' not in server.client.get("/metrics").text:
            assert not asked.done()
        server.process.send_signal(signum)
        assert not asked.done()
        time.sleep(0.5)
        with pytest.raises(OSError, match=r"refused|reset"):
            connected(server)
        half.sendall(IMAGE[-20:])
        answer = read_all(half)
        assert b" 200 OK" in answer
        assert b"predictions" in answer
        half.close()
        assert asked.result().status_code == 200
        assert server.end() == code
        assert "Traceback" not in server.log()
        assert json.loads(server.log().splitlines()[-1])["event"] == "ended"


def test_nobody_waits_longer_than_drain_and_two_signals_end_at_once(model: Path) -> None:
    """Of a server for all: without a key it warns, with one it asks for it."""
    for words, key, signals in (("drain=0.5", None, 1), ("drain=60", "secret", 2)):
        environ = {} if key is None else {"VITRAL_API_KEY": key}
        with serving(str(model), words, "host=0.0.0.0", "log=text", **environ) as server:
            assert server.log().count("no API key: every client") == (key is None)
            assert server.client.get("/v1/models").status_code == (200 if key is None else 401)
            headers = {"Authorization": f"Bearer {key}"}
            assert server.client.get("/v1/models", headers=headers).status_code == 200
            assert "secret" not in server.log()
            half = connected(server)
            half.sendall(request_of(IMAGE, key=key)[:-20])
            time.sleep(0.2)
            start = time.monotonic()
            for _ in range(signals):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            assert server.end() == 143
            assert time.monotonic() - start < 20
            half.close()


SCRIPT = """
import sys, time
from pathlib import Path
from vitral.predictor import load
from vitral.serve.config import ServeConfig
from vitral.serve.model_worker import ModelWorker, ModelSource
from vitral.serve.server import listen_at, serve_workers

predictor = load(sys.argv[1], "cpu")

def broken(images):
    raise MemoryError("no memory for this")

def endless():
    print("loading", flush=True)
    time.sleep(600)

if sys.argv[2] == "broken":
    predictor.forward = broken
origin = ModelSource(Path(sys.argv[1]), "another", endless) if sys.argv[2] == "reloads" else None
options = ServeConfig(reload=0.05, drain=0.0)
sys.exit(serve_workers({"m": ModelWorker("m", predictor, origin)}, options, None, listen_at("127.0.0.1", 0)))
"""


def test_a_server_whose_model_cannot_compute_ends(model: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(model), "broken"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert done.returncode == 1
    assert "m cannot compute 32 images at once (max_batch)" in done.stderr
    assert "MemoryError: no memory for this" in done.stderr


def test_a_reload_holds_up_no_end(model: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(model), "reloads"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
        assert process.stdout is not None
        while process.stdout.readline() != "loading\n":
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(20) == 143
        finally:
            process.kill()


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An environment in which the server has the event loop of that name; uvicorn takes uvloop where it is."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
        return {}
    (tmp_path / "uvloop.py").write_text("raise ImportError", encoding="utf-8")
    return {"PYTHONPATH": str(tmp_path)}


def test_connections_at_a_signal_are_answered_or_refused_and_never_reset(model: Path, loop: dict[str, str]) -> None:
    """32 clients, half of them with a new connection per request: SIGTERM in the middle of it."""
    request, outcomes = request_of(IMAGE), Counter[str]()
    with serving(str(model), "drain=20", **loop) as server:
        started = time.monotonic()

        def client(number: int) -> None:
            keep = number % 2 == 0
            while time.monotonic() < started + 20:
                try:
                    connection = connected(server)
                except ConnectionRefusedError:
                    outcomes["refused"] += 1
                    return
                with connection:
                    while True:
                        try:
                            connection.sendall(request)
                            answer = connection.recv(65536)
                            while answer and not answer.endswith(b"]}"):
                                answer += connection.recv(65536)
                            head = answer.partition(b"\r\n")[0]
                        except (ConnectionResetError, BrokenPipeError) as error:
                            outcomes[type(error).__name__] += 1
                            return
                        outcomes[head.decode().strip() or "closed without an answer"] += 1
                        if not keep or b"connection: close" in answer.lower() or not answer:
                            break

        with ThreadPoolExecutor(32) as pool:
            clients = [pool.submit(client, number) for number in range(32)]
            time.sleep(1)
            server.process.send_signal(signal.SIGTERM)
            for each in clients:
                each.result()
        assert server.end() == 143
    assert outcomes.pop("HTTP/1.1 200 OK") > 32
    assert outcomes.pop("refused") == 32
    assert not outcomes, outcomes


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="freeze_decoders is Linux's")
def test_who_waits_beyond_drain_is_told(model: Path) -> None:
    with serving(str(model), "drain=0.1") as server:
        slow = picture(0, kind="TIFF")
        assert server.client.post("/v1/predict", files=files(slow)).status_code == 200
        server.freeze_decoders()
        waiting = connected(server)
        waiting.sendall(request_of(slow))
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        assert b" 503 " in read_all(waiting)
        waiting.close()
        assert server.end() == 143


def test_a_head_is_bounded_however_it_comes(server: Process) -> None:
    """A URL of 40 KB in one write, and headers; one of 20 KB in two writes is served, and what is repeated is short."""
    for head in (b"GET /%b HTTP/1.1\r\n" % (b"y" * 40_000), b"GET / HTTP/1.1\r\nX: %b\r\n" % (b"y" * 40_000)):
        connection = connected(server)
        connection.sendall(head + b"Host: 127.0.0.1\r\n\r\n")
        assert b" 400 " in read_all(connection)
        connection.close()
    connection = connected(server)
    head = b"GET /%b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n" % (b"y" * 20_000)
    connection.sendall(head[:15_000])
    time.sleep(0.1)
    connection.sendall(head[15_000:])
    answer = read_all(connection)
    connection.close()
    assert b" 404 " in answer
    assert len(answer) < 2000
    assert len(server.log().splitlines()[-1]) < 1000


def test_head_is_get_without_a_body(server: Process) -> None:
    for path in ("/", "/healthz", "/v1/models", "/metrics"):
        head, get = server.client.head(path), server.client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert int(head.headers["Content-Length"]) > 0
    assert server.client.head("/v1/predict").status_code == 405
    assert server.client.head("/nothing").status_code == 404


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prlimit is Linux's")
def test_without_file_handles_the_log_stays_short(model: Path, loop: dict[str, str]) -> None:
    """asyncio reports each connection that waits, thousands per second; uvloop reports none."""
    import resource  # Unix only

    with serving(str(model), "reload=0", **loop) as server:
        handles = len(os.listdir(f"/proc/{server.process.pid}/fd"))
        before = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (handles + 3, before[1]))
        connections = [connected(server) for _ in range(60)]
        time.sleep(2.5)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, before)
        for connection in connections:
            connection.close()
        end = time.monotonic() + 20
        while httpx.get(f"{server.url}/healthz", trust_env=False, timeout=20).status_code != 200:
            assert time.monotonic() < end
        # Python's server of processes, which may be about to start here, reports in lines of its own.
        lines = [json.loads(line) for line in server.log().splitlines() if line.startswith("{")]
        about = [line for line in lines if "accepted" in line["event"]]
        assert (1 if loop else 0) <= len(about) <= 2
        assert all("ulimit -n" in line["event"] for line in about)
        assert not [line for line in lines if "traceback" in line]
