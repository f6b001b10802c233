"""A headless Chromium, in which tests look at pages as a user does.

Debian's package ``chromium`` brings the browser; playwright, which drives it, downloads none.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

#: The names of the browser on Debian, on Fedora, and of Google's packages.
_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def start_chromium() -> Iterator[Any]:
    """Start a browser; skip the test, with the reason, if that is not possible."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, _NAMES)), None)
    if executable is None:
        pytest.skip("Chromium is not installed: it is Debian's package chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=executable,
            # As root, and in containers with a small /dev/shm.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
        )
        try:
            yield browser
        finally:
            browser.close()


class WatchedPage:
    """A page of the browser whose errors and requests are recorded.

    Parameters
    ----------
    browser : playwright.sync_api.Browser
        The browser.
    width, height : int
        The size of the window.
    """

    def __init__(self, browser: Any, width: int = 1200, height: int = 800) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": height})
        #: What the console and uncaught exceptions have said.
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", self._record_message)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _record_message(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open_file(self, path: Path) -> None:
        """Open a file, and wait until all of it is drawn."""
        self.page.goto(path.as_uri())
        # Two frames: what was changed before the first one is on the screen at the second one.
        self.page.evaluate(
            "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
        )
