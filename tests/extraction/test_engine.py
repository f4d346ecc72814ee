"""The function of a Daft worker, and engines that cannot start; `make consumers` runs Daft itself."""

import sys

import pytest

from modeling_radio.extraction import run
from modeling_radio.extraction.engine import check_engine
from modeling_radio.extraction.run import FileMaker
from modeling_radio.extraction.shards import begin
from modeling_radio.extraction.store import Store


def test_a_worker_makes_files_by_their_numbers(settings, extract, tmp_path):
    given = settings()
    extraction, store = run.open_extraction(given), Store(given.output)
    begin(store, extraction.facts())
    maker = FileMaker(given.to_dict())
    assert [maker.make(number) for number in (4, 1, 1)] == [3, 5, 0]
    assert store.names("data") == [extraction.shards()[number].name for number in (1, 4)]
    assert extract().num_new == 15
    extract(output=tmp_path / "alone")
    assert store.read("SHA256SUMS") == Store(tmp_path / "alone").read("SHA256SUMS")


def test_an_engine_that_is_not_installed_is_named(settings, monkeypatch):
    check_engine(settings())
    monkeypatch.setitem(sys.modules, "daft", None)
    with pytest.raises(ValueError, match=r"`engine` .*pip install daft"):
        check_engine(settings(engine="daft"))
