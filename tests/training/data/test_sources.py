import io
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest

from training.data import image_folder
from training.data.decoding import decode_rgb
from training.data.sources import (
    ImageColumn,
    expand_braces,
    is_image_folder,
    open_stream,
    open_table,
    stream_fingerprint,
)
from training.recipe import DataRecipe
from training.recipe_sections import SourceRecipe


def source_of(source: str, **options) -> SourceRecipe:
    return SourceRecipe(source=source, weight=1.0, **options)


def table_numbers(source: SourceRecipe) -> list[int]:
    rows = open_table(source)
    return [decode_rgb(rows[index]).getpixel((0, 0))[0] for index in range(len(rows))]


def stream_numbers(source: SourceRecipe) -> list[int]:
    dataset, column = open_stream(source)
    return [decode_rgb(column.read(row, "")).getpixel((0, 0))[0] for row in dataset]


def test_files_that_lie_elsewhere_are_read() -> None:
    """As those of an image folder on the Hub, which a stream names alone."""
    fsspec.filesystem("memory").pipe_file("/pictures/1.png", b"encoded")
    column = ImageColumn("org/name", "image", is_listed=True)
    image = column.read({"image": {"bytes": None, "path": "memory://pictures/1.png"}}, "row 0")
    assert image == ("memory://pictures/1.png", b"encoded")
    local = column.read({"image": {"bytes": None, "path": "pictures/1.png"}}, "row 0")
    assert local == ("pictures/1.png", Path("pictures/1.png"))


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_folders_files_and_patterns(write_source: Callable[..., str], kind: str) -> None:
    folder = write_source(kind, 6)
    suffix = "tar" if kind == "webdataset" else "parquet"
    assert not is_image_folder(folder)
    assert table_numbers(source_of(folder)) == [0, 2, 4, 1, 3, 5]
    assert stream_numbers(source_of(folder)) == [0, 2, 4, 1, 3, 5]
    assert table_numbers(source_of(f"{folder}/part-01.{suffix}")) == [1, 3, 5]
    assert stream_numbers(source_of(f"{folder}/*.{suffix}")) == [0, 2, 4, 1, 3, 5]
    assert stream_numbers(source_of(f"{folder}/part-{{01..01}}.{suffix}")) == [1, 3, 5]


def test_an_image_folder_can_be_streamed(write_source: Callable[..., str]) -> None:
    folder = write_source("folder", 3)
    assert is_image_folder(folder)
    assert stream_numbers(source_of(folder)) == [0, 1, 2]


def test_images_that_cannot_be_streamed_are_named(write_source: Callable[..., str], caplog) -> None:
    source = write_source("folder", 3)
    Path(source, "camera.qoi").write_bytes(b"qoif")
    assert len(stream_numbers(source_of(source))) == 3
    assert "1 of 4 images are left out, since those of type .qoi cannot be streamed" in caplog.text


@pytest.mark.parametrize("name", ["old.tar", "old.parquet"])
def test_a_folder_of_two_kinds_is_refused(write_source: Callable[..., str], name: str) -> None:
    folder = write_source("folder", 3)
    Path(folder, name).touch()
    for read in (is_image_folder, lambda path: open_stream(source_of(path)), lambda path: open_table(source_of(path))):
        with pytest.raises(ValueError, match=r"3 images \(000\.png\).* pattern such as '.*; to read the images, move"):
            read(folder)


def test_a_stray_archive_does_not_hide_many_images(write_source: Callable[..., str], monkeypatch) -> None:
    monkeypatch.setattr(image_folder, "MIN_IMAGES_PER_SHARD", 3)
    folder = write_source("folder", 3)
    Path(folder, "old.tar").touch()
    assert is_image_folder(folder)
    assert stream_numbers(source_of(folder)) == [0, 1, 2]


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "folder"])
def test_names_are_no_patterns(write_source: Callable[..., str], kind: str) -> None:
    folder = Path(write_source(kind, 4))
    (folder / "[1]").mkdir()
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.rename(folder / "[1]" / path.name)
    assert sorted(stream_numbers(source_of(str(folder)))) == [0, 1, 2, 3]


def test_images_are_named_by_shard_and_key(write_source: Callable[..., str]) -> None:
    tar, parquet = write_source("webdataset", 4), write_source("parquet", 4)
    assert open_table(source_of(tar))[2].name == f"{tar}/part-01.tar: 001.png"
    assert open_table(source_of(parquet))[2].name == f"{parquet}: row 2"


def test_typed_parquet_keeps_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_source) -> None:
    import datasets

    folder = write_source("folder", 2)
    files = sorted(map(str, Path(folder).iterdir()))
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    table = datasets.Dataset.from_dict({"picture": files, "label": [0, 1]}, features=features)
    table.to_parquet(tmp_path / "typed.parquet")
    source = source_of(str(tmp_path / "typed.parquet"))
    assert stream_numbers(source) == table_numbers(source) == [0, 1]
    assert open_table(source)[1].name.endswith("001.png")


def test_braces() -> None:
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{a,b}/{0..1}") == ["a/0", "a/1", "b/0", "b/1"]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize("open_source", [open_table, open_stream])
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("FOLDER/missing-*.tar", {}, "no file matches"),
        ("FOLDER/part-{00..07}.parquet", {}, "no file matches '.*part-02.parquet'"),
        (
            "FOLDER",
            {"column": "picture"},
            r"no column 'picture'\. Columns: \['caption', 'image'\]\. Give one as `data.column`",
        ),
        ("FOLDER", {"split": "test"}, r"no split 'test': files have \['train'\] only"),
        ("FOLDER/missing", {}, "neither 'demo' nor 'demo-pypi', nor a folder that exists"),
        ("EMPTY", {}, "has no usable image"),
        ("hub:org/name", {}, "'hub:org/name' cannot be opened: .*(offline|reach)"),
        ("org/name", {"split": "validation"}, "'org/name' cannot be opened: .*(offline|reach)"),
    ],
)
def test_bad_sources_are_one_clear_line(
    write_source, tmp_path: Path, open_source: Callable, source: str, options: dict, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    source = source.replace("FOLDER", write_source("parquet", 4)).replace("EMPTY", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match=message) as error:
        open_source(source_of(source, **options))
    assert "\n" not in str(error.value)


def test_a_table_without_images_lists_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    parquet.write_table(pa.table({"text": ["a"], "url": ["b"]}), tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"no image column\. Columns: \['text', 'url'\]"):
        open_table(source_of(str(tmp_path / "text.parquet")))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ValueError("Unknown split \"val\". Should be one of ['train', 'test']."),
            r"Should be one of \['train', 'test'\]",
        ),
        (ConnectionError("Couldn't reach\nthe Hub"), "Couldn't reach the Hub"),
        ("gated", "is a gated dataset"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception | str, message: str
) -> None:
    import datasets

    if isinstance(error, str):
        error = datasets.exceptions.DatasetNotFoundError(
            "Dataset 'org/name' is a gated dataset on the Hub.\nAsk for it."
        )
    asked = {}

    def load_dataset_builder(**arguments):
        asked.update(arguments)
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    with pytest.raises(ValueError, match=f"Data source 'hub:org/name:small' cannot be opened: .*{message}") as caught:
        open_table(source_of("hub:org/name:small", split="val"))
    assert "\n" not in str(caught.value)
    assert asked == {"path": "org/name", "name": "small"}


def test_the_demo_is_no_stream() -> None:
    with pytest.raises(ValueError, match=r"'demo' is made by number\. Leave out `data.streaming`"):
        open_stream(source_of("demo"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"Data source 'org/name' needs a package\. Run `pip install 'datasets>=5'`"):
        open_table(source_of("org/name"))
    with pytest.raises(ValueError, match=r"Data source 'path/to/images' is neither .* nor a folder that exists"):
        open_table(source_of("path/to/images"))  # installing it would not help


def test_a_damaged_file_is_one_clear_line(write_source: Callable[..., str]) -> None:
    folder = write_source("parquet", 4)
    Path(folder, "part-01.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="cannot be opened: ") as error:
        open_table(source_of(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("open_source", [open_table, open_stream])
def test_shards_of_which_none_can_be_read_are_one_clear_line(write_source, open_source: Callable) -> None:
    folder = write_source("webdataset", 4)
    for number in range(2):
        Path(folder, f"part-0{number}.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot be opened: no sample .* any of its 2 shards: .*part-00\.tar: empty"):
        open_source(source_of(folder))


def test_a_table_of_a_damaged_shard_names_it(write_source: Callable[..., str]) -> None:
    folder = write_source("webdataset", 4)
    Path(folder, "part-01.tar").write_bytes(b"?" * 1024)
    with pytest.raises(ValueError, match=r"cannot be opened: .*part-01\.tar: ") as error:
        open_table(source_of(folder))
    assert "\n" not in str(error.value)


def test_an_empty_first_shard_does_not_end_a_stream(write_source: Callable[..., str]) -> None:
    folder = write_source("webdataset", 6, num_shards=3)
    Path(folder, "part-00.tar").write_bytes(bytes(10240))  # an archive without files
    assert stream_numbers(source_of(folder)) == [1, 4, 2, 5]


def test_shards_with_images_of_several_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = [f"{number}.jpg" for number in range(5)] + ["5.png", "6.jpeg", "7.JPG", "8.json"]
    with tarfile.open(tmp_path / "mixed.tar", "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 7
            archive.addfile(member, io.BytesIO(b"content"))
    source = source_of(str(tmp_path / "mixed.tar"))
    dataset, column = open_stream(source)
    images = [column.read(row, "") for row in dataset]
    table = open_table(source)
    assert [table[index] for index in range(len(table))] == images
    assert [image.name for image in images] == [f"{tmp_path}/mixed.tar: {name}" for name in (*names[:8], "8")]
    assert [image.content for image in images] == [b"content"] * 8 + [b""]
    assert [column.read(row, "").content for row in open_stream(source.replace(column="jpg"))[0]].count(b"") == 4
    with pytest.raises(ValueError, match=r"no column 'png'\. .*Columns: \['jpg'\]\. Give one as `data.column`"):
        open_stream(source.replace(column="png"))
    with pytest.raises(ValueError, match=r"no split 'val'"):
        open_stream(source.replace(split="val"))


def test_shards_of_the_hub_are_read_alike(write_source: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    folder = write_source("webdataset", 4)
    files = {"train": f"{folder}/part-00.tar", "test": f"{folder}/part-01.tar"}
    builder = datasets.load_dataset_builder("webdataset", data_files=files)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: builder)
    assert stream_numbers(source_of("org/name")) == [0, 2]
    assert table_numbers(source_of("org/name", split="test")) == stream_numbers(source_of("org/name", split="test"))
    with pytest.raises(ValueError, match=r"no split 'val'\. Splits: \['train', 'test'\]"):
        open_stream(source_of("org/name", split="val"))


def test_a_table_follows_its_shards(write_source: Callable[..., str]) -> None:
    folder = write_source("webdataset", 4)
    assert table_numbers(source_of(folder)) == [0, 2, 1, 3]
    other = Path(write_source("webdataset", 4, first=10))
    for path in other.iterdir():
        path.replace(Path(folder, path.name))
    assert table_numbers(source_of(folder)) == [10, 12, 11, 13]


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_fingerprint_of_a_stream_follows_its_files(write_source: Callable[..., str], kind: str) -> None:
    small = source_of(write_source("parquet", 3, first=100)).replace(weight=0.25)
    folder = Path(write_source(kind, 4))
    data = DataRecipe(source=str(folder), mixed_in=[small])
    num_files = len(list(folder.iterdir()))
    before = stream_fingerprint(data)
    assert before == stream_fingerprint(data)
    assert re.fullmatch(rf"{num_files} files, \d+ bytes, names \w+, state \w+; 2 files, .*", before)
    path = sorted(folder.iterdir())[-1]
    path.rename(path.with_name(f"z{path.name}"))
    assert re.sub(r"names \w+, state \w+", "", stream_fingerprint(data)) == re.sub(r"names \w+, state \w+", "", before)
    assert stream_fingerprint(data) != before


def test_fingerprint_of_a_stream_from_elsewhere_is_of_names_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    files = {"train": ["hf://datasets/org/name@0123/a.parquet", "hf://datasets/org/name@0123/b.parquet"]}

    def load_dataset_builder(**arguments):
        assert arguments == {"path": "org/name", "name": "small"}
        return SimpleNamespace(config=SimpleNamespace(data_files=files))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    hub = DataRecipe(source="hub:org/name:small")
    before = stream_fingerprint(hub)
    assert before.startswith("2 files, names ")
    files["train"] = [name.replace("@0123", "@4567") for name in files["train"]]
    assert stream_fingerprint(hub) != before
    assert stream_fingerprint(DataRecipe(source="https://host/part-{0..2}.tar")).startswith("3 files, names ")
