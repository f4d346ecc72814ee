"""Lance that is not installed is named; `make consumers` runs Lance itself."""

import sys

import pytest

from modeling_radio.extraction.extract import main
from modeling_radio.extraction.nearest import FeatureFolder, nearest


def test_a_missing_package_is_named_before_any_work(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lance", None)
    command = [str(checkpoint), "--data", str(pictures), "--output", str(tmp_path / "out"), "--format", "lance"]
    assert main(command) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "`format`" in error
    assert "pip install pylance" in error
    assert not (tmp_path / "out").exists()


def test_a_search_of_its_data_names_the_missing_package(extract, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lance", None)
    extract()
    data = FeatureFolder(tmp_path / "out")
    versions = tmp_path / "out" / "lance" / "train.lance" / "_versions"
    versions.mkdir(parents=True)
    (versions / "1.manifest").touch()
    with pytest.raises(ValueError, match=r"`folder` .*pip install pylance"):
        nearest(data.store, data.shards, "summary", [], 1)
