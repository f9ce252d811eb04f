"""Headless Chromium before a real server with a fake model; skipped where there is no Chromium."""

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from echo_server import EchoServer, echo_server

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP = {"width": 1280, "height": 800}
TIMEOUT_MS = 20_000


def chromium_path() -> str | None:
    """Where Chromium is, if it is in PATH."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (dev extra)")
    path = chromium_path()
    if path is None:
        pytest.skip("needs Chromium: there is no chromium or google-chrome in PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with echo_server() as server:
        yield server


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """Open a URL as a new visitor; at the end: no script failed, and nothing left the host.

    Keywords are the browser context's, such as the viewport.
    """
    contexts, failures, hosts = [], [], {}

    def open_page(url: str, **settings: Any) -> Any:
        context = browser.new_context(**{"viewport": DESKTOP} | settings)
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: failures.append(str(error)))
        page.on("request", lambda request: hosts.setdefault(request.url, url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert failures == []
    assert [one for one, own in hosts.items() if not one.startswith((own, "data:"))] == []


@pytest.fixture
def page(visit, server) -> Iterator[Any]:
    """The chat page on a desktop; the server is fast and idle before and after."""
    server.runner.seconds = 0.0
    yield visit(server.url)
    server.runner.seconds = 0.0
