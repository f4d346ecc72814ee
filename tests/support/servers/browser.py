"""Chromium without a window, for tests of pages, and what it says meanwhile."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


PATIENCE_MS = 60_000
"""Longest time that a page may take for anything; machines that test are busy."""


@dataclass
class Watch:
    """A page, with its errors and requests.

    Attributes:
        page: Playwright's.
        errors: Errors of the console and of scripts.
        requests: All addresses that were asked for.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def outside(self, address: str) -> list[str]:
        """Return the requests that went elsewhere than to an address."""
        return [url for url in self.requests if not url.startswith((address, f"blob:{address}", "data:"))]

    def wait(self, selector: str) -> None:
        """Wait until something is there. Scripts of tests may not wait inside the page, whose policy forbids them."""
        self.page.locator(selector).first.wait_for(state="attached", timeout=PATIENCE_MS)


def take_picture(page: Any, name: str, folder: Path) -> bytes:
    """Write a PNG of a whole page to a folder, or to the one that RADIO_SCREENSHOTS names, to look at it; return it."""
    kept = Path(os.environ.get("RADIO_SCREENSHOTS") or folder)
    kept.mkdir(parents=True, exist_ok=True)
    return page.screenshot(path=kept / f"{name}.png", full_page=True)


def find_chromium() -> str:
    """Return the program; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    return found


@contextmanager
def playwright() -> Iterator[Any]:
    """Start what drives browsers; there can be one at a time."""
    with pytest.importorskip("playwright.sync_api").sync_playwright() as started:
        yield started


@contextmanager
def chromium(started: Any, *flags: str) -> Iterator[Any]:
    """Open a browser while the context is open; without flags it has no GPU."""
    browser = started.chromium.launch(
        executable_path=find_chromium(), args=["--no-sandbox", *(flags or ("--disable-gpu",))]
    )
    yield browser
    browser.close()


@contextmanager
def watched(browser: Any, *, width: int = 1280, height: int = 860, dark: bool = False) -> Iterator[Watch]:
    """Open a page of a size in pixels while the context is open."""
    scheme = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    watch = Watch(page)
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: message.type == "error" and watch.errors.append(message.text))
    page.on("pageerror", lambda error: watch.errors.append(str(error)))
    page.on("request", lambda request: watch.requests.append(request.url))
    yield watch
    page.close()
