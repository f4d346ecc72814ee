"""Names, copied columns and splits of every kind of source."""

import io
import shutil
import tarfile
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Image, Value
from refusals import refused, wrong

from modeling_radio.evaluation.data import Examples, Part, Stacked
from modeling_radio.extraction import source
from modeling_radio.extraction.settings import SourceSettings
from modeling_radio.extraction.source import open_source


def opened(data, **values):
    return open_source(SourceSettings(data=str(data), **values))


@pytest.fixture
def table(pictures):
    """Images that lie in a table, with a caption and a number."""
    paths = sorted(pictures.rglob("*.png"))[:6]
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "caption": [f"picture {number}" for number in range(6)],
        "number": [7, 7, 1, 2, 3, 4],
    }
    features = Features({"image": Image(), "caption": Value("string"), "number": Value("int64")})
    return Dataset.from_dict(rows, features=features)


def test_all_splits_are_read(pictures, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(pictures / "cat", tmp_path / "split" / split / "cat")
    splits = opened(tmp_path / "split")
    assert {name: len(split) for name, split in splits.items()} == {"train": 11, "validation": 11, "test": 11}
    assert splits["test"].ids(0, 1) == ["test/cat/01.png"]
    assert not splits["test"].kept_features  # all are of one class
    assert list(opened(tmp_path / "split", splits=["test"])) == ["test"]


def test_tables_and_saved_data_sets(table, tmp_path):
    table.to_parquet(tmp_path / "rows.parquet")
    (split,) = opened(tmp_path / "rows.parquet").values()
    assert split.ids() == [f"train-{number:09d}" for number in range(6)]
    assert split.kept_features == {}
    (split,) = opened(tmp_path / "rows.parquet", id_column="caption", keep=["number", "caption"]).values()
    assert split.ids(4) == ["picture 4", "picture 5"]
    assert split.kept(0, 2).to_pydict() == {"number": [7, 7], "caption": ["picture 0", "picture 1"]}
    DatasetDict({"unlabeled": table, "odd": table}).save_to_disk(str(tmp_path / "saved"))
    splits = opened(tmp_path / "saved", max_images=4)
    assert {name: len(split) for name, split in splits.items()} == {"unlabeled": 4, "odd": 4}
    ids = opened(tmp_path / "saved", max_images=4)["odd"].ids()
    assert ids == splits["odd"].ids()  # names of the whole table, not of the choice
    assert ids == sorted(ids)


def test_webdataset_shards_name_images_by_their_keys(pictures, tmp_path):
    def write(name, keys):
        with tarfile.open(tmp_path / name, "w") as archive:
            for key, path in zip(keys, sorted(pictures.rglob("*.png")), strict=False):
                content = path.read_bytes()
                member = tarfile.TarInfo(f"{key}.png")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    write("shard-000.tar", ["a", "b"])
    write("shard-001.tar", ["c"])
    (split,) = opened(tmp_path / "shard-{000..001}.tar").values()
    assert split.ids() == ["a", "b", "c"]
    write("shard-001.tar", ["a"])
    (split,) = opened(tmp_path / "shard-*.tar").values()
    assert split.ids() == ["train-000000000", "train-000000001", "train-000000002"]


@wrong(keep=[["captoin"], ["more"]], id_column=["number", "image"], splits=[["extra"]], image_column=["picture"])
def test_wrong_columns_and_splits_are_refused(name, value, table, tmp_path):
    table.map(lambda row: {"more": row["image"]}).to_parquet(tmp_path / "rows.parquet")
    refused(name, lambda: opened(tmp_path / "rows.parquet", **{"image_column": "image", name: value}))
    refused("data", lambda: opened(tmp_path / "missing"))


def test_a_set_of_ones_own_is_read_by_its_function():
    (split,) = opened("own_set:open_colors").values()
    assert (split.name, len(split)) == ("test", 8)
    assert split.kept(0, 2)["label"].to_pylist() == [0, 1]


def test_the_demos_objects_have_their_classes(monkeypatch):
    images = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    examples = Examples(Stacked(images), "x", torch.tensor([1, 0]))
    part = Part("objects", examples, examples, ("red", "green"))
    monkeypatch.setattr(source, "open_data", lambda *arguments, **options: SimpleNamespace(part={"labels": part}.get))
    splits = opened("demo")
    assert list(splits) == ["train", "test"]
    assert splits["test"].ids() == ["test-000000000", "test-000000001"]
    assert splits["test"].kept_features["label"].names == ["red", "green"]
    assert splits["train"].kept(0, 2)["label"].to_pylist() == [1, 0]
    assert (splits["train"].images[1] == 1).all()
    assert opened("demo")["train"].fingerprint == splits["train"].fingerprint
