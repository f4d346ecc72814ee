"""Labeled images of any source: opened, split, streamed; wrong labels are refused."""

import io
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, load_from_disk
from PIL import Image as PilImage
from tiny_tuning import load, save_labels, save_parquet, save_shards
from torch.utils.data import DataLoader, IterableDataset
from tuning_fixtures import HEIGHT, WIDTH

from modeling_radio.data.labeled.images import split_images


IN_PASS = 12


def targets(images):
    return sorted([*images.train["target"], *images.validation["target"]])


def test_class_folders_are_split_by_a_seed(class_folders, tmp_path):
    def load_seeded(seed):
        return load(class_folders, "image-classification", validation_share=0.34, seed=seed)

    images = load_seeded(0)
    assert images.class_names == ("cat", "dog")
    assert images.train.column_names == ["image", "target"]
    assert (len(images.train), len(images.validation)) == (4, 2)
    assert targets(images) == [0, 0, 0, 1, 1, 1]
    held_out = [tuple(np.asarray(row["image"]).sum() for row in load_seeded(seed).validation) for seed in (0, 1, 2, 0)]
    assert held_out[0] == held_out[3]
    assert len(set(held_out)) > 1
    for split in ("train", "val"):
        shutil.copytree(class_folders, tmp_path / "split" / split)
    (tmp_path / "split" / "val" / "cat" / "1.png").unlink()
    images = load(tmp_path / "split", "image-classification")
    assert (len(images.train), len(images.validation)) == (6, 5)


@pytest.mark.parametrize(
    "feature", [Value("binary"), Value("large_binary"), {"bytes": Value("binary"), "path": Value("string")}]
)
def test_encoded_images_without_a_type(tmp_path, class_folders, feature):
    files = [path.read_bytes() for path in sorted(class_folders.rglob("*.png"))]
    images = [{"bytes": content, "path": None} for content in files] if isinstance(feature, dict) else files
    features = Features({"jpg": feature, "label": Value("int64")})
    Dataset.from_dict({"jpg": images, "label": [0, 1] * 3}, features=features).to_parquet(tmp_path / "data.parquet")
    images = load(tmp_path / "data.parquet", "image-classification", validation_share=0.34)
    assert {row["image"].size for split in (images.train, images.validation) for row in split} == {(WIDTH, HEIGHT)}


def test_saved_data_sets_in_any_format(tmp_path):
    table = load_from_disk(save_labels(tmp_path / "table", ClassLabel(names=["p", "q"]), [0, 1, 0, 1]))
    splits = DatasetDict({"train": table.with_format("numpy"), "test": table.select([0])})
    splits.save_to_disk(tmp_path / "saved")
    images = load(tmp_path / "saved", "image-classification")
    assert images.class_names == ("p", "q")
    assert (len(images.train), len(images.validation)) == (4, 1)
    assert isinstance(images.train[0]["image"], PilImage.Image)


def test_sources_that_cannot_be_read_are_refused(class_folders, coco_folder, tmp_path):
    save_parquet(tmp_path / "data.parquet", [0, 1])
    (tmp_path / "empty").mkdir()
    one = save_labels(tmp_path / "one", Value("float32"), [0.5])
    numbers = save_labels(tmp_path / "numbers", Value("float32"), [0.5, 1.0])
    for source, task, name, options in (
        (class_folders / "cat", "image-classification", "'cat'", {}),
        (coco_folder, "image-classification", "COCO", {}),
        (tmp_path / "data.parquet", "image-classification", "'label'.*target_column", {"target_column": "labl"}),
        (tmp_path / "data.parquet", "object-detection", "target of object-detection", {}),
        (tmp_path / "empty", "image-classification", "empty", {}),
        (one, "image-classification", "validation", {}),
        (numbers, "image-classification", "`classes`", {"classes": ("a", "b")}),
        ("./nothing", "image-classification", "`data` './nothing'", {}),
        ("someone/pets", "image-classification", "`data` 'someone/pets'", {}),
    ):
        with pytest.raises(ValueError, match=name):
            load(source, task, **options)


def test_classes_of_one_name_are_refused(coco_folder, coco_content):
    coco_content["categories"] = [{"id": 4, "name": "boat"}, {"id": 9, "name": "boat"}]
    (coco_folder / "annotations.json").write_text(json.dumps(coco_content))
    with pytest.raises(ValueError, match="'boat': give `classes`"):
        load(coco_folder, "object-detection")
    assert load(coco_folder, "object-detection", classes=("ship", "boat")).class_names == ("ship", "boat")


SIZE = (32, 48)


def open_shards(folder, **options):
    named = {"classes": ("even", "odd"), **options}
    return load(folder, "image-classification", streaming=True, steps=2, evaluate_every=2, **named)


def level_of(row):
    return int(np.asarray(row["image"])[0, 0, 0])


def levels(stream, count):
    """Return the gray level of each image, whose parity is its label."""
    rows = list(islice(stream.rows(), count))
    assert all(row["target"] == level_of(row) % 2 for row in rows)
    return [level_of(row) for row in rows]


@pytest.fixture
def shards(tmp_path):
    return save_shards(tmp_path / "shards")


def test_every_pass_has_all_images_in_another_order(shards):
    images = open_shards(shards)
    assert images.validation["target"][:] == [0, 1, 0, 1]
    assert images.validation[3]["image"].getpixel((0, 0)) == (3, 3, 3)
    assert len(images.train) == 0
    read = levels(images.stream, 3 * IN_PASS)
    passes = [read[start : start + IN_PASS] for start in range(0, len(read), IN_PASS)]
    assert all(sorted(each) == list(range(IN_PASS)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert passes[0] != sorted(passes[0])
    assert levels(images.stream, 30) == read[:30]
    assert levels(open_shards(shards, seed=1).stream, 30) != read[:30]


class Levels(IterableDataset):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        return map(level_of, self.stream.rows())


@pytest.mark.parametrize("num_shards", [4, 1])
def test_ranks_and_workers_share_the_images(num_shards, tmp_path):
    stream = open_shards(save_shards(tmp_path / "shards", num_shards, IN_PASS // num_shards)).stream
    ranks = [levels(replace(stream, rank=rank, num_ranks=2), IN_PASS // 2) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == list(range(IN_PASS))
    if num_shards == 1:
        return
    assert (stream.num_readers, replace(stream, rank=1, num_ranks=2).num_readers) == (4, 2)
    loader = DataLoader(Levels(stream), batch_size=1, num_workers=2)
    read = [int(level) for level in islice(loader, 2 * IN_PASS)]
    assert Counter(read) == dict.fromkeys(range(IN_PASS), 2)
    assert [int(level) for level in islice(loader, 2 * IN_PASS)] == read


def test_streamed_images_and_classes_are_those_of_a_table(tmp_path):
    turned, stored = PilImage.Exif(), io.BytesIO()
    turned[0x0112] = 6
    PilImage.new("RGB", (6, 4), (255, 0, 0)).save(stored, "JPEG", exif=turned)
    (tmp_path / "turned").mkdir()
    rows = {"image": [{"bytes": stored.getvalue(), "path": None}] * 2, "label": [0, 1]}
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    for split in ("train", "validation"):
        Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "turned" / f"{split}.parquet")
    streamed = open_shards(tmp_path / "turned", classes=None)
    assert (streamed.class_names, streamed.problem_type) == (("a", "b"), "single_label_classification")
    table = load(tmp_path / "turned", "image-classification").validation
    assert next(streamed.stream.rows())["image"].size == table[0]["image"].size == (4, 6)


def test_webdataset_shards(tmp_path):
    folder = tmp_path / "shards"
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True)
        with tarfile.open(folder / split / "0.tar", "w") as shard:
            for number in range(4):
                picture = io.BytesIO()
                PilImage.new("RGB", (8, 8), (number,) * 3).save(picture, "PNG")
                for ending, content in (("png", picture.getvalue()), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{number}.{ending}")
                    member.size = len(content)
                    shard.addfile(member, io.BytesIO(content))
    images = open_shards(folder)
    assert sorted(levels(images.stream, 4)) == list(range(4))
    assert images.validation["target"][:] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("label", "type_of_column", "problem_type", "expected"),
    [
        (lambda level: ["odd"] * (level % 2), List(Value("string")), "multi_label_classification", [[], [1], [], [1]]),
        (lambda level: level / 2, None, "regression", [0, 0.5, 1, 1.5]),
    ],
    ids=["lists", "numbers"],
)
def test_streamed_labels_of_every_kind(label, type_of_column, problem_type, expected, tmp_path):
    folder = save_shards(tmp_path / "shards", label=label)
    if type_of_column is not None:
        for path in folder.iterdir():
            Dataset.from_parquet(str(path)).cast_column("label", type_of_column).to_parquet(path)
    images = open_shards(folder, **({"classes": None} if problem_type == "regression" else {}))
    assert images.problem_type == problem_type
    assert images.validation["target"][:] == expected
    row = next(images.stream.rows())
    level = level_of(row)
    assert row["target"] == (level / 2 if problem_type == "regression" else expected[level % 2])


def spoil(path, damaged):
    """Replace one image of a Parquet file by bytes that are no image."""
    rows = Dataset.from_parquet(str(path)).cast_column("image", Image(decode=False)).to_list()
    rows[damaged]["image"] = {"bytes": b"no picture", "path": f"{path.stem}-damaged.png"}
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(path)


def test_streamed_images_that_cannot_be_opened_are_left_out(tmp_path, caplog):
    folder = save_shards(tmp_path / "shards", num_shards=1)
    for name, damaged in (("train-0", 1), ("validation-0", 2)):
        spoil(folder / f"{name}.parquet", damaged)
    images = open_shards(folder)
    assert len(images.validation) == 3
    assert set(levels(images.stream, 4)) == {0, 2}
    for name in ("train-0", "validation-0"):
        assert f"/shards: {name}-damaged.png: " in caplog.text
    folder = save_shards(tmp_path / "none", num_shards=1, images_each=1)
    spoil(folder / "train-0.parquet", 0)
    with pytest.raises(ValueError, match=r"training images of '.*none'"):
        next(open_shards(folder).stream.rows())


@pytest.mark.parametrize(
    ("label", "options", "name"),
    [
        (lambda level: level % 2, {"classes": None}, "`classes`"),
        (lambda level: level % 3, {}, "label 2 of .*: validation image 2"),
        (lambda level: level / 2, {}, "`classes`"),
        (lambda level: level % 2, {"classes": ("a",)}, "`classes`"),
        (lambda level: level % 2, {"classes": ("a", "a")}, "`classes`"),
        (lambda level: level % 2, {"target_column": "labl"}, "'labl'"),
    ],
)
def test_streamed_labels_that_cannot_be_read_are_refused(label, options, name, tmp_path):
    with pytest.raises(ValueError, match=name):
        open_shards(save_shards(tmp_path / "shards", label=label), **options)


def test_sources_that_are_no_streams_are_refused(shards, class_folders):
    with pytest.raises(ValueError, match="`streaming`"):
        open_shards(class_folders)
    (shards / "validation-0.parquet").unlink()
    with pytest.raises(ValueError, match=r"`streaming` .*train"):
        open_shards(shards)


# Validation images of each class


def held_out(classes, share, seed=0):
    train, validation = split_images(classes, share, seed)
    assert sorted(train + validation) == list(range(len(classes)))
    assert (train, validation) == (sorted(train), sorted(validation))
    return [classes[index] for index in validation]


@pytest.mark.parametrize("seed", range(6))
def test_each_class_has_its_share_and_at_least_one_image(seed):
    classes = [["circle"]] * 20 + [["square"]] * 20 + [["rare"]] * 2 + [["alone"]] + [[]] * 10
    names = [name for image in held_out(classes, 0.1, seed) for name in image or ["none"]]
    assert {name: names.count(name) for name in set(names)} == {"circle": 2, "square": 2, "rare": 1, "none": 1}


@pytest.mark.parametrize("seed", range(6))
def test_of_several_classes_an_image_none_loses_its_last_training_image(seed):
    classes = [["a"]] * 8 + [["a", "b"], ["b", "c"], ["c", "a"], ["c", "c"]]
    train, validation = split_images(classes, 0.25, seed)
    for images in (train, validation):
        assert {name for index in images for name in classes[index]} == {"a", "b", "c"}
    assert len(validation) <= 4


def test_the_seed_decides_and_images_without_classes_are_drawn():
    drawn = [split_images([()] * 30, 0.1, seed)[1] for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1]
    assert len(drawn[0]) == 3
    with pytest.raises(ValueError, match="no two of one class"):
        split_images([["a"], ["b"]], 0.5, 0)
