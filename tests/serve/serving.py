"""What tests of the server share: an application in this process, and a whole server in another."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image

from tests.helpers import VITRAL
from vitral.predictor import Predictor
from vitral.serve.app import create_app
from vitral.serve.config import ServeConfig
from vitral.serve.model_worker import AnyPredictor, ModelSource, ModelWorker
from vitral.text_predictor import load_any

T = TypeVar("T")
URL = "http://127.0.0.1"


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (23, 17), kind: str = "PNG") -> bytes:
    """Noise, another one for each number, in one of Pillow's modes."""
    random = np.random.default_rng(number)
    bands = len(Image.new(mode if mode not in ("P", "I;16") else "L", (1, 1)).getbands())
    if mode == "I;16":
        image = Image.fromarray(random.integers(0, 65535, size[::-1], np.uint16))
    else:
        pixels = random.integers(0, 255, (*size[::-1], bands), np.uint8)
        image = Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode="L" if mode == "P" else None)
        image = image.convert("P") if mode == "P" else image
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def files(*images: bytes, names: tuple[str, ...] | None = None) -> list[tuple[str, tuple[str, bytes, str]]]:
    """A form's parts, for httpx."""
    names = names or tuple(f"{number}.png" for number in range(len(images)))
    return [("image", (name, image, "image/png")) for name, image in zip(names, images, strict=True)]


def base64_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


@asynccontextmanager
async def application(
    models: Mapping[str, AnyPredictor | Path] | AnyPredictor | Path,
    key: str | None = None,
    *,
    origin: ModelSource | None = None,
    **options: Any,
) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of an application that is warm; `client.hosts` are its models, `client.service` what works behind it."""
    named = models if isinstance(models, Mapping) else {"one": models}
    hosts = {
        name: ModelWorker(name, load_any(model, "cpu") if isinstance(model, str | Path) else model, origin)
        for name, model in named.items()
    }
    app = create_app(hosts, ServeConfig(**options), key)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=URL, timeout=30) as client:
            client.hosts, client.service = hosts, app.state.service  # type: ignore[attr-defined]
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
            yield client


def with_application(models: Any, use: Callable[[Any], Awaitable[T]], key: str | None = None, **options: Any) -> T:
    """What `use` returns of such a client."""

    async def run() -> T:
        async with application(models, key, **options) as client:
            return await use(client)

    return asyncio.run(run())


class Slow(Predictor):
    """A predictor whose every batch waits for `gate`, and that keeps the sizes of its batches."""

    def __init__(self, plain: Predictor) -> None:
        super().__init__(plain.model, plain.config, "cpu")
        self.gate, self.sizes, self.begun = threading.Event(), list[int](), 0
        self.gate.set()

    def forward(self, images: Any, features: str | None = None) -> Any:
        if features is not None:
            return super().forward(images, features)
        self.begun += 1
        assert self.gate.wait(30)
        self.sizes.append(len(images))
        return super().forward(images)


class Process:
    """`vitral serve` in a process of its own."""

    def __init__(self, *words: str, **environ: str) -> None:
        self._log = tempfile.NamedTemporaryFile("a+", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self.client = httpx.Client(timeout=30, trust_env=False)
        self.process = subprocess.Popen(
            [*VITRAL, "serve", *words], stdout=subprocess.PIPE, stderr=self._log, text=True, encoding="utf-8",
            # Without warnings of torch about itself: the log is JSON.
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNDEFAULTENCODING": "", **environ},
        )  # fmt: skip
        try:
            self._connect()
        except BaseException:
            self.close()
            raise

    def _connect(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.log()
        self.facts = json.loads(line)
        self.url: str = self.facts["url"]
        self.port = int(self.url.rsplit(":", 1)[1])
        self.client.base_url = self.url
        while self.client.get("/readyz").status_code != 200:
            pass

    def log(self) -> str:
        """Its stderr so far. Read beside it: the server writes where the one who reads the same file stands."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def freeze_decoders(self) -> None:
        """Stop its processes that decode where they are, on Linux: slower than any limit, on any machine. They are the
        children of its children; one runs after a first picture that is not decoded by a thread."""
        found = [pid for child in _children(self.process.pid) for pid in _children(child)]
        assert found
        for pid in found:
            os.kill(pid, signal.SIGSTOP)

    def end(self, timeout: float = 30) -> int:
        """The exit code, once it has ended."""
        return self.process.wait(timeout)

    def close(self) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


def _children(pid: int) -> list[int]:
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for path in paths for word in path.read_text(encoding="utf-8").split()]


@contextmanager
def serving(*words: str, **environ: str) -> Generator[Process]:
    """A server at a free port, ready for requests."""
    server = Process(*words, "port=0", **environ)
    try:
        yield server
    finally:
        server.close()
