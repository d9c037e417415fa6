"""Debian's Chromium, driven through the dashboard.

Playwright's own browsers are not downloaded. Where there is no `chromium`, the tests are skipped;
`.ci/run` installs it.
"""

import json
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import ConsoleMessage, Page, Request, async_playwright, expect

from tests.cluster_process import ClusterProcess

CHROMIUM = shutil.which("chromium")

# Tests beside each other share few processors.
WAIT_MS = 20_000
expect.set_options(timeout=WAIT_MS)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="needs chromium: apt-get install chromium"
)


class Watch:
    """What went wrong on a page without being seen: errors of the console, requests elsewhere."""

    def __init__(self, page: Page, host: str) -> None:
        self._host = host
        self.troubles: list[str] = []
        # An answer that is refused on purpose is an error of the console as well.
        self.refused_ok = False
        # So is a server that was stopped.
        self.unreachable_ok = False
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.troubles.append(f"exception: {error}"))
        page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type not in ("error", "warning"):
            return
        if self.unreachable_ok and "ERR_CONNECTION" in message.text:
            return
        if self.refused_ok and "the server responded with a status of 4" in message.text:
            return
        self.troubles.append(f"console: {message.text}")

    def _request(self, request: Request) -> None:
        if urlsplit(request.url).netloc != self._host:
            self.troubles.append(f"request to another host: {request.url}")


@contextmanager
def showing_errors(cluster: ClusterProcess) -> Iterator[None]:
    """When something fails inside, what the server logged as an error comes with it."""
    try:
        yield
    except BaseException:
        for record in cluster.records:
            if record.get("level") in ("error", "warning"):
                print(json.dumps(record), file=sys.stderr)
        raise


@asynccontextmanager
async def open_page(url: str, **context: Any) -> AsyncIterator[tuple[Page, Watch]]:
    """A page of a fresh browser; at its end nothing may have gone wrong."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        made = await browser.new_context(
            **({"viewport": {"width": 1280, "height": 900}, "base_url": url} | context)
        )
        page = await made.new_page()
        page.set_default_timeout(WAIT_MS)
        watch = Watch(page, urlsplit(url).netloc)
        try:
            yield page, watch
        finally:
            await browser.close()
    assert not watch.troubles, watch.troubles
