"""Tables of labeled images from folders and shards; files that are no images are left out before training."""

import logging
import shutil
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_tuning import load
from tuning_fixtures import save_image

from modeling_radio.core.errors import FULL_DISK
from modeling_radio.data import image_folder
from modeling_radio.data.labeled.tables import image_paths, open_class_folders, open_tables, readable_tables


def paths_of(table):
    rows = table.cast_column("image", ImageFeature(decode=False))["image"]
    return sorted(row["path"].rpartition("/")[2] for row in rows)


def sizes_of(tables):
    return {split: len(table) for split, table in tables.items()}


def save_numbers(folder, **counts: int) -> str:
    for name, count in counts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"number": list(range(count))}).to_parquet(folder / f"{name}.parquet")
    return str(folder)


def test_classes_and_files_may_be_called_like_splits_or_patterns(class_folders):
    """`datasets` alone would find a split of one class or of one file, and take names for patterns."""
    (class_folders / "cat").rename(class_folders / "train")
    (class_folders / "dog" / "0.png").rename(class_folders / "dog" / "test 0.png")
    for name in ("a[1].png", "b*.png", "bc.png"):
        shutil.copy(class_folders / "dog" / "2.png", class_folders / "dog" / name)
    (class_folders / ".hidden").mkdir()
    shutil.copy(class_folders / "dog" / "2.png", class_folders / ".hidden" / "9.png")
    files = {path.relative_to(class_folders).as_posix() for path in class_folders.glob("[a-z]*/*.png")}
    lines = ["file_name,caption", *(f"{name},about {name}" for name in files)]
    (class_folders / "metadata.csv").write_text("\n".join(lines))  # a table beside the images is read
    tables = open_class_folders(class_folders)
    assert list(tables) == ["train"]
    assert sorted(tables["train"]["caption"]) == sorted(f"about {name}" for name in files)
    (class_folders / "metadata.csv").unlink()
    table = open_class_folders(class_folders)["train"]
    assert paths_of(table) == sorted(name.partition("/")[2] for name in files)
    assert table.features["label"].names == ["dog", "train"]


def test_folders_of_splits(class_folders, tmp_path, caplog):
    for name in ("train", "val"):
        shutil.copytree(class_folders, tmp_path / "split" / name)
    (tmp_path / "split" / "val" / "cat" / "5.png").unlink()
    tables = open_class_folders(tmp_path / "split")
    assert sizes_of(tables) == {"train": 6, "validation": 5}
    assert tables["validation"].features["label"].names == ["cat", "dog"]
    shutil.copytree(class_folders, tmp_path / "split" / "unlabeled")
    with caplog.at_level(logging.WARNING):
        assert sizes_of(open_class_folders(tmp_path / "split")) == {"train": 6, "validation": 5}
    assert "left out folders that are no splits: unlabeled" in caplog.text
    tables = open_class_folders(tmp_path / "split", {"train": ("unlabeled",), "validation": ("val",)})
    assert sizes_of(tables) == {"train": 6, "validation": 5}


@pytest.mark.parametrize("name", ["pets.tar", "cat/old.parquet"])
def test_folders_of_images_and_shards(class_folders, name, monkeypatch, caplog):
    Dataset.from_dict({"number": [0]}).to_parquet(class_folders / name)
    with pytest.raises(ValueError, match=r"6 images \(cat/1\.png\), 1 "):
        open_tables(str(class_folders), open_class_folders)
    if name == "cat/old.parquet":
        assert len(open_tables(f"{class_folders}/**/*.parquet", open_class_folders)["train"]) == 1
    monkeypatch.setattr(image_folder, "MIN_IMAGES_PER_SHARD", 6)
    with caplog.at_level(logging.WARNING):
        tables = open_tables(str(class_folders), open_class_folders)
    assert paths_of(tables["train"]) == [f"{number}.png" for number in range(6)]
    assert f"read as a folder of images, of which it has 6; left out {name}" in caplog.text


@pytest.mark.parametrize(
    ("counts", "splits"),
    [
        ({"a": 3, "b": 2}, {"train": 5}),
        ({"train/0": 3, "eval-set/0": 2}, {"train": 3, "validation": 2}),
        ({"my_train": 3, "my_validation": 2}, {"train": 3, "validation": 2}),
        ({"data/train-00000-of-00001": 3, "old/train-1": 2}, {"train": 3}),
        ({"part-00000-of-00002": 3, "part-00001-of-00002": 2}, {"train": 5}),
        ({"data/train-00000-of-00001": 3, "data/test-00000-of-00001": 2}, {"train": 3, "validation": 2}),
    ],
)
def test_splits_of_parquet_files_are_those_of_datasets_and_images_beside_them_are_left(
    tmp_path, class_folders, counts, splits, caplog
):
    folder = tmp_path / "[tables]"
    if any(image_folder._NAME_OF_SPLIT.fullmatch(f"{name.rpartition('/')[2]}.parquet") for name in counts):
        shutil.copytree(class_folders, folder / "assets" / "test")
    tables = open_tables(save_numbers(folder, **counts), open_class_folders)
    assert sizes_of(tables) == splits
    if (folder / "assets").exists():
        assert "read as a folder of .parquet files, of which it has 2; left out assets/test/cat/1.png" in caplog.text


@pytest.mark.parametrize("label", ["\xe4".encode("latin-1"), b"1" + 400 * b"0"], ids=["no UTF-8", "no int64"])
def test_folders_that_cannot_be_read_are_refused_in_one_line(tmp_path, class_folders, label):
    (class_folders / "cat" / "metadata.csv").write_bytes(b"file_name,target\n1.png,0\n3.png," + label)
    with pytest.raises(ValueError, match=r"^`data` '.*pets' .*metadata.*\.$"):
        open_class_folders(class_folders)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        open_class_folders(tmp_path / "empty")
    (tmp_path / "tar" / "deep").mkdir(parents=True)
    (tmp_path / "tar" / "deep" / "backup.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"deep/backup\.tar"):
        open_tables(str(tmp_path / "tar"), open_class_folders)


def test_a_full_disk_is_no_fault_of_the_folder(class_folders, full_disk):
    """The cache of datasets is written while a folder is read."""
    with full_disk(), pytest.raises(OSError, match="large") as error:
        open_class_folders(class_folders)
    assert error.value.errno in FULL_DISK


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_files_that_are_no_images_are_named_and_left_out(class_folders, content, caplog):
    (class_folders / "cat" / "1.png").write_bytes(content)
    Image.new("L", (8, 8)).save(class_folders / "cat" / "3.png")  # a small one stays
    with caplog.at_level(logging.WARNING):
        images = load(class_folders, "image-classification", validation_share=0.4)
    assert f"skipping image {class_folders / 'cat' / '1.png'}: unreadable" in caplog.text
    assert "left out 1 of 6 train images, which cannot be opened" in caplog.text
    assert (
        f"1 train images have a side below 32 px, which shows little: {class_folders / 'cat' / '3.png'}" in caplog.text
    )
    assert sorted(images.train["target"][:] + images.validation["target"][:]) == [0, 0, 1, 1, 1]
    for path in class_folders.rglob("*.png"):
        path.write_bytes(content)
    with pytest.raises(ValueError, match="None of the 6 train images"):
        load(class_folders, "image-classification")


def test_images_that_cannot_be_decoded_are_left_out_if_asked(class_folders, caplog):
    """Their first bytes are right; they may be files or lie in the table. Floats are no pixels."""
    damaged = [class_folders / "cat" / "1.png", class_folders / "dog" / "floats.tif"]
    damaged[0].write_bytes(damaged[0].read_bytes()[:2000])
    Image.new("F", (40, 40), 0.5).save(damaged[1])
    (class_folders / "dog" / "new.avif").touch()
    rows = open_class_folders(class_folders)["train"].cast_column("image", ImageFeature(decode=False)).to_list()
    for row in rows:
        row["image"]["bytes"] = Path(row["image"]["path"]).read_bytes()
    packed = class_folders.parent / "packed"
    packed.mkdir()
    Dataset.from_list(rows).cast_column("image", ImageFeature()).to_parquet(packed / "train.parquet")
    assert "left out files of kinds that are not read here: 1 .avif" in caplog.text
    for data in (class_folders, packed):
        caplog.clear()
        kept = load(data, "image-classification", validation_share=0.4)
        assert len(kept.train) + len(kept.validation) == 7
        images = load(data, "image-classification", validation_share=0.4, skip_damaged=True)
        assert "left out 2 of 7 train images" in caplog.text
        for path in damaged:
            assert f"skipping image {path}: " in caplog.text
        assert sorted(images.train["target"][:] + images.validation["target"][:]) == [0, 0, 1, 1, 1]
        again = load(data, "image-classification", validation_share=0.4, skip_damaged=True)
        assert again.remark == images.remark
        assert again.train["target"][:] == images.train["target"][:]


def test_images_in_the_table_itself_have_no_path(tmp_path):
    save_image(tmp_path / "1.png", 1)
    rows = [{"path": None, "bytes": b"x"}, {"path": str(tmp_path / "1.png"), "bytes": None}, None]
    features = Features({"image": ImageFeature(), "target": Value("int64")})
    table = Dataset.from_dict({"image": rows, "target": [0, 1, 2]}, features=features)
    assert image_paths(table, "image") == [None, str(tmp_path / "1.png"), None]
    assert image_paths(table, "target") == [None] * 3
    chosen = table.select([2, 1]).add_column("more", [1, 2])
    assert image_paths(chosen, "image") == [None, str(tmp_path / "1.png")]
    assert image_paths(table.select([1]).select([0, 0]), "image") == [str(tmp_path / "1.png")] * 2
    assert image_paths(table.select(range(1, 3)), "image") == [str(tmp_path / "1.png"), None]
    assert len(readable_tables({"train": table})["train"]) == 3
