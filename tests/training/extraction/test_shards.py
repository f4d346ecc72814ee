import pyarrow
import pytest

from training.extraction import shards
from training.extraction.shards import plan_shards, read_columns, write_shard


def test_every_row_has_one_place():
    planned = plan_shards({"train": 7, "test": 3}, 3)
    assert [(shard.split, shard.start, shard.end) for shard in planned] == [
        ("train", 0, 3),
        ("train", 3, 6),
        ("train", 6, 7),
        ("test", 0, 3),
    ]
    assert planned[1].path == "data/train-00001-of-00003.parquet"


def test_tables_are_joined_to_groups(tmp_path, monkeypatch):
    tables = [pyarrow.table({"a": [number] * 10, "b": [0] * 10}) for number in range(4)]
    write_shard(tmp_path / "x.parquet", iter(tables))
    assert [part.num_rows for part in read_columns(tmp_path / "x.parquet", ["a"])] == [40]
    monkeypatch.setattr(shards, "GROUP_BYTES", 200)
    write_shard(tmp_path / "x.parquet", iter(tables))
    parts = list(read_columns(tmp_path / "x.parquet", ["a"]))
    assert [part.num_rows for part in parts] == [20, 20]
    assert parts[1].column_names == ["a"]


def test_what_raises_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "GROUP_BYTES", 1)

    def tables():
        yield pyarrow.table({"a": [1]})
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):  # not said to be a fault of the disk
        write_shard(tmp_path / "data" / "x.parquet", tables())
    assert list((tmp_path / "data").iterdir()) == []


def test_a_full_disk_is_said_in_one_line(tmp_path, full_disk):
    table = pyarrow.table({"a": list(range(100_000))})
    with full_disk(), pytest.raises(OSError, match=r"Cannot write .*x\.parquet"):
        write_shard(tmp_path / "x.parquet", [table])
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_of_the_rows_is_named_or_harmless(tmp_path):
    """Those of the footer, which says how many rows there are, `SHA256SUMS` alone tells."""
    path, table = tmp_path / "x.parquet", pyarrow.table({"a": [float(number) for number in range(20)]})
    write_shard(path, [table])
    content, refusals = path.read_bytes(), []
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(4, footer):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        try:
            assert [part.to_pydict() for part in read_columns(path, ["a"])] == [table.to_pydict()]
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 20
    assert all(repr(str(path)) in refusal and "\n" not in refusal for refusal in refusals)
