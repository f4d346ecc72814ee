"""The page's files: scripts are sound, nothing names another host, what is referred to is there."""

import re
import shutil
import subprocess

import pytest
from node import PAGE


SCRIPTS = sorted(PAGE.glob("*.js"))
FILES = sorted(path for path in PAGE.iterdir() if path.is_file())
SOURCES = {"https://arxiv.org/abs/2303.09553", "https://bids.github.io/colormap/", "https://jfly.uni-koeln.de/color/"}
"""Of methods, in comments; nothing is loaded from them."""
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


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound_and_import_what_is_there(path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed")
    kind = "commonjs" if path.name == "check.js" else "module"
    checked = subprocess.run(
        [node, f"--input-type={kind}", "--check"], input=path.read_text(), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    for names, module in re.findall(r'import \{([^}]*)\} from "\./([\w.]+)"', path.read_text()):
        text = (PAGE / module).read_text()
        exported = set(re.findall(r"^export (?:async )?(?:function|const|class) (\w+)", text, re.MULTILINE))
        assert {name.strip() for name in names.split(",") if name.strip()} <= exported


def test_what_the_page_refers_to_is_there():
    names = re.findall(r'(?:src|href)="page/([\w.]+)"', HTML)
    assert names
    assert all((PAGE / name).is_file() for name in names)
    ids = set(re.findall(r'\bid="([\w-]+)"', HTML))
    scripts = "\n".join(path.read_text() for path in SCRIPTS)
    assert set(re.findall(r'(?:element|getElementById)\("([\w-]+)"\)', scripts)) <= ids
    for attribute in ("for", "aria-labelledby", "aria-describedby"):
        assert {name for names in re.findall(rf'\b{attribute}="([\w -]+)"', HTML) for name in names.split()} <= ids


def test_colors_of_text_have_contrast_in_light_and_dark():
    """WCAG 2.2, success criterion 1.4.3: 4.5 to 1."""
    style = (PAGE / "style.css").read_text()
    parts = style.split("prefers-color-scheme: dark")[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in parts)

    def luminance(color):
        channels = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pairs = [(ink, ground) for ink in ("ink", "quiet") for ground in ("ground", "surface", "sunken")]
    pairs += [("on-accent", "accent"), ("focus", "surface")]
    for colors in (light, light | dark):
        for first, second in pairs:
            high, low = sorted((luminance(colors[first]), luminance(colors[second])), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (first, second)
