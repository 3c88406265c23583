"""A browser, or the reason why there is none; what its pages asked for and complained of."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, expect
else:
    try:
        from playwright.sync_api import expect
    except ImportError:  # then every test with a browser skips
        expect = None

__all__ = ["Visit", "browsing", "expect"]

ARGUMENTS = [
    "--no-sandbox", "--headless", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE = 20_000  # ms; machines that run tests are busy


def chromium() -> str:
    """Where the browser is. Skips the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next((path for path in map(shutil.which, names) if path), None)
    if found is None:
        pytest.skip("no chromium on PATH (Debian: apt-get install chromium), nor named by CHROMIUM")
    return found


@contextmanager
def browsing() -> Generator[Browser]:
    """A browser with a profile of its own, gone afterwards."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium()
    playwright.expect.set_options(timeout=PATIENCE)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page. refused: answers above 399 are expected, of which the browser itself complains."""

    def __init__(self, browser: Browser, base: str, **options: Any) -> None:
        self.base, self.refused = base, False
        self.requests: list[str] = []
        self.complaints: list[str] = []
        options.setdefault("viewport", {"width": 1200, "height": 900})
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE)
        self.page: Page = context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(f"{said.type}: {said.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))

    def open(self, link: str = "", *, wait: bool = True) -> Page:
        """The page with this behind its address; wait: until everything is there."""
        self.page.goto(f"{self.base}/{link}")
        if wait:
            self.settle()
        return self.page

    def settle(self) -> None:
        """Waits until an image is shown and nothing is under way."""
        self.page.wait_for_selector("#main:not([hidden])")
        if self.page.locator("#merge .body").is_visible():
            self.page.wait_for_selector("#merge-counts:not(:empty)", state="attached")
        self.quiet()

    def quiet(self) -> None:
        """Waits until nothing is under way for a while: the merge slider waits before it asks."""
        for _ in range(2):
            self.page.wait_for_timeout(130)
            self.page.wait_for_selector("html:not([data-busy])")

    def close(self) -> None:
        """Says what the page did that it should not have done."""
        foreign = [url for url in self.requests if not url.startswith((f"{self.base}/", "data:", "blob:", "file:"))]
        bad = [text for text in self.complaints if text.startswith(("error", "warning"))]
        if self.refused:
            bad = [text for text in bad if "Failed to load resource" not in text]
        self.page.context.close()
        assert not foreign, foreign
        assert not bad, bad

    def pixels(self, selector: str) -> list[int]:
        """Red, green, blue, alpha of every pixel of a canvas."""
        return self.page.evaluate(
            """(selector) => {
              const canvas = document.querySelector(selector);
              const copy = new OffscreenCanvas(canvas.width, canvas.height)
                .getContext("2d", { willReadFrequently: true });
              copy.drawImage(canvas, 0, 0);
              return Array.from(copy.getImageData(0, 0, canvas.width, canvas.height).data);
            }""",
            selector,
        )

    def hand_over(self, how: str, data: bytes, name: str = "image.png", kind: str = "image/png") -> None:
        """Pastes or drops a file."""
        self.page.evaluate(
            """([how, data, name, type]) => {
              const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
              const parts = new DataTransfer();
              parts.items.add(new File([bytes], name, { type }));
              const event = how === "paste"
                ? new ClipboardEvent("paste", { clipboardData: parts, bubbles: true, cancelable: true })
                : new DragEvent("drop", { dataTransfer: parts, bubbles: true, cancelable: true });
              document.querySelector("main").dispatchEvent(event);
            }""",
            [how, base64.b64encode(data).decode(), name, kind],
        )

    def choose(self, path: Path) -> None:
        """Takes a file by the file chooser."""
        self.page.locator("#file").set_input_files(path)
