"""What the scripts find: tiny random models, pictures of two classes, and a process that knows no more."""

from pathlib import Path

import pytest
from documentation import ROOT
from tiny_folders import build_radio, save_pictures, save_radio, save_words

from modeling_radio import RadioModel


SCRIPTS = ROOT / "notebooks" / "scripts"


@pytest.fixture(scope="session")
def radio() -> RadioModel:
    """The backbone that is in all folders."""
    return build_radio()


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    """Its folder."""
    return save_radio(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def words(tmp_path_factory) -> Path:
    """The folder with texts."""
    return save_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> Path:
    """A folder of classes."""
    return save_pictures(tmp_path_factory.mktemp("pictures"))


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
