"""Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Page, sync_playwright

from tests.prerequisites import require

CHROMIUM = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
ANSWER_LIMIT_MS = 60_000


@contextmanager
def opened_page(url: str) -> Iterator[Page]:
    """A browser page at `url`; console errors and requests that leave it are told as a failure at the end."""
    path = shutil.which("chromium")
    require(path, "Chromium is not installed. Run `apt-get install chromium`.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        one = browser.new_page()
        troubles: list[str] = []
        one.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        one.on("request", lambda request: troubles.append(request.url) if url not in request.url else None)
        one.goto(url)
        yield one
        browser.close()
    strays = [trouble for trouble in troubles if not trouble.startswith(("data:", "blob:"))]
    assert not strays
