"""Sources of all kinds: opened, refused in one line, and trusted with no file outside of their folder."""

import io
import json
import re
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import datasets
import fsspec
import pyarrow as pa
import pytest
from datasets import Dataset, Image
from PIL import Image as Pillow
from pyarrow import ipc, parquet

from modeling_radio.data import image_folder
from modeling_radio.data.decoding import decode_rgb
from modeling_radio.data.labeled.tables import open_streams, open_tables
from modeling_radio.data.settings import DataRecipe, SourceRecipe
from modeling_radio.data.sources import (
    ImageColumn,
    check_named_file,
    first_fields,
    is_image,
    is_image_folder,
    is_listed,
    list_shards,
    open_stream,
    open_table,
    public_name,
    read_samples,
    stream_fingerprint,
)


def source_of(source: str, **options) -> SourceRecipe:
    return SourceRecipe(source=source, weight=1.0, **options)


def table_numbers(source: str, **options) -> list[int]:
    rows = open_table(source_of(source, **options))
    return [decode_rgb(rows[index]).getpixel((0, 0))[0] for index in range(len(rows))]


def stream_numbers(source: str, **options) -> list[int]:
    dataset, column = open_stream(source_of(source, **options))[:2]
    return [decode_rgb(column.read(row, "")).getpixel((0, 0))[0] for row in dataset]


# Files that a table names.


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private" / "me.png"
    path.parent.mkdir()
    Pillow.new("RGB", (64, 64), (250, 1, 1)).save(path)
    return path


def table_of_names(*names) -> pa.Table:
    rows = [{"bytes": None, "path": str(name)} for name in names]
    column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    return pa.table({"image": column, "label": list(range(len(names)))})


@pytest.mark.parametrize("form", ["{}", "file://{}", "http://127.0.0.1:9/{}", "zip://me.png::{}", "../private/me.png"])
def test_files_elsewhere_and_addresses_are_refused(private, tmp_path, monkeypatch, form):
    (tmp_path / "data").mkdir()
    parquet.write_table(table_of_names(form.format(private)), tmp_path / "data" / "train.parquet")
    source = str(tmp_path / "data")
    monkeypatch.chdir(source)
    table, (stream, column), labeled = (
        open_table(source_of(source)),
        open_stream(source_of(source))[:2],
        open_streams(source),
    )
    reads = [
        lambda: open_tables(source, lambda path: {}),
        lambda: table[0],
        lambda: column.read(next(iter(stream)), "row 0"),
        lambda: ImageColumn(source, "image", is_listed(labeled["train"])).read(next(iter(labeled["train"])), "row 0"),
    ]
    for read in reads:
        with pytest.raises(ValueError, match=r"`data` .* lies elsewhere"):
            read()


def test_files_within_the_given_folder_are_read(private, tmp_path):
    own = str(private.with_name("train.parquet"))
    parquet.write_table(table_of_names(private), own)
    assert len(open_tables(own, lambda path: {})["train"]) == 1
    assert open_table(source_of(own))[0].content == private
    for source in (str(tmp_path), own, f"{tmp_path}/private/*.parquet", f"{tmp_path}/private/t{{rain,}}.parquet"):
        check_named_file(str(private), source)
    for source in ("org/name", "hub:org/name", "https://host/train.parquet", f"{tmp_path}/other/*.parquet"):
        with pytest.raises(ValueError, match="lies elsewhere"):
            check_named_file(str(private), source)


def test_a_saved_table_cannot_claim_that_we_listed_its_files(private, tmp_path):
    folder = tmp_path / "saved"
    Dataset.from_dict({"image": [str(private)], "label": [0]}).cast_column("image", Image()).save_to_disk(folder)
    assert len(open_tables(str(folder), lambda path: {})["train"]) == 1  # the image lies within
    (table,) = folder.glob("*.arrow")
    with ipc.new_stream(str(table), (content := table_of_names(private)).schema) as writer:
        writer.write(content)
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"builder_name": "imagefolder"}))
    with pytest.raises(ValueError, match="lies elsewhere"):
        open_tables(str(folder), lambda path: {})


def test_listed_files_are_read_from_anywhere(private) -> None:
    """As those of an image folder on the Hub, which a stream names alone."""
    for streaming in (False, True):
        assert is_listed(
            datasets.load_dataset("imagefolder", data_files=[str(private)], split="train", streaming=streaming)
        )
    fsspec.filesystem("memory").pipe_file("/pictures/1.png", b"encoded")
    column = ImageColumn("org/name", "image", is_listed=True)
    for path, content in (("memory://pictures/1.png", b"encoded"), ("pictures/1.png", Path("pictures/1.png"))):
        assert column.read({"image": {"bytes": None, "path": path}}, "row 0") == (path, content)


# Addresses of `fsspec`.


@pytest.mark.parametrize(("form", "suffix"), [("webdataset", ".tar"), ("parquet", ".parquet")])
def test_shards_at_an_address_are_read_by_pattern_braces_and_folder(write_source, form, suffix, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # it takes memory for a network
    root = f"memory://{tmp_path.name}"
    for path in Path(write_source(form, 6)).iterdir():
        fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/{path.name}", path.read_bytes())
    for source in (f"{root}/*{suffix}", f"{root}/part-{{00..01}}{suffix}", root):
        assert stream_numbers(source) == [0, 2, 4, 1, 3, 5]
        assert table_numbers(source) == [0, 2, 4, 1, 3, 5]
        assert len(open_tables(source, lambda path: {})["train"]) == 6
        assert [name.rpartition("/")[2] for name in list_shards(source)] == [f"part-{n:02}{suffix}" for n in range(2)]


@pytest.mark.parametrize("source", ["memory://nothing/here", "nosuch://a/b", "memory://nothing/{0..3}.tar"])
def test_addresses_without_shards_are_refused(source):
    with pytest.raises(ValueError, match=f"`data` '{source[:9]}"):
        list_shards(source)


# Names of sources say neither where they lie on this machine nor who asks for them.


def test_files_and_folders_have_the_last_part_of_their_path_in_public(tmp_path, monkeypatch):
    (tmp_path / "within").mkdir()
    monkeypatch.chdir(tmp_path / "within")
    for source in (str(tmp_path), "..", "../within/.."):
        assert public_name(source) == (tmp_path.name, f"folder {tmp_path.name}", None)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert public_name("~/within").name == "within"
    assert public_name(f"{tmp_path}/train-*.parquet") == ("train-*.parquet", "file train-*.parquet", None)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:org/name:small", ("org/name:small", "Hugging Face Hub, org/name:small", "org/name")),
        ("org/name", ("org/name", "Hugging Face Hub, org/name", "org/name")),
        ("hub:org/name.tar", ("org/name.tar", "Hugging Face Hub, org/name.tar", "org/name.tar")),
        ("hf://datasets/org/name@main/data/a.parquet", ("a.parquet", "Hugging Face Hub, org/name", "org/name")),
        (
            "https://huggingface.co/datasets/org/name/resolve/main/*.tar",
            ("*.tar", "Hugging Face Hub, org/name", "org/name"),
        ),
        ("https://host/x.tar", ("x.tar", "file of host", None)),
        ("https://me:SECRET@host/get/a-{0..2}.tar?token=SECRET#SECRET", ("a-{0..2}.tar", "file of host", None)),
        ("https://host/?file=x.tar", ("files", "file of host", None)),
        ("demo", ("demo", "packages of PyPI, npm and Debian", None)),
    ],
)
def test_public_names(source, expected):
    assert public_name(source) == expected


# Samples of webdataset shards.


def write_tar(path: Path, files: Mapping[str, bytes]) -> str:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def images_of(shard: str, column: str = "jpg", *, takes_others: bool = True) -> dict[str, bytes]:
    rows = list(read_samples([shard], column, takes_others=takes_others))
    assert {row["__url__"] for row in rows} <= {shard}
    return {row["image"]["path"]: row["image"]["bytes"] for row in rows}


def test_samples_show_their_column_or_their_first_other_image(tmp_path: Path) -> None:
    files = {"a.cls": b"seven", "a.jpg": b"A", "a.json": b"{", "a.txt": b"\xff", "b.jpg": b"B", "b.npy": b""}
    shard = write_tar(tmp_path / "0.tar", files)
    assert first_fields([shard]) == ["cls", "jpg", "json", "txt", "npy"]
    assert images_of(shard) == {"a.jpg": b"A", "b.jpg": b"B"}
    files = {"./1/a.depth.png": b"depth", "./1/a.jpg": b"A", "./1/a.png": b"mask", "b.JPG": b"B", "c.txt": b"C"}
    files |= {"__d.jpg": b"hidden", ".e.jpg": b"hidden", "f.json": b"F", "f.left.png": b"left", "f.right.png": b"right"}
    shard = write_tar(tmp_path / "1.tar", {**files, "README": b"no field"})
    assert images_of(shard) == {"./1/a.jpg": b"A", "b.JPG": b"B", "c": b"", "f.left.png": b"left"}
    asked = images_of(shard, "right.png", takes_others=False)
    assert asked == {"./1/a": b"", "b": b"", "c": b"", "f.right.png": b"right"}
    with tarfile.open(tmp_path / "2.tar", "w") as archive:
        for name, kind in (("folder.d", tarfile.DIRTYPE), ("link.jpg", tarfile.SYMTYPE), ("hard.jpg", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            archive.addfile(member)
    assert images_of(str(tmp_path / "2.tar")) == {}


@pytest.mark.parametrize(
    ("start", "is_cut", "num_whole"),
    [(3700, True, 2), (3200, True, 1), (3072, False, 1), (0, False, 0), (0, True, 0)],
    ids=["cut in a file", "cut in a header", "damaged header", "no archive", "empty"],
)
def test_damage_is_an_error_that_names_the_shard(tmp_path: Path, start: int, is_cut: bool, num_whole: int) -> None:
    path = tmp_path / "0.tar"
    shard = write_tar(path, {f"{number}.jpg": b"A" * 600 for number in range(4)})  # one block of header, two of content
    content, names = path.read_bytes(), []
    path.write_bytes(content[:start] + (b"" if is_cut else b"?" * 512 + content[start + 512 :]))
    with pytest.raises(tarfile.ReadError, match=re.escape(f"{shard}: ")):
        names.extend(row["image"]["path"] for row in read_samples([shard], "jpg", takes_others=True))
    assert names == [f"{number}.jpg" for number in range(num_whole)]  # a damaged header may belong to the last sample


def test_images_are_what_pillow_opens() -> None:
    assert all(map(is_image, ("jpg", "JPG", "left.png", "jfif", "jp2")))
    assert not any(map(is_image, ("json", "npy", "h5", "mpg", "ps", "depth.pfm", "pdf")))


# Tables and streams.


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "folder"])
def test_folders_files_and_patterns(write_source: Callable[..., str], kind: str) -> None:
    folder = Path(write_source(kind, 6))
    assert is_image_folder(str(folder)) == (kind == "folder")
    suffix = {"webdataset": "tar", "parquet": "parquet"}.get(kind)
    if suffix is None:
        assert stream_numbers(str(folder)) == [0, 1, 2, 3, 4, 5]
    else:
        assert table_numbers(str(folder)) == stream_numbers(str(folder)) == [0, 2, 4, 1, 3, 5]
        assert table_numbers(f"{folder}/part-01.{suffix}") == [1, 3, 5]
        assert stream_numbers(f"{folder}/*.{suffix}") == [0, 2, 4, 1, 3, 5]
        assert stream_numbers(f"{folder}/p{{a,*}}rt-{{01..01}}.{suffix}") == [1, 3, 5, 1, 3, 5]
        name = open_table(source_of(str(folder)))[1].name
        assert name == (f"{folder}: row 1" if kind == "parquet" else f"{folder}/part-00.tar: 002.png")
    (folder / "[1]").mkdir()  # names are no patterns
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.rename(folder / "[1]" / path.name)
    assert sorted(stream_numbers(str(folder))) == [0, 1, 2, 3, 4, 5]


def test_folders_with_other_files(write_source: Callable[..., str], monkeypatch, caplog) -> None:
    folder = write_source("folder", 3)
    Path(folder, "camera.qoi").write_bytes(b"qoif")
    assert stream_numbers(folder) == [0, 1, 2]
    assert "1 of 4 images are skipped, because files of type .qoi cannot be streamed" in caplog.text
    Path(folder, "old.tar").touch()
    for read in (is_image_folder, stream_numbers, table_numbers):
        with pytest.raises(ValueError, match=r"4 images \(000\.png\).* pattern such as"):
            read(folder)
    monkeypatch.setattr(image_folder, "MIN_IMAGES_PER_SHARD", 4)
    assert is_image_folder(folder)
    assert stream_numbers(folder) == [0, 1, 2]


def test_typed_parquet_keeps_names(tmp_path: Path, write_source) -> None:
    files = sorted(map(str, Path(write_source("folder", 2)).iterdir()))
    features = datasets.Features({"picture": datasets.Image(), "label": datasets.Value("int64")})
    table = Dataset.from_dict({"picture": files, "label": [0, 1]}, features=features)
    table.to_parquet(tmp_path / "typed.parquet")
    source = str(tmp_path / "typed.parquet")
    assert stream_numbers(source) == table_numbers(source) == [0, 1]
    assert open_table(source_of(source))[1].name.endswith("001.png")


@pytest.mark.parametrize("open_source", [open_table, open_stream])
@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("FOLDER/missing-*.tar", {}, "missing-"),
        ("FOLDER/part-{00..07}.parquet", {}, "part-02.parquet"),
        ("FOLDER", {"column": "picture"}, r"'picture'.*\['caption', 'image'\].* `data.column`"),
        ("FOLDER", {"split": "test"}, r"'test'.*\['train'\]"),
        ("FOLDER/missing", {}, "'demo' nor 'demo-permissive'"),
        ("EMPTY", {}, "no usable image"),
        ("TEXT", {}, r"no image column.*\['text'\]"),
        ("hub:org/name", {}, "'hub:org/name' cannot be opened: .*(offline|reach)"),
        ("org/name", {"split": "validation"}, "'org/name' cannot be opened: .*(offline|reach)"),
        ("DAMAGED/part-01.parquet", {}, "cannot be opened: "),
        ("SHARDS/part-0{0,1}.tar", {}, r"any of its 2 shards: .*part-00\.tar: empty"),
        ("MIXED", {"column": "png"}, r"'png'.*\['jpg'\].*`data.column`"),
        ("MIXED", {"split": "val"}, "'val'"),
    ],
)
def test_bad_sources_are_one_clear_line(write_source, tmp_path: Path, open_source: Callable, source, options, message):
    folders = {name: tmp_path / name.lower() for name in ("EMPTY", "TEXT", "DAMAGED", "SHARDS")}
    for folder in folders.values():
        folder.mkdir()
    parquet.write_table(pa.table({"text": ["a"]}), folders["TEXT"] / "0.parquet")
    (folders["DAMAGED"] / "part-01.parquet").write_bytes(b"PAR1")
    for number in range(2):
        (folders["SHARDS"] / f"part-0{number}.tar").write_bytes(b"")
    mixed = write_tar(tmp_path / "mixed.tar", {"0.jpg": b"content"})
    for name, path in {**folders, "FOLDER": write_source("parquet", 4), "MIXED": mixed}.items():
        source = source.replace(name, str(path))
    with pytest.raises(ValueError, match=message) as error:
        open_source(source_of(source, **options))
    assert "\n" not in str(error.value)


def test_refusals_of_the_hub_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset_builder(*, path: str, name: str) -> None:
        assert (path, name) == ("org/name", "small")
        raise datasets.exceptions.DatasetNotFoundError("'org/name' is a gated dataset.\nAsk for it.")

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    with pytest.raises(ValueError, match=r"'hub:org/name:small' .*a gated dataset") as error:
        open_table(source_of("hub:org/name:small", split="val"))
    assert "\n" not in str(error.value)


def test_the_demo_is_no_stream_and_other_sources_need_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'demo' .*`data.streaming`"):
        open_stream(source_of("demo"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"'org/name' .*`pip install 'datasets>=5'`"):
        open_table(source_of("org/name"))
    with pytest.raises(ValueError, match="'path/to/images'"):
        open_table(source_of("path/to/images"))  # installing it would not help


def test_damaged_and_empty_shards_beside_good_ones(write_source: Callable[..., str]) -> None:
    folder = write_source("webdataset", 6, num_shards=3)
    Path(folder, "part-00.tar").write_bytes(bytes(10240))  # an archive without files
    assert stream_numbers(folder) == [1, 4, 2, 5]
    Path(folder, "part-01.tar").write_bytes(b"?" * 1024)
    with pytest.raises(ValueError, match=r"cannot be opened: .*part-01\.tar: ") as error:
        open_table(source_of(folder))
    assert "\n" not in str(error.value)
    assert first_fields([f"{folder}/part-0{number}.tar" for number in (1, 0, 2)]) == ["txt", "png"]


def test_shards_with_images_of_several_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names = [f"{number}.jpg" for number in range(5)] + ["5.png", "6.jpeg", "7.JPG", "8.json"]
    source = source_of(write_tar(tmp_path / "mixed.tar", dict.fromkeys(names, b"content")))
    dataset, column = open_stream(source)[:2]
    images = [column.read(row, "") for row in dataset]
    table = open_table(source)
    assert [table[index] for index in range(len(table))] == images
    assert [image.name for image in images] == [f"{tmp_path}/mixed.tar: {name}" for name in (*names[:8], "8")]
    assert [image.content for image in images] == [b"content"] * 8 + [b""]
    assert [column.read(row, "").content for row in open_stream(source.replace(column="jpg"))[0]].count(b"") == 4


def test_shards_of_the_hub_are_read_alike(write_source: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_source("webdataset", 4)
    files = {"train": f"{folder}/part-00.tar", "test": f"{folder}/part-01.tar"}
    builder = datasets.load_dataset_builder("webdataset", data_files=files)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: builder)
    assert stream_numbers("org/name") == [0, 2]
    assert table_numbers("org/name", split="test") == stream_numbers("org/name", split="test") == [1, 3]
    with pytest.raises(ValueError, match=r"'val'.*\['train', 'test'\]"):
        open_stream(source_of("org/name", split="val"))


def test_a_table_follows_its_shards(write_source: Callable[..., str]) -> None:
    folder = write_source("webdataset", 4)
    assert table_numbers(folder) == [0, 2, 1, 3]
    for path in Path(write_source("webdataset", 4, first=10)).iterdir():
        path.replace(Path(folder, path.name))
    assert table_numbers(folder) == [10, 12, 11, 13]


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_fingerprint_of_a_stream_follows_its_files(write_source: Callable[..., str], kind: str) -> None:
    small = {"source": write_source("parquet", 3, first=100), "weight": 0.25}
    folder = Path(write_source(kind, 4))
    data = DataRecipe(source=str(folder), mixed_in=[small])
    before = stream_fingerprint(data)
    assert before == stream_fingerprint(data)
    assert re.fullmatch(rf"{len(list(folder.iterdir()))} files, \d+ bytes, names \w+, state \w+; 2 files, .*", before)
    path = sorted(folder.iterdir())[-1]
    path.rename(path.with_name(f"z{path.name}"))
    assert re.sub(r"names \w+, state \w+", "", stream_fingerprint(data)) == re.sub(r"names \w+, state \w+", "", before)
    assert stream_fingerprint(data) != before


def test_fingerprint_of_a_stream_from_elsewhere_is_of_names_and_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fingerprint_at(commit: str) -> str:
        files = {"train": [f"hf://datasets/org/name@{commit}/{name}.parquet" for name in "ab"]}
        builder = SimpleNamespace(config=SimpleNamespace(data_files=files))
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda path, name: builder)
        return stream_fingerprint(DataRecipe(source="hub:org/name:small"))

    assert fingerprint_at("0123").startswith("2 files, names ")
    assert fingerprint_at("0123") != fingerprint_at("4567")
    assert stream_fingerprint(DataRecipe(source="https://host/part-{0..2}.tar")).startswith("3 files, names ")
