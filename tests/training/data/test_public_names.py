"""Names of sources say neither where they lie on this machine nor who asks for them."""

import pytest

from training.data.sources import public_name


def test_files_and_folders_have_the_last_part_of_their_path(tmp_path, monkeypatch):
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    for source in (str(tmp_path), "..", "../within/.."):
        assert public_name(source) == (tmp_path.name, f"folder {tmp_path.name}", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert public_name("~/within").name == "within"
    assert public_name(f"{tmp_path}/train-*.parquet") == ("train-*.parquet", "file train-*.parquet", None)
    assert public_name(f"{tmp_path}/x-{{000..007}}.tar").name == "x-{000..007}.tar"


@pytest.mark.parametrize(
    ("source", "name", "hub_id"),
    [
        ("hub:org/name:small", "org/name:small", "org/name"),
        ("org/name", "org/name", "org/name"),
        ("hub:org/name.tar", "org/name.tar", "org/name.tar"),
        ("hf://datasets/org/name@main/data/a.parquet", "a.parquet", "org/name"),
        ("https://huggingface.co/datasets/org/name/resolve/main/*.tar", "*.tar", "org/name"),
    ],
)
def test_data_sets_of_the_hub_are_known_in_all_ways(source, name, hub_id):
    origin = f"Hugging Face Hub, {hub_id if '://' in source else name}"
    assert public_name(source) == (name, origin, hub_id)


def test_addresses_keep_their_secrets():
    assert public_name("https://host/x.tar") == ("x.tar", "file of host", None)
    told = public_name("https://me:SECRET@host/get/a-{0..2}.tar?token=SECRET&user=me#SECRET")
    assert told == ("a-{0..2}.tar", "file of host", None)
    assert public_name("https://host/?file=x.tar").name == "files"
    assert public_name("demo").hub_id is None
