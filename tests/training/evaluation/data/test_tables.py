"""Anybody's images in every form: what is known of them, how they are divided, and what is refused by name."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from training.evaluation.data import EvaluationData
from training.evaluation.data_tables import DataOptions, TableData


def test_class_folders_without_a_split_are_compared_with_each_other(class_folders):
    data = TableData(str(class_folders))
    assert isinstance(data, EvaluationData)
    part = data.part("labels")
    assert data.kinds() == {"images", "photographs", "labels"}
    assert (part.name, part.train, part.class_names) == ("pets", None, ("cat", "dog"))
    assert sorted(part.test.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    assert part.gallery is part.test
    path = class_folders / "cat" / "1.png"
    assert torch.equal(part.test.images[0], torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0))
    assert part.test.images.size(0) == (36, 48)
    assert "6 images without a split" in data.remarks(20)[0]


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_class_folders_with_splits(noisy_folders, name):
    (noisy_folders / "test").rename(noisy_folders / "other")
    (noisy_folders / "other").rename(noisy_folders / name)
    part = TableData(str(noisy_folders)).part("labels")
    assert (len(part.train), len(part.test)) == (42, 21)
    assert part.class_names == ("ant", "bee", "cat")


def test_a_split_can_be_chosen(noisy_folders):
    shutil.copytree(noisy_folders / "test", noisy_folders / "val")
    shutil.rmtree(noisy_folders / "test" / "cat")
    assert len(TableData(str(noisy_folders)).part("labels").test) == 21  # validation comes first
    assert len(TableData(str(noisy_folders), DataOptions(test_split="test")).part("labels").test) == 14
    with pytest.raises(ValueError, match=r"`test_split` must be a split of .*noisy', got 'tset'"):
        TableData(str(noisy_folders), DataOptions(test_split="tset"))


def test_masks_and_their_classes(voc_folder):
    data = TableData(str(voc_folder))
    part = data.part("masks")
    assert part.class_names == ("ground", "plant", "sky")
    assert part.test.masks[1][5].tolist() == [255, *[1] * 47]
    (voc_folder / "classes.txt").unlink()
    assert TableData(str(voc_folder)).part("masks").class_names == ("class 0", "class 1", "class 2")
    reduced = TableData(str(voc_folder), DataOptions(reduce_labels=True)).part("masks")
    assert reduced.class_names == ("class 0", "class 1")
    assert set(reduced.test.masks[0].unique().tolist()) == {255, 1}  # 0 and 255 do not count, 2 is 1
    (voc_folder / "classes.txt").write_text("ground\nplant\n")
    with pytest.raises(ValueError, match=r"The mask of test image 0 must have ids below 2 .* got 2"):
        TableData(str(voc_folder)).part("masks").test.masks[0]


def test_depth_alone_and_beside_masks(depth_folder, voc_folder):
    data = TableData(str(depth_folder))
    assert data.kinds() == {"images", "photographs", "depth"}
    assert data.part("depth").test.depth[2][3, 3] == pytest.approx(3.5)
    shutil.copytree(voc_folder / "masks", depth_folder / "masks")
    both = TableData(str(depth_folder))
    assert both.kinds() == {"images", "photographs", "depth", "masks"}
    assert both.part("depth").test.depth[3][3, 3] == pytest.approx(4.5)


@pytest.fixture
def described() -> Dataset:
    pixels = [Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)) for number in range(4)]
    rows = {
        "picture": pixels,
        "kind": ["b", "a", "b", "a"],
        "says": [["one", "uno"], ["two"], ["three"], ["four"]],
        "scene": ["x", "x", "y", "z"],
    }
    return Dataset.from_dict(rows).cast_column("picture", ImageFeature())


COLUMNS = DataOptions(image_column="picture", label_column="kind", caption_column="says", group_column="scene")


@pytest.mark.parametrize("form", ["parquet", "saved", "saved with splits"])
def test_tables_and_their_columns(described, form, tmp_path):
    if form == "parquet":
        described.to_parquet(tmp_path / "data.parquet")
        source = str(tmp_path / "*.parquet")
    else:
        table = described if form == "saved" else DatasetDict({"train": described, "test": described.select([1, 2])})
        table.save_to_disk(tmp_path / "data")
        source = str(tmp_path / "data")
    data = TableData(source, COLUMNS)
    part = data.part("captions")
    assert part.test.captions[0] == (["one", "uno"] if form != "saved with splits" else ["two"])
    assert part.test.groups.tolist() == ([0, 0, 1, 2] if form != "saved with splits" else [0, 1])
    assert data.part("labels").class_names == ("a", "b")
    assert data.part("labels").test.images[1].unique().tolist() == [40 if form != "saved with splits" else 80]


def test_webdataset_files(tmp_path):
    with tarfile.open(tmp_path / "shard-0.tar", "w") as archive:
        for number in range(4):
            buffer = io.BytesIO()
            Image.fromarray(np.full((20, 30, 3), 50 * number, np.uint8)).save(buffer, "PNG")
            files = {"png": buffer.getvalue(), "cls": str(number % 2).encode(), "txt": f"number {number}".encode()}
            for suffix, content in files.items():
                member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    for source in (tmp_path / "shard-{0..0}.tar", tmp_path):
        data = TableData(str(source))
        assert data.part("labels").test.labels.tolist() == [0, 1, 0, 1]
        assert data.part("captions").test.captions[3] == ["number 3"]
        assert data.part("labels").test.images[2].unique().tolist() == [100]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_column": "pictur"},
            r"no column 'pictur'. Did you mean 'picture'\? for the image of the evaluation",
        ),
        ({"label_column": "x"}, r"no column 'x'.* for the label .* has picture, kind, says, scene. Set `label_column`"),
        ({"group_column": "scenes"}, r"Did you mean 'scene'\?.* Set `group_column`"),
        (
            {"label_column": "says"},
            r"`caption_column` must be a column of its own, got 'says', which is `label",
        ),
        (
            {"label_column": "says", "caption_column": None},
            r"`label_column` must hold one of several classes for each image, got 'says' with multi label",
        ),
    ],
)
def test_columns_that_are_not_there_are_named(described, options, message, tmp_path):
    described.to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=message):
        TableData(str(tmp_path / "data.parquet"), COLUMNS.replace(**options))


def test_sources_that_cannot_be_opened(tmp_path):
    for source, message in {
        str(tmp_path / "missing"): r"`data` .*missing' does not exist",
        "hub:org/none": r"`data` 'hub:org/none' is no folder or file here, and no data set of the Hub",
        str(tmp_path / "x.parquet"): r"no file matches .*x.parquet'",
        str(tmp_path): r"has no images in class sub-folders",
    }.items():
        with pytest.raises(ValueError, match=message):
            TableData(source)


def test_images_without_classes_are_images(tmp_path):
    for number in range(3):
        Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
    data = TableData(str(tmp_path))
    assert data.kinds() == {"images", "photographs"}
    with pytest.raises(ValueError, match="must have labels for these tasks, got images, photographs only"):
        data.part("labels")
    assert len(data.part("images").test) == 3


def test_small_broken_and_turned_images(tmp_path):
    folder = tmp_path / "a"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 6), 7).save(tmp_path / "b" / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20)).save(folder / "turned.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"nothing")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    (folder / "cut.png").write_bytes(buffer.getvalue()[:2000])
    images = TableData(str(tmp_path)).part("labels").test.images
    assert len(images) == 3
    assert images.size(1) == tuple(images[1].shape[1:]) == (10, 20)
    assert images[2].shape == (3, 6, 8)
    with pytest.raises(ValueError, match=r"`data` must have images that can be decoded, got .*cut.png: .*leave it out"):
        images[0]


def test_a_fingerprint_follows_the_files(class_folders):
    def fingerprint(**options):
        return TableData(str(class_folders), DataOptions(**options)).part("labels").fingerprint

    before = fingerprint()
    assert fingerprint() == before
    assert fingerprint(max_images=3) != before
    Image.new("RGB", (40, 40)).save(class_folders / "cat" / "1.png")
    assert fingerprint() != before


def test_a_seeded_choice_of_images(class_folders):
    def labels(seed):
        return TableData(str(class_folders), DataOptions(max_images=4), seed=seed).part("labels").test

    assert len(labels(0)) == 4
    assert labels(0).fingerprint == labels(0).fingerprint
    assert len({labels(seed).fingerprint for seed in range(4)}) > 1


def test_class_names_in_words(noisy_folders, tmp_path):
    (tmp_path / "names.txt").write_text("an ant\na bee\na cat\n")
    part = TableData(str(noisy_folders), DataOptions(class_names=str(tmp_path / "names.txt"))).part("labels")
    assert part.class_names == ("an ant", "a bee", "a cat")
    for names, message in (("imagenet-1k", "must be 3 names, one for each class, got 1000"), ("none", "a text file")):
        with pytest.raises(ValueError, match=message):
            TableData(str(noisy_folders), DataOptions(class_names=names))


def test_bad_captions_are_named(tmp_path):
    rows = {"image": [Image.new("RGB", (9, 9))] * 2, "caption": ["fine", " "]}
    features = Features({"image": ImageFeature(), "caption": Value("string")})
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="The caption of test image 1 must be a text or a list of texts, got ' '"):
        TableData(str(tmp_path / "x.parquet")).part("captions")


def test_a_fingerprint_follows_depth_and_how_targets_are_read(depth_folder, voc_folder):
    def fingerprint(folder, kind, **options):
        return TableData(str(folder), DataOptions(**options)).part(kind).fingerprint

    before = fingerprint(depth_folder, "depth")
    assert fingerprint(depth_folder, "depth", depth_scale=500) != before
    path = min((depth_folder / "depth").iterdir())
    os.utime(path, (1, 1))
    assert fingerprint(depth_folder, "depth") != before
    assert fingerprint(voc_folder, "masks", reduce_labels=True) != fingerprint(voc_folder, "masks")


def test_files_in_braces_are_no_data_set_of_the_hub(described, tmp_path):
    for number in range(2):
        described.to_parquet(tmp_path / f"x-{number}.parquet")
    data = TableData(f"{tmp_path}/x-{{0..1}}.parquet", COLUMNS)
    (source,) = data.sources()
    assert (source.name, source.hub_id) == ("x-{0..1}.parquet", None)
    assert data.part("labels").name == source.name
