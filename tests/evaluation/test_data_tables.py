"""The user's images in every form: their targets, their splits, and the errors of bad sources."""

import io
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import Image as ImageFeature
from PIL import Image

from modeling_radio.evaluation.data import EvaluationData
from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.settings import DataOptions


def test_class_folders_without_a_split(class_folders):
    data = TableData(str(class_folders))
    assert isinstance(data, EvaluationData)
    part = data.part("labels")
    assert data.kinds() == {"images", "photographs", "labels"}
    assert (part.name, part.train, part.class_names) == ("pets", None, ("cat", "dog"))
    assert sorted(part.test.labels.tolist()) == [0, 0, 0, 1, 1, 1]
    path = class_folders / "cat" / "1.png"
    assert torch.equal(part.test.images[0], torch.from_numpy(np.array(Image.open(path))).movedim(-1, 0))
    assert part.test.images.size(0) == (36, 48)
    assert "6 images without a split" in data.remarks(20)[0]


def test_splits_are_found_by_name_and_can_be_chosen(noisy_folders):
    part = TableData(str(noisy_folders)).part("labels")
    assert (len(part.train), len(part.test), part.class_names) == (42, 21, ("ant", "bee", "cat"))
    shutil.copytree(noisy_folders / "test", noisy_folders / "val")
    shutil.rmtree(noisy_folders / "test" / "cat")
    assert len(TableData(str(noisy_folders)).part("labels").test) == 21  # validation comes first
    assert len(TableData(str(noisy_folders), DataOptions(test_split="test")).part("labels").test) == 14
    with pytest.raises(ValueError, match="`test_split`"):
        TableData(str(noisy_folders), DataOptions(test_split="tset"))


def test_masks_and_their_classes(voc_folder):
    part = TableData(str(voc_folder)).part("masks")
    assert part.class_names == ("ground", "plant", "sky")
    assert part.test.masks[1][5].tolist() == [255, *[1] * 47]
    (voc_folder / "classes.txt").unlink()
    assert TableData(str(voc_folder)).part("masks").class_names == ("class 0", "class 1", "class 2")
    reduced = TableData(str(voc_folder), DataOptions(reduce_labels=True)).part("masks")
    assert reduced.class_names == ("class 0", "class 1")
    assert set(reduced.test.masks[0].unique().tolist()) == {255, 1}  # 0 and 255 do not count, 2 is 1
    (voc_folder / "classes.txt").write_text("ground\nplant\n")
    with pytest.raises(ValueError, match=r"test image 0 .* got 2"):
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
    rows = {
        "picture": [Image.fromarray(np.full((20, 30, 3), 40 * number, np.uint8)) for number in range(4)],
        "kind": ["b", "a", "b", "a"],
        "says": [["one", "uno"], ["two"], ["three"], ["four"]],
        "scene": ["x", "x", "y", "z"],
    }
    return Dataset.from_dict(rows).cast_column("picture", ImageFeature())


COLUMNS = DataOptions(image_column="picture", label_column="kind", caption_column="says", group_column="scene")


@pytest.mark.parametrize("form", ["parquet", "braces", "saved", "saved with splits"])
def test_tables_and_their_columns(described, form, tmp_path):
    source = str(tmp_path / "data")
    if form in ("parquet", "braces"):
        described.to_parquet(tmp_path / "data-0.parquet")
        source = str(tmp_path / ("*.parquet" if form == "parquet" else "data-{0..0}.parquet"))
    else:
        table = described if form == "saved" else DatasetDict({"train": described, "test": described.select([1, 2])})
        table.save_to_disk(source)
    data = TableData(source, COLUMNS)
    rows = [1, 2] if form == "saved with splits" else [0, 1, 2, 3]
    part = data.part("captions")
    assert list(part.test.captions) == [described[row]["says"] for row in rows]
    assert part.test.groups.tolist() == ([0, 1] if form == "saved with splits" else [0, 0, 1, 2])
    assert data.part("labels").class_names == ("a", "b")
    assert data.part("labels").test.images[1].unique().tolist() == [40 * rows[1]]
    assert data.sources()[0].hub_id is None


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
        ({"image_column": "pictur"}, r"'pictur'. Did you mean 'picture'\?"),
        ({"label_column": "x"}, "'x'.* Set `label_column`"),
        ({"group_column": "scenes"}, "'scenes'.* Set `group_column`"),
        ({"label_column": "says"}, "`caption_column`"),
        ({"label_column": "says", "caption_column": None}, "`label_column`"),
        ({"class_names": "imagenet-1k"}, "`class_names` must be 2 names.* got 1000"),
        ({"class_names": "none"}, "`class_names` must be a text file"),
    ],
)
def test_options_that_do_not_fit_a_table(described, options, message, tmp_path):
    described.to_parquet(tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=message):
        TableData(str(tmp_path / "data.parquet"), COLUMNS.replace(**options))


@pytest.mark.parametrize("source", ["{}/missing", "hub:org/none", "{}/x.parquet", "{}"])
def test_sources_that_cannot_be_opened(source, tmp_path):
    source = source.format(tmp_path)
    with pytest.raises(ValueError, match=source.rpartition("/")[2]):
        TableData(source)


def test_class_names_in_words(noisy_folders, tmp_path):
    (tmp_path / "names.txt").write_text("an ant\na bee\na cat\n")
    part = TableData(str(noisy_folders), DataOptions(class_names=str(tmp_path / "names.txt"))).part("labels")
    assert part.class_names == ("an ant", "a bee", "a cat")


def test_small_broken_and_turned_images(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    Image.new("L", (8, 6), 7).save(tmp_path / "b" / "small.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (10, 20)).save(tmp_path / "a" / "turned.jpg", exif=exif)
    (tmp_path / "a" / "broken.png").write_bytes(b"nothing")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(buffer, "PNG")
    (tmp_path / "a" / "cut.png").write_bytes(buffer.getvalue()[:2000])
    images = TableData(str(tmp_path)).part("labels").test.images
    assert len(images) == 3
    assert images.size(1) == tuple(images[1].shape[1:]) == (10, 20)
    assert images[2].shape == (3, 6, 8)
    with pytest.raises(ValueError, match=r"`data` .*cut.png"):
        images[0]


def test_bad_captions_are_named(tmp_path):
    rows = {"image": [Image.new("RGB", (9, 9))] * 2, "caption": ["fine", " "]}
    Dataset.from_dict(rows).cast_column("image", ImageFeature()).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="caption of test image 1"):
        TableData(str(tmp_path / "x.parquet")).part("captions")


def test_a_seeded_choice_of_images(class_folders):
    def fingerprint(seed):
        test = TableData(str(class_folders), DataOptions(max_images=4), seed=seed).part("labels").test
        assert len(test) == 4
        return test.fingerprint

    assert fingerprint(0) == fingerprint(0)
    assert len({fingerprint(seed) for seed in range(4)}) > 1


def test_a_copy_and_links_have_the_fingerprint_of_the_files(class_folders, tmp_path):
    def fingerprint(folder):
        return TableData(str(folder)).part("labels").test.fingerprint

    copy, linked = tmp_path / "copy", tmp_path / "linked"
    shutil.copytree(class_folders, copy, copy_function=shutil.copy2)  # with the times of the files
    for path in class_folders.rglob("*.png"):
        link = linked / path.relative_to(class_folders)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    assert fingerprint(copy) == fingerprint(linked) == fingerprint(class_folders)
    (copy / "cat" / "1.png").rename(copy / "cat" / "other.png")
    Image.new("RGB", (40, 40)).save(linked / "cat" / "2.png")
    assert len({fingerprint(folder) for folder in (copy, linked)}) == 2


@pytest.mark.parametrize("names", ["132", "1233"])
def test_the_fingerprint_knows_order_and_repetition(names, tmp_path):
    """Features are stored by index: rows in another order are other images."""
    for name in "123":
        Image.new("RGB", (20, 20), (80 * int(name), 0, 0)).save(tmp_path / f"{name}.png")

    def of_rows(listed):
        rows = [f"{name}.png,number {place}" for place, name in enumerate(listed)]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,caption", *rows]))
        return TableData(str(tmp_path)).part("captions").test

    first = of_rows("123")
    assert of_rows("123").image_fingerprint == first.image_fingerprint
    others = of_rows(names)
    assert others.image_fingerprint != first.image_fingerprint
    assert others.fingerprint != first.fingerprint


def test_a_fingerprint_follows_depth_and_options_of_targets(depth_folder, voc_folder):
    def fingerprint(folder, kind, **options):
        return TableData(str(folder), DataOptions(**options)).part(kind).fingerprint

    before = fingerprint(depth_folder, "depth")
    assert fingerprint(depth_folder, "depth", depth_scale=500) != before
    os.utime(min((depth_folder / "depth").iterdir()), (1, 1))
    assert fingerprint(depth_folder, "depth") != before
    assert fingerprint(voc_folder, "masks", reduce_labels=True) != fingerprint(voc_folder, "masks")
