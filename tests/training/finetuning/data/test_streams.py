"""Streams: every image in each pass, shared out among ranks and workers, the same again for the same seed."""

import io
import tarfile
from collections import Counter
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from PIL import Image as PilImage
from tiny_tuning import load, save_shards, tuning_settings
from torch.utils.data import DataLoader, IterableDataset

from core.settings import SettingsError


IN_PASS = 12


def open_shards(folder, **options):
    named = {"classes": ("even", "odd"), **options}
    return load(folder, "image-classification", streaming=True, steps=2, evaluate_every=2, **named)


@pytest.fixture
def shards(tmp_path):
    return save_shards(tmp_path / "shards")


def levels(stream, count):
    """Return the gray level of each image, and whether the target is its label."""
    found = []
    for row in islice(stream.rows(), count):
        level = int(np.asarray(row["image"])[0, 0, 0])
        assert row["target"] == level % 2
        found.append(level)
    return found


def test_every_pass_has_all_images_in_another_order(shards):
    stream = open_shards(shards).stream
    seen = levels(stream, 3 * IN_PASS)
    passes = [seen[start : start + IN_PASS] for start in range(0, len(seen), IN_PASS)]
    assert all(sorted(each) == list(range(IN_PASS)) for each in passes)
    assert len({tuple(each) for each in passes}) == 3
    assert passes[0] != sorted(passes[0])
    assert levels(stream, 30) == seen[:30]
    assert levels(open_shards(shards, seed=1).stream, 30) != seen[:30]


@pytest.mark.parametrize("num_shards", [4, 1])
def test_ranks_share_the_images(num_shards, tmp_path):
    stream = open_shards(save_shards(tmp_path / "shards", num_shards, IN_PASS // num_shards)).stream
    ranks = [levels(replace(stream, rank=rank, num_ranks=2), IN_PASS // 2) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == list(range(IN_PASS))


class Levels(IterableDataset):
    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        return (np.asarray(row["image"])[0, 0, 0].item() for row in self.stream.rows())


def test_workers_share_the_images(shards):
    stream = open_shards(shards).stream
    assert stream.num_readers == 4
    assert replace(stream, rank=1, num_ranks=2).num_readers == 2
    loader = DataLoader(Levels(stream), batch_size=1, num_workers=2)
    seen = [int(level) for level in islice(loader, 2 * IN_PASS)]
    assert Counter(seen) == dict.fromkeys(range(IN_PASS), 2)
    assert [int(level) for level in islice(loader, 2 * IN_PASS)] == seen


def test_validation_is_a_table_in_memory(shards):
    images = open_shards(shards)
    assert images.validation["target"][:] == [0, 1, 0, 1]
    assert images.validation[3]["image"].getpixel((0, 0)) == (3, 3, 3)
    assert len(images.train) == 0
    assert images.remark.endswith("a stream of training images and 4 validation images (its own split)")


def test_an_image_is_decoded_as_that_of_a_table_is(tmp_path):
    picture, turned = PilImage.new("RGB", (6, 4), (255, 0, 0)), PilImage.Exif()
    turned[0x0112] = 6
    stored = io.BytesIO()
    picture.save(stored, "JPEG", exif=turned)
    folder = tmp_path / "turned"
    folder.mkdir()
    rows = {"image": [{"bytes": stored.getvalue(), "path": None}] * 2, "label": [0, 1]}
    for split in ("train", "validation"):
        table = Dataset.from_dict(rows, features=Features({"image": Image(), "label": ClassLabel(names=["a", "b"])}))
        table.to_parquet(folder / f"{split}.parquet")
    streamed = next(open_shards(folder, classes=None).stream.rows())["image"]
    table = load(folder, "image-classification", classes=("a", "b")).validation
    assert streamed.size == table[0]["image"].size == (4, 6)


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


def test_classes_that_the_columns_state(tmp_path):
    folder = save_shards(tmp_path / "shards")
    for path in folder.iterdir():
        Dataset.from_parquet(str(path)).cast_column("label", ClassLabel(names=["p", "q"])).to_parquet(path)
    images = open_shards(folder, classes=None)
    assert images.class_names == ("p", "q")
    assert images.problem_type == "single_label_classification"


@pytest.mark.parametrize(
    ("label", "type_of_column", "problem_type", "expected"),
    [
        (lambda level: ["even", "odd"][level % 2], None, "single_label_classification", [0, 1, 0, 1]),
        (lambda level: ["odd"] * (level % 2), List(Value("string")), "multi_label_classification", [[], [1], [], [1]]),
        (lambda level: level / 2, None, "regression", [0, 0.5, 1, 1.5]),
    ],
    ids=["names", "lists", "numbers"],
)
def test_labels_of_every_kind(label, type_of_column, problem_type, expected, tmp_path):
    folder = save_shards(tmp_path / "shards", label=label)
    if type_of_column is not None:
        for path in folder.iterdir():
            Dataset.from_parquet(str(path)).cast_column("label", type_of_column).to_parquet(path)
    images = open_shards(folder, **({"classes": None} if problem_type == "regression" else {}))
    assert images.problem_type == problem_type
    assert images.validation["target"][:] == expected
    row = next(images.stream.rows())
    level = int(np.asarray(row["image"])[0, 0, 0])
    assert row["target"] == (level / 2 if problem_type == "regression" else expected[level % 2])


def test_images_that_cannot_be_opened_are_left_out(tmp_path, caplog):
    folder = save_shards(tmp_path / "shards", num_shards=1)
    for name, damaged in (("train-0", 1), ("validation-0", 2)):
        path = folder / f"{name}.parquet"
        rows = Dataset.from_parquet(str(path)).cast_column("image", Image(decode=False)).to_list()
        rows[damaged]["image"] = {"bytes": b"no picture", "path": f"{name}-damaged.png"}
        Dataset.from_list(rows).cast_column("image", Image()).to_parquet(path)
    images = open_shards(folder)
    assert len(images.validation) == 3
    assert set(levels(images.stream, 4)) == {0, 2}
    for name in ("train-0", "validation-0"):
        assert f"/shards: {name}-damaged.png: " in caplog.text


def test_a_source_without_a_picture(tmp_path):
    folder = save_shards(tmp_path / "shards", num_shards=1, images_each=1)
    table = Dataset.from_list([{"image": {"bytes": b"no picture", "path": "a.png"}, "label": 0}])
    table.cast_column("image", Image()).to_parquet(folder / "train-0.parquet")
    stream = open_shards(folder).stream
    with pytest.raises(ValueError, match=r"None of the training images of '.*shards' can be opened"):
        next(stream.rows())


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (lambda level: level % 2, {"classes": None}, r"Column 'label' of '.*' does not say which classes.*`classes`"),
        (
            lambda level: level % 3,
            {},
            r"The label 2 of .*: validation image 2 \(column 'label'\) is none of",
        ),
        (lambda level: level / 2, {}, r"has floats, which are measured numbers: leave `classes` out"),
        (lambda level: level % 2, {"classes": ("a",)}, r"`classes` must be at least two names, got \('a',\)"),
        (lambda level: level % 2, {"classes": ("a", "a")}, r"Several classes have the name 'a'"),
        (lambda level: level % 2, {"target_column": "labl"}, r"no column 'labl'\. Did you mean 'label'"),
    ],
)
def test_labels_that_cannot_be_read(label, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_shards(save_shards(tmp_path / "shards", label=label), **options)


def test_sources_that_are_no_streams(shards, class_folders):
    with pytest.raises(ValueError, match=r"`streaming` is for \.parquet and \.tar files .*leave it out"):
        open_shards(class_folders)
    (shards / "validation-0.parquet").unlink()
    with pytest.raises(ValueError, match=r"`streaming` needs splits for training and validation; .* has train\."):
        open_shards(shards)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("depth-estimation", {}, "`streaming` is not for depth-estimation"),
        ("image-classification", {"steps": None}, "`steps` must be a number with `streaming`"),
        ("image-classification", {"evaluate_every": None}, "`evaluate_every` must be a number with `streaming`"),
        ("image-classification", {"sampler": "balanced"}, "`sampler` 'balanced' counts the images"),
        ("image-classification", {"class_weights": "balanced"}, "`class_weights` 'balanced' counts the images"),
    ],
)
def test_settings_that_do_not_go_with_streams(task, options, message):
    with pytest.raises(SettingsError, match=message):
        tuning_settings(task, streaming=True, **{"steps": 2, "evaluate_every": 1, **options})
