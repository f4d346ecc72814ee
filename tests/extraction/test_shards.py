"""Manifests that go on or are refused, and files that are written whole and read with care."""

import json

import pyarrow
import pytest

from modeling_radio.extraction import shards
from modeling_radio.extraction.shards import (
    MANIFEST,
    check_folder,
    read_columns,
    read_manifest,
    shards_of,
    write_shard,
)
from modeling_radio.extraction.store import Store


def test_folders_with_other_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="`output`"):
            check_folder(Store(path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    images, others = (
        {"number": 5, "state": "x"},
        {"source": {"name": "pets", "hub_id": None}, "model": {"weights and processor": "x"}},
    )
    for content in (
        *("[1]", "{", "{}", 9999 * "["),
        *(
            json.dumps({"settings": {}, "images": {"train": images}, **others} | changed)
            for changed in (
                *({"settings": None}, {"settings": {"shard_images": "x"}}, {"settings": {"size": [1]}}),
                *(
                    {"images": {}},
                    {"images": {"train": 1}},
                    {"images": {"../train": images}},
                    {"source": None},
                    {"model": {}},
                ),
                *({"images": {"train": images | {"number": each}}} for each in (-1, 10**30, None, "x")),
            )
        ),
    ):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(ValueError, match="`radio extract`"):
            read_manifest(Store(tmp_path))
    huge = {"settings": {}, "images": {"train": images | {"number": 10**18}}, **others}
    (tmp_path / MANIFEST).write_text(json.dumps(huge))
    with pytest.raises(ValueError, match=r"lacks 1000000000000000 of 1000000000000000 files"):
        shards_of(Store(tmp_path), read_manifest(Store(tmp_path)))


def test_tables_are_joined_to_groups(tmp_path, monkeypatch):
    tables = [pyarrow.table({"a": [number] * 10, "b": [0] * 10}) for number in range(4)]
    write_shard(Store(tmp_path), "x.parquet", iter(tables))
    assert [part.num_rows for part in read_columns(Store(tmp_path), "x.parquet", ["a"])] == [40]
    monkeypatch.setattr(shards, "GROUP_BYTES", 200)
    write_shard(Store(tmp_path), "x.parquet", iter(tables))
    parts = list(read_columns(Store(tmp_path), "x.parquet", ["a"]))
    assert [part.num_rows for part in parts] == [20, 20]
    assert parts[1].column_names == ["a"]


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, full_disk):
    monkeypatch.setattr(shards, "GROUP_BYTES", 1)

    def tables():
        yield pyarrow.table({"a": [1]})
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):  # not said to be a fault of the disk
        write_shard(Store(tmp_path), "data/x.parquet", tables())
    with full_disk(), pytest.raises(OSError, match=r"x\.parquet"):
        write_shard(Store(tmp_path), "data/x.parquet", [pyarrow.table({"a": [*range(100_000)]})])
    assert list((tmp_path / "data").iterdir()) == []


def test_a_changed_byte_of_the_rows_is_refused_or_harmless(tmp_path):
    """Changed bytes of the footer, which has the number of rows, are found by `SHA256SUMS` alone."""
    path, table = tmp_path / "x.parquet", pyarrow.table({"a": [float(number) for number in range(20)]})
    write_shard(Store(tmp_path), "x.parquet", [table])
    content, refusals = path.read_bytes(), []
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for position in range(4, footer):
        changed = bytearray(content)
        changed[position] ^= 0x10
        path.write_bytes(changed)
        try:
            assert [part.to_pydict() for part in read_columns(Store(tmp_path), "x.parquet", ["a"])] == [
                table.to_pydict()
            ]
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(repr(str(path)) in refusal and "\n" not in refusal for refusal in refusals)
