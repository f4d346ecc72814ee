"""The page's files: scripts are sound, nothing names another host, what is referred to is there."""

import re

import pytest
from node import PAGE


SCRIPTS = sorted(PAGE.glob("*.js"))
FILES = sorted(path for path in PAGE.iterdir() if path.is_file())
SOURCES = {
    *("https://arxiv.org/abs/2303.09553", "https://arxiv.org/abs/2511.19704", "https://arxiv.org/abs/1512.04150"),
    *("https://bids.github.io/colormap/", "https://jfly.uni-koeln.de/color/"),
}
"""Addresses of methods in comments; nothing is loaded from them."""
NAMESPACES = {"http://www.w3.org/2000/svg"}
HTML = (PAGE / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_names_another_host(path):
    text = path.read_text(encoding="utf-8")
    found = set(re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}[^\s\"'),]*", text))
    assert found <= SOURCES | NAMESPACES
    for address in found & SOURCES:
        (line,) = [line for line in text.splitlines() if address in line]
        assert re.match(r"\s*(//|\*|/\*\*)", line)


def test_the_policy_lets_nothing_in_from_outside():
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', HTML)[1]
    rules = {words[0]: words[1:] for words in (rule.split() for rule in policy.split(";"))}
    assert rules["default-src"] == ["'none'"]
    allowed = {"'self'", "'none'", "'wasm-unsafe-eval'", "blob:", "data:"}
    assert all(set(words) <= allowed for words in rules.values())
    assert rules["script-src"] == ["'self'", "'wasm-unsafe-eval'"]
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", HTML), "nothing inline"


def test_what_the_page_refers_to_is_there():
    names = re.findall(r'(?:src|href)="page/([\w.]+)"', HTML)
    assert names
    assert all((PAGE / name).is_file() for name in names)
    ids = set(re.findall(r'\bid="([\w-]+)"', HTML))
    scripts = "\n".join(path.read_text() for path in SCRIPTS)
    assert set(re.findall(r'(?:element|getElementById)\("([\w-]+)"\)', scripts)) <= ids
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        assert {name for names in re.findall(rf'\b{attribute}="([\w -]+)"', HTML) for name in names.split()} <= ids
