"""A real browser for the pages that softgrad writes: they must stay silent, and ask nothing of any network.

The conftest.py of a room that needs the fixtures imports them.  One browser serves all rooms of a process, because
Playwright's synchronous interface starts only once in a thread.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


def settle(tab: Any) -> None:
    """Wait until what the page has begun is drawn."""
    tab.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


_started = pytest.StashKey[Any]()


@pytest.fixture(scope="session")
def chromium(pytestconfig: pytest.Config) -> Any:
    """Chromium, headless; its absence is a failure, because nothing else can run the pages."""
    if _started not in pytestconfig.stash:
        pytestconfig.stash[_started] = _start(pytestconfig)
    return pytestconfig.stash[_started]


def _start(config: pytest.Config) -> Any:
    """Start the browser; it ends with pytest."""
    names = (os.environ.get("CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    if path is None:
        pytest.fail("no Chromium to test the pages with: apt-get install chromium, or set CHROMIUM", pytrace=False)
    from playwright.sync_api import sync_playwright

    playwright = sync_playwright().start()
    config.add_cleanup(playwright.stop)
    browser = playwright.chromium.launch(executable_path=path, args=FLAGS.split())
    config.add_cleanup(browser.close)
    return browser


@pytest.fixture
def artefacts(tmp_path: Path) -> Path:
    """Where screenshots go."""
    folder = Path(os.environ.get("SOFTGRAD_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """``opened(html, fragment, width, height, **context)``: the page from a file, watched until the test ends."""
    said: list[str] = []
    contexts = []

    def watch(request: Any) -> None:
        if not request.url.startswith(("file:", "data:")):
            said.append(f"request: {request.url}")

    def opened(html: str, fragment: str = "", width: int = 1280, height: int = 800, **options: Any) -> Any:
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
        page.on("request", watch)
        page.goto(file.as_uri() + fragment)
        if options.get("java_script_enabled", True):
            settle(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
