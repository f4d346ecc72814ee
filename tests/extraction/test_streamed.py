"""Files that are read in order, here and at addresses, to a folder or an address: rows as with random access."""

import io
import json
import tarfile
import uuid

import fsspec
import numpy as np
import pyarrow
import pytest
from datasets import ClassLabel, Dataset, Features, Image, load_dataset
from local_server import serve
from pyarrow.parquet import read_table
from refusals import refused, wrong

from modeling_radio import api
from modeling_radio.extraction.nearest import FeatureFolder, search
from modeling_radio.extraction.settings import ExtractionSettings, SearchSettings
from modeling_radio.extraction.shards import read_sums
from modeling_radio.extraction.store import Store
from modeling_radio.extraction.streamed import StreamedSplit


@pytest.fixture
def img2dataset(pictures, tmp_path):
    """Shards as img2dataset writes them: .jpg/.txt/.json of each sample, and a table and statistics beside."""
    folder = tmp_path / "shards"
    folder.mkdir()
    files = sorted(pictures.rglob("*.png"))
    for number in range(4):
        rows = []
        with tarfile.open(folder / f"{number:05d}.tar", "w") as archive:
            for index, path in enumerate(files[number * 6 : number * 6 + 6]):
                key, caption = f"{number:05d}{index:04d}", f"a {path.parent.name}"
                rows.append({"key": key, "caption": caption, "url": "https://example.org/x", "status": "success"})
                parts = {"jpg": path.read_bytes(), "txt": caption.encode(), "json": json.dumps(rows[-1]).encode()}
                for field, content in parts.items():
                    member = tarfile.TarInfo(f"{key}.{field}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{number:05d}.parquet")
        (folder / f"{number:05d}_stats.json").write_text("{}")
    return folder


@pytest.fixture
def memory():
    """An address of its own."""
    return f"memory://{uuid.uuid4().hex}"


def rows_of(store, columns=("id", "summary")):
    tables = [read_table(store.open(f"data/{name}"), columns=list(columns)) for name in store.names("data")]
    return [row for table in tables for row in table.to_pylist()]


def test_the_output_of_img2dataset_is_read_as_it_is(extract, img2dataset, pictures, tmp_path):
    written = extract(data=str(img2dataset), streaming=True, keep=["txt"])
    assert (written.rows, written.num_files, written.role) == ({"train": 23}, 4, "completed")
    rows = rows_of(Store(tmp_path / "out"), ("id", "txt", "summary"))
    assert [row["id"] for row in rows][:2] == ["00000/000000000", "00000/000000001"]
    assert {row["txt"] for row in rows} == {"a cat", "a dog"}
    extract(output=tmp_path / "folder")
    expected = rows_of(Store(tmp_path / "folder"))  # in the order of the files, too
    np.testing.assert_allclose([row["summary"] for row in rows], [row["summary"] for row in expected], atol=1e-6)
    assert len(load_dataset(str(tmp_path / "out"), split="train")) == 23
    copied = extract(data=str(img2dataset), output=tmp_path / "copied")  # with random access
    assert copied.num_rows == 23
    assert extract(data=str(img2dataset), streaming=True, keep=["txt"]).role == "found"


def test_from_an_address_to_an_address(
    extract, settings, img2dataset, checkpoint, pictures, memory, tmp_path, monkeypatch
):
    system, root = fsspec.core.url_to_fs(f"{memory}/in")
    system.put(f"{img2dataset}/", root, recursive=True)
    for workers, data in enumerate((f"{memory}/in", f"{memory}/in/{{00000..00003}}.tar")):
        extract(data=data, output=f"{memory}/out-{workers}", streaming=True, num_workers=workers)
    extract(data=str(img2dataset), output=tmp_path / "local", streaming=True)
    local = Store(tmp_path / "local")
    for store in (Store(f"{memory}/out-0"), Store(f"{memory}/out-1")):
        assert store.names() == ["SHA256SUMS", "data", "extraction.json"]
        assert [store.read(f"data/{name}") for name in store.names("data")] == [
            local.read(f"data/{name}") for name in local.names("data")
        ]
        assert read_sums(store).keys() == read_sums(local).keys()
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)  # it takes memory for a network
    again = api.extract(**settings(data=f"{memory}/in", output=f"{memory}/out-0", streaming=True).to_dict())
    assert (again.written.role, again.written.num_new) == ("found", 0)
    assert again.dataset()["train"]["id"][0] == "00000/000000000"
    extract(data=str(pictures), output=f"{memory}/dense", dense=True, pca=2)
    assert "pca.safetensors" in Store(f"{memory}/dense").names()
    query = next(iter(sorted(pictures.rglob("*.png"))))
    asked = SearchSettings(folder=f"{memory}/out-0", query=str(query), checkpoint=checkpoint, top=2)
    assert search(asked)[0].row["id"] == "00000/000000000"
    assert FeatureFolder(f"{memory}/out-0").shards[1][1:3] == (6, 12)


def test_names_are_the_same_at_every_address_and_hold_no_signature(img2dataset, memory, tmp_path):
    """A run that begins again with new signatures, or from a copy, has the same names."""
    folders = tmp_path / "set"
    for name in ("00000.tar", "00001.tar"):
        (folders / name[:-4]).mkdir(parents=True)
        (img2dataset / name).rename(folders / name[:-4] / name)
    system, root = fsspec.core.url_to_fs(f"{memory}/set")
    system.put(f"{folders}/", root, recursive=True)
    found = []
    with serve(folders) as address:
        signed = f"{address}/{{00000/00000,00001/00001}}.tar?X-Amz-Signature=S3CRET&f=.tar"
        for data in (f"{folders}/*/*.tar", f"{memory}/set/*/*.tar", signed):
            split = StreamedSplit(ExtractionSettings(checkpoint="x", output="y", data=data, streaming=True))
            found.append((split.state()["names"], next(split.read(split.shards(1)[0], 2)).ids))
    assert found[0][1] == ["00000/00000/000000000", "00000/00000/000000001"]
    assert found[0] == found[1] == found[2]


def test_tables_are_streamed_with_their_classes(extract, pictures, tmp_path):
    files = sorted(pictures.rglob("*.png"))
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    for number in range(2):
        part = files[number * 9 : number * 9 + 9]
        rows = {
            "image": [{"bytes": path.read_bytes(), "path": None} for path in part],
            "label": [path.parent.name for path in part],
        }
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "rows" / str(number) / "x.parquet")
    extract(data=str(tmp_path / "rows"), streaming=True)
    data = load_dataset(str(tmp_path / "out"), split="train")
    assert data.features["label"].names == ["cat", "dog"]
    assert data["label"][:] == [0] * 11 + [1] * 7
    assert (data["id"][0], data["id"][9]) == ("0/x/000000000", "1/x/000000000")


def test_broken_images_are_left_out_and_broken_files_refused(extract, img2dataset, pictures, tmp_path, caplog):
    files = [path.read_bytes() for path in sorted(pictures.rglob("*.png"))[:2]]
    with tarfile.open(img2dataset / "00004.tar", "w") as archive:
        for key, content in (("a", files[0]), ("b", files[1][:300]), ("c", b"")):
            member = tarfile.TarInfo(f"{key}.jpg")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert extract(data=str(img2dataset / "*.tar"), streaming=True).num_rows == 24
    assert "00004.tar: b.jpg" in caplog.text
    content = (img2dataset / "00001.tar").read_bytes()
    (img2dataset / "00001.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"`data` .*00001\.tar"):
        extract(data=str(img2dataset / "*.tar"), streaming=True, output=tmp_path / "half")
    with tarfile.open(img2dataset / "00005.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"), io.BytesIO(b""))
    with pytest.raises(ValueError, match=r"`data` .*00005\.tar"):
        extract(data=str(img2dataset / "0000[45].tar"), streaming=True, output=tmp_path / "empty")


@wrong(
    data=["pets", "memory://nothing-here", "nosuch://x/*.tar"],
    splits=[["train"]],
    max_images=[3],
    pca=[2],
    keep=[["caption"]],
    output=["nosuch://x/y"],
)
def test_what_streams_cannot_do_is_refused(name, value, extract, img2dataset):
    options = {"data": str(img2dataset / "*.tar"), "streaming": True, "dense": True, name: value}
    refused(name, lambda: extract(**options))


def test_nothing_is_held_of_images(img2dataset):
    split = StreamedSplit(ExtractionSettings(checkpoint="x", output="y", data=str(img2dataset), streaming=True))
    batches = split.read(split.shards(1000)[0], 2)
    assert [len(batch.ids) for batch in batches] == [2, 2, 2]
