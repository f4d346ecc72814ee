"""Objects by import path: from packages, the working directory, and beside a file."""

import json
import sys

import pytest

from modeling_radio.core.imports import find_function, import_object


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder beside a file, and the working directory; each has a module of its own and one of the same name."""
    here, beside = tmp_path / "here", tmp_path / "beside"
    for place in (here, beside):
        place.mkdir()
        (place / f"radio_{place.name}.py").write_text("def name(): return __name__\n")
        (place / "radio_both.py").write_text(f"PLACE = {place.name!r}\n")
        (place / "json.py").write_text("raise AssertionError('it is in front of the standard library')\n")
    (here / "radio_broken.py").write_text("def (:\n")
    monkeypatch.chdir(here)
    yield beside
    for name in [name for name in sys.modules if name.startswith("radio_")]:
        del sys.modules[name]


def test_the_working_directory_comes_before_the_folder_of_the_file_and_both_last(folder):
    before = list(sys.path)
    assert import_object("radio_here:name", "kind")() == "radio_here"
    assert import_object("radio_beside:name", "kind", beside=folder)() == "radio_beside"
    assert import_object("radio_both:PLACE", "kind", beside=folder) == "here"
    assert import_object("json:dumps", "kind", beside=folder) is json.dumps
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("radio_beside:name", "No module named"),
        ("radio_broken:name", "invalid syntax"),
        ("radio_here:nothing", "no 'nothing'"),
        ("radio here:name", "must be an import path"),
        ("radio_here:", "must be an import path"),
    ],
)
def test_what_cannot_be_imported_names_the_setting(name, message, folder):
    with pytest.raises(ValueError, match=f"`kind`.*{message}"):
        import_object(name, "kind")


def test_functions_are_of_a_registry_or_of_a_path(folder):
    registry = {"one": max}
    assert find_function("one", registry, "loss") is max
    assert find_function("radio_here:name", registry, "loss")() == "radio_here"
    with pytest.raises(ValueError, match="`loss` must be a function"):
        find_function("radio_both:PLACE", registry, "loss")
