"""A browser, and a server that shows several models in the explorer: one of each for a file of tests."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest

import vitral
from tests.serve.explorer.app import Rules, conv_host, large_host, make_app, random_host, serving
from tests.serve.explorer.browser import Visit, browsing
from vitral.serve import explore_views
from vitral.serve.model_worker import ModelWorker

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def browser() -> Generator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def hosts(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelWorker]:
    root = tmp_path_factory.mktemp("models")
    digits = ModelWorker("vitral-digits", vitral.load("vitral-digits", "cpu"))
    headless = random_host(root, "headless", classes=())
    relative = random_host(root, "relative", positions="relative")
    uneven = random_host(root, "uneven", block_heads=[2, 1])
    return {each.name: each for each in (digits, large_host(root), headless, relative, uneven, conv_host())}


@pytest.fixture(scope="module")
def rules() -> Rules:
    return Rules()


@pytest.fixture(scope="module")
def base(hosts: dict[str, ModelWorker], rules: Rules) -> Generator[str]:
    with pytest.MonkeyPatch.context() as patch, serving(make_app(hosts, rules)) as base:
        patch.setattr(explore_views, "_RACES", 3)  # nobody reads the times here
        yield base


@pytest.fixture
def visit(browser: Browser, base: str) -> Generator[Visit]:
    visit = Visit(browser, base)
    yield visit
    visit.close()
