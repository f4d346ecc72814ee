"""A table of strangers reads no file and asks no address outside the folder that the user gave."""

import json

import pytest
from datasets import Dataset, Image, load_dataset
from PIL import Image as Pillow

from training.data.labeled.tables import open_streams, open_tables
from training.data.sources import ImageColumn, check_named_file, is_listed, open_stream, open_table
from training.recipe_sections import SourceRecipe


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private" / "me.png"
    path.parent.mkdir()
    Pillow.new("RGB", (64, 64), (250, 1, 1)).save(path)
    return path


def save_table(folder, *names):
    """Write a Parquet file whose images are names of files."""
    from pyarrow import array, binary, parquet, string, struct, table

    folder.mkdir(exist_ok=True)
    rows = [{"bytes": None, "path": str(name)} for name in names]
    column = array(rows, struct([("bytes", binary()), ("path", string())]))
    parquet.write_table(table({"image": column, "label": list(range(len(names)))}), folder / "train.parquet")
    return str(folder)


@pytest.mark.parametrize("form", ["{}", "file://{}", "http://127.0.0.1:9/{}", "zip://me.png::{}", "../private/me.png"])
def test_files_elsewhere_and_addresses_are_refused(private, tmp_path, monkeypatch, form):
    source = save_table(tmp_path / "data", form.format(private))
    monkeypatch.chdir(source)
    with pytest.raises(ValueError, match=r"`data` .* must hold its images, or name files in its folder"):
        open_tables(source, lambda path: {})
    table, (stream, column) = (
        open_table(SourceRecipe(source=source, weight=1)),
        open_stream(SourceRecipe(source=source, weight=1)),
    )
    with pytest.raises(ValueError, match="lies elsewhere and is not read"):
        table[0]
    with pytest.raises(ValueError, match="lies elsewhere and is not read"):
        column.read(next(iter(stream)), "row 0")
    labeled = open_streams(source)["train"]
    with pytest.raises(ValueError, match="lies elsewhere and is not read"):
        ImageColumn(source, "image", is_listed(labeled)).read(next(iter(labeled)), "row 0")


def test_files_within_the_given_folder_are_read(private, tmp_path):
    own = f"{save_table(tmp_path / 'private', private)}/train.parquet"
    assert len(open_tables(own, lambda path: {})["train"]) == 1
    assert open_table(SourceRecipe(source=own, weight=1))[0].content == private
    for source in (str(tmp_path), own, f"{tmp_path}/private/*.parquet", f"{tmp_path}/private/t{{rain,}}.parquet"):
        check_named_file(str(private), source)
    for source in ("org/name", "hub:org/name", "https://host/train.parquet", f"{tmp_path}/other/*.parquet"):
        with pytest.raises(ValueError, match="lies elsewhere"):
            check_named_file(str(private), source)


def test_a_saved_table_says_itself_what_made_it(private, tmp_path):
    folder = tmp_path / "saved"
    Dataset.from_dict({"image": [str(private)], "label": [0]}).cast_column("image", Image()).save_to_disk(folder)
    (table,) = folder.glob("*.arrow")
    assert len(open_tables(str(folder), lambda path: {})["train"]) == 1  # the image lies within
    from pyarrow import array, binary, ipc, string, struct
    from pyarrow import table as made

    rows = array([{"bytes": None, "path": str(private)}], struct([("bytes", binary()), ("path", string())]))
    with ipc.new_stream(str(table), (content := made({"image": rows, "label": [0]})).schema) as writer:
        writer.write(content)
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"builder_name": "imagefolder"}))
    with pytest.raises(ValueError, match="lies elsewhere and is not read"):
        open_tables(str(folder), lambda path: {})


def test_image_folders_are_listed(private):
    table = load_dataset("imagefolder", data_files=[str(private)], split="train")
    assert is_listed(table)
    assert is_listed(load_dataset("imagefolder", data_files=[str(private)], split="train", streaming=True))
