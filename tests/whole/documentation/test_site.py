"""The documentation site: every page in its place, no broken link or anchor, no docstring that cannot be found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from documentation import ROOT


pytest.importorskip("mkdocs", reason="needs the extra `dev`")
pytest.importorskip("mkdocstrings_handlers.python", reason="needs the extra `dev`")
pytestmark = pytest.mark.tour


def build(root: Path, output: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(output)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    output = tmp_path_factory.mktemp("site")
    subprocess.run(["make", "-s", "types"], cwd=ROOT, check=True)
    done = build(ROOT, output)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.mark.parametrize(
    ("page", "texts"),
    [
        ("index.html", ["modeling-radio"]),
        ("how-to/adapters/index.html", ["PeftModel"]),
        ("reference/models/index.html", ["get_intermediate_features", "choose_window_size"]),
        ("reference/recipes/index.html", ["accumulation_steps"]),
        ("how-to/notebooks/index.html", ["Open and look", "uv run"]),
        ("explanation/studies/index.html", ["teacher dropping"]),
    ],
)
def test_pages_are_there(site, page, texts):
    content = (site / page).read_text(encoding="utf-8")
    assert [text for text in texts if text not in content] == []


def test_nothing_is_fetched_from_elsewhere(site):
    content = (site / "index.html").read_text(encoding="utf-8")
    assert "fonts.googleapis" not in content
    assert '<script src="http' not in content
