"""Tables of labeled images from folders and shards; files that are no images are left out before training."""

import logging
import shutil

import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_tuning import load
from tuning_fixtures import save_picture

from training.data import image_folder
from training.data.labeled.tables import image_paths, open_class_folders, open_tables, readable_tables


def paths_of(table):
    rows = table.cast_column("image", ImageFeature(decode=False))["image"]
    return sorted(row["path"].rpartition("/")[2] for row in rows)


def test_classes_and_files_may_be_called_like_splits(class_folders):
    """`datasets` alone would find a split of one class or of one file, and nothing else."""
    (class_folders / "cat").rename(class_folders / "train")
    (class_folders / "dog" / "0.png").rename(class_folders / "dog" / "test 0.png")
    tables = open_class_folders(class_folders)
    assert list(tables) == ["train"]
    assert paths_of(tables["train"]) == ["1.png", "2.png", "3.png", "4.png", "5.png", "test 0.png"]
    assert tables["train"].features["label"].names == ["dog", "train"]


def test_folders_of_splits_are_told_apart(class_folders, tmp_path, caplog):
    for name in ("train", "val"):
        shutil.copytree(class_folders, tmp_path / "split" / name)
    (tmp_path / "split" / "val" / "cat" / "5.png").unlink()
    tables = open_class_folders(tmp_path / "split")
    assert {name: len(table) for name, table in tables.items()} == {"train": 6, "validation": 5}
    assert tables["validation"].features["label"].names == ["cat", "dog"]
    shutil.copytree(class_folders, tmp_path / "split" / "unlabeled")
    with caplog.at_level(logging.WARNING):
        assert {name: len(table) for name, table in open_class_folders(tmp_path / "split").items()} == {
            "train": 6,
            "validation": 5,
        }
    assert "left out folders that are no splits: unlabeled" in caplog.text


def test_splits_have_the_names_that_are_asked_for(class_folders, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(class_folders, tmp_path / "split" / name)
    tables = open_class_folders(tmp_path / "split", {"train": ("a",), "validation": ("b",)})
    assert {name: len(table) for name, table in tables.items()} == {"train": 6, "validation": 6}


def test_names_are_no_patterns(class_folders):
    """`a[1].png` is left out, and what `b*.png` means read twice, where names go to `datasets` as they are."""
    image = next((class_folders / "cat").iterdir())
    before = len(open_class_folders(class_folders)["train"])
    for name in ("a[1].png", "b*.png", "bc.png"):
        shutil.copy(image, class_folders / "cat" / name)
    assert len(open_class_folders(class_folders)["train"]) == before + 3


def test_tables_beside_the_images_are_read(class_folders):
    lines = ["file_name,caption", *(f"{'cat' if n % 2 else 'dog'}/{n}.png,number {n}" for n in range(6))]
    (class_folders / "metadata.csv").write_text("\n".join(lines))
    (class_folders / ".hidden").mkdir()
    shutil.copy(class_folders / "cat" / "1.png", class_folders / ".hidden" / "9.png")
    table = open_class_folders(class_folders)["train"]
    assert sorted(table["caption"]) == [f"number {number}" for number in range(6)]


@pytest.mark.parametrize("name", ["pets.tar", "cat/old.parquet"])
def test_a_folder_of_images_may_hold_a_few_other_files(class_folders, name, monkeypatch, caplog):
    monkeypatch.setattr(image_folder, "MIN_IMAGES_PER_SHARD", 6)
    (class_folders / name).write_bytes(b"anything")
    with caplog.at_level(logging.WARNING):
        tables = open_tables(str(class_folders), open_class_folders)
    assert paths_of(tables["train"]) == [f"{number}.png" for number in range(6)]
    assert f"read as a folder of images, of which it has 6; left out {name}" in caplog.text


def test_shards_may_lie_in_any_folder_beside_a_picture(tmp_path, class_folders):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    shutil.copy(class_folders / "cat" / "1.png", tmp_path / "hub" / "preview.png")
    for split, count in (("train", 3), ("test", 2)):
        rows = Dataset.from_dict({"number": list(range(count))})
        rows.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    tables = open_tables(str(tmp_path / "hub"), open_class_folders)
    assert {split: len(table) for split, table in tables.items()} == {"train": 3, "validation": 2}


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("train-00000-of-00001", "test-00000-of-00001"), {"train": 3, "validation": 2}),
        (("train-0", "val-0"), {"train": 3, "validation": 2}),
        (("part-00000-of-00002", "part-00001-of-00002"), {"train": 5}),
    ],
)
def test_pictures_beside_parquet_files_are_not_read(tmp_path, class_folders, names, splits, caplog):
    shutil.copytree(class_folders, tmp_path / "hub" / "assets" / "test")
    for name, count in zip(names, (3, 2), strict=True):
        Dataset.from_dict({"number": list(range(count))}).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    tables = open_tables(str(tmp_path / "hub"), open_class_folders)
    assert {split: len(table) for split, table in tables.items()} == splits
    assert "read as a folder of .parquet files, of which it has 2; left out assets/test/cat/1.png" in caplog.text


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("a", "b"), {"train": 5}),
        (("train/0", "eval-set/0"), {"train": 3, "validation": 2}),
        (("my_train", "my_validation"), {"train": 3, "validation": 2}),
        (("data/train-00000-of-00001", "old/train-1"), {"train": 3}),
    ],
)
def test_splits_of_parquet_files_are_those_of_datasets(tmp_path, names, splits):
    folder = tmp_path / "[tables]"
    for name, count in zip(names, (3, 2), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict({"number": list(range(count))}).to_parquet(folder / f"{name}.parquet")
    tables = open_tables(str(folder), open_class_folders)
    assert {split: len(table) for split, table in tables.items()} == splits


def test_a_folder_of_images_and_shards_is_refused(tmp_path, class_folders):
    Dataset.from_dict({"number": [0]}).to_parquet(class_folders / "a.parquet")
    with pytest.raises(ValueError, match=r"has several kinds of files: 6 images \(cat/1\.png\), 1 \.parquet files"):
        open_tables(str(class_folders), open_class_folders)
    assert len(open_tables(f"{class_folders}/**/*.parquet", open_class_folders)["train"]) == 1


def test_shards_that_are_none_are_named(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "backup.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cannot be opened as \.tar files, of which it has deep/backup\.tar: "):
        open_tables(str(tmp_path), open_class_folders)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no images in class sub-folders"):
        open_class_folders(tmp_path)


@pytest.mark.parametrize("label", ["\xe4".encode("latin-1"), b"1" + 400 * b"0"], ids=["no UTF-8", "no int64"])
def test_metadata_that_cannot_be_read_is_said_in_one_line(class_folders, label):
    (class_folders / "cat" / "metadata.csv").write_bytes(b"file_name,target\n1.png,0\n3.png," + label)
    with pytest.raises(ValueError, match=r"^`data` '.*pets' has .* metadata that cannot be read: .*\.$"):
        open_class_folders(class_folders)


@pytest.mark.parametrize("content", [b"", b"no picture"])
def test_files_that_are_no_images_are_named_and_left_out(class_folders, content, caplog):
    (class_folders / "cat" / "1.png").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        images = load(class_folders, "image-classification", validation_share=0.4)
    assert len(images.train) + len(images.validation) == 5
    assert f"skipping image {class_folders / 'cat' / '1.png'}: unreadable" in caplog.text
    assert "left out 1 of 6 train images, which cannot be opened" in caplog.text
    assert sorted(images.train["target"][:] + images.validation["target"][:]) == [0, 0, 1, 1, 1]


def test_a_split_of_no_images(class_folders):
    for path in class_folders.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="None of the 6 train images can be opened; the log names them"):
        load(class_folders, "image-classification")


def test_small_images_stay(tmp_path):
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name)
    assert len(load(tmp_path, "image-classification", validation_share=0.5).train) == 1


def test_images_in_the_table_itself_have_no_path(tmp_path):
    save_picture(tmp_path / "1.png", 1)
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
