import pytest

from training.extraction.shards import MANIFEST, begin, missing_shards, plan_shards, read_manifest


FACTS = {
    "settings": {"dtype": "float32", "splits": None},
    "images": {"train": {"number": 3}},
    "source": {},
    "model": {},
}
OTHERS = FACTS | {"settings": {"dtype": "int8", "splits": None}}


def test_what_was_begun_goes_on_with_the_same_only(tmp_path):
    begin(tmp_path / "out", FACTS)
    begin(tmp_path / "out", FACTS)
    assert read_manifest(tmp_path / "out") == FACTS
    (tmp_path / "out" / "data").mkdir()
    (tmp_path / "out" / "data" / "train-00000-of-00001.parquet").touch()
    with pytest.raises(ValueError, match=r"\(settings\.dtype: float32 -> int8\)"):
        begin(tmp_path / "out", OTHERS)


def test_what_has_no_rows_is_begun_anew(tmp_path):
    """A wrong setting that only the first images show must not keep the folder."""
    begin(tmp_path / "out", FACTS)
    (tmp_path / "out" / "data").mkdir()  # as of a first file that could not be written
    begin(tmp_path / "out", OTHERS)
    assert read_manifest(tmp_path / "out") == OTHERS


def test_folders_with_something_else_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="which holds something else"):
        begin(tmp_path, FACTS)
    with pytest.raises(ValueError, match="which holds something else"):
        begin(tmp_path / "notes.txt", FACTS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    for content in ("[1]", "{", "{}"):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match=r"`output` must be a folder of training\.extract"):
            read_manifest(tmp_path)


def test_shards_with_a_name_are_there(tmp_path):
    planned = plan_shards({"train": 4}, 2)
    (tmp_path / "data").mkdir()
    (tmp_path / planned[0].path).touch()
    assert missing_shards(tmp_path, planned) == [planned[1]]
