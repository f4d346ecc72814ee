"""Folders and names on the Hub, which a server on this machine is here."""

from pathlib import Path

import pytest
from huggingface_hub import constants
from local_hub import Repository, hub_in_place

from modeling_radio.core.hub import find_folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_in_place(monkeypatch) as found:
        repository = Repository(private=False)
        repository.commit({"config.json": b"{}", "model.bin": b"a pickle", "code.py": b"exit()"})
        found.repositories["models/org/name"] = repository
        yield found


def test_a_folder_is_taken_as_it_is_and_a_name_is_downloaded_without_pickles_and_code(hub, tmp_path):
    assert find_folder(tmp_path) == find_folder(str(tmp_path)) == tmp_path
    found = find_folder("org/name", "checkpoint")
    assert find_folder("hub:org/name") == find_folder(Path("hub:org/name")) == found
    assert [path.name for path in found.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["org/other", "a/b/c", "no such folder/"])
def test_what_the_hub_does_not_have_is_one_line(name, hub):
    with pytest.raises(ValueError, match=f"`checkpoint`.*{name}") as error:
        find_folder(name, "checkpoint")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("is_offline", [True, False])
def test_a_hub_that_cannot_be_reached_is_said(is_offline, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    where = "HF_HUB_OFFLINE is set" if is_offline else "network"
    with pytest.raises(ValueError, match=f"`checkpoint`.*'org/none'.*{where}"):
        find_folder("org/none", "checkpoint")
