"""A world for the scripts: tiny random models, images of two classes, and a process without this repository."""

import pytest
from documentation import ROOT
from tiny_folders import build_radio

from modeling_radio import RadioModel


SCRIPTS = ROOT / "notebooks" / "scripts"


@pytest.fixture(scope="session")
def radio() -> RadioModel:
    """The backbone that is in all folders."""
    return build_radio()


@pytest.fixture
def run_script(elsewhere, tmp_path):
    """Return a function that runs a script with its words in an empty folder, without this repository."""

    def run(name: str, *words: object):
        return elsewhere.run((SCRIPTS / f"{name}.py").read_text(encoding="utf-8"), tmp_path, *words)

    return run


@pytest.fixture
def output_of(run_script):
    """Return a function that runs a script, which must end well, and returns what it printed."""

    def run(name: str, *words: object) -> str:
        done = run_script(name, *words)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run
