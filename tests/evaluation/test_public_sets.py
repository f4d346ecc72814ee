"""Public sets in folders of their official layout: ids of classes, numbers of images, presets to the end."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from modeling_radio.evaluation.data_tables import TableData, imagenet_names_of
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.public_sets import MaskSet, find_public, public_sets
from modeling_radio.evaluation.settings import (
    CLASS_LAYOUTS,
    LAYOUTS,
    MASK_LAYOUTS,
    PRESETS,
    DataOptions,
    EvaluationSettings,
)
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.classification import is_right
from modeling_radio.evaluation.tasks.registry import find_task


# An image, its class map and ids in it with the index of their class: by the sets' own documentation.
OFFICIAL = {
    "ade20k": ("images/validation/a.jpg", "annotations/validation/a.png", {0: 255, 1: 0, 150: 149}),
    "voc": ("JPEGImages/a.jpg", "SegmentationClass/a.png", {0: 0, 20: 20, 255: 255}),
    "context59": ("JPEGImages/a.jpg", "SegmentationClassContext/a.png", {0: 255, 1: 0, 59: 58}),
    "cityscapes": (
        "leftImg8bit/val/ulm/a_leftImg8bit.png",
        "gtFine/val/ulm/a_gtFine_labelIds.png",
        {0: 255, 7: 0, 29: 255, 31: 16, 33: 18},
    ),
    "coco-stuff": (
        "images/val2017/a.jpg",
        "annotations/val2017/a.png",
        {0: 0, 11: 255, 12: 11, 89: 79, 91: 80, 181: 170},
    ),
}


def test_each_set_has_its_files_and_ids(build_public_set):
    masks = {name: public for name, public in public_sets().items() if isinstance(public, MaskSet)}
    assert set(OFFICIAL) == set(MASK_LAYOUTS) == set(masks)
    assert {find_public(name).folder for name in LAYOUTS} > {public.folder for public in masks.values()}
    assert {name: len(public.classes) for name, public in masks.items()} == {
        "ade20k": 150,
        "voc": 21,
        "context59": 59,
        "cityscapes": 19,
        "coco-stuff": 171,
    }
    for name, (image, target, indices) in OFFICIAL.items():
        folder = build_public_set(name)
        assert (folder / image).is_file()
        ids = np.array(list(indices), np.uint8)[None].repeat(24, 0)
        Image.fromarray(ids).save(folder / target)
        Image.new("RGB", ids.shape[::-1]).save(folder / image)
        part = TableData(str(folder), DataOptions(layout=name)).part("masks")
        assert (len(part.train), len(part.test)) == (3, 2)
        assert part.class_names == masks[name].class_names
        assert part.test.masks[0][0].tolist() == list(indices.values())


@pytest.mark.parametrize("preset", [name for name, values in PRESETS.items() if values.get("layout") in MASK_LAYOUTS])
def test_presets_run_to_the_end(preset, build_public_set, reference_folder):
    small = {"size": 32, "window_px": 32, "shorter_px": PRESETS[preset].get("shorter_px") and 48, "probe_steps": 2}
    data = str(build_public_set(PRESETS[preset]["layout"]))
    settings = EvaluationSettings(checkpoint=reference_folder, data=data, preset=preset, templates="plain", **small)
    assert settings.tasks is not None
    evaluation = Evaluation(RadioFeatures.open(reference_folder, size_px=32), TableData(data, settings), settings)
    measured = find_task(settings.tasks[0]).measure(evaluation)
    assert {each.metric for each in measured} >= {"mIoU", "pixel accuracy"}
    assert all(0 <= each.value <= 1 for each in measured)
    assert ("mIoU, no background" in {each.metric for each in measured}) == (preset == "voc-words")


def test_a_part_of_a_set_is_refused(build_public_set, pixels):
    def refuse(folder, layout, named="`data` .* got 1"):
        with pytest.raises(ValueError, match=named):
            TableData(str(folder), DataOptions(layout=layout))

    folder = build_public_set("cityscapes")
    (folder / "gtFine" / "val" / "ulm" / "b_gtFine_labelIds.png").unlink()
    refuse(folder, "cityscapes")
    (folder / "leftImg8bit" / "val" / "ulm" / "a_leftImg8bit.png").unlink()
    refuse(folder, "cityscapes", r"`data` .*a_leftImg8bit\.png")
    shutil.rmtree(folder / "gtFine" / "val")
    refuse(folder, "cityscapes", r"`data` .*_gtFine_labelIds\.png")
    folder = build_public_set("ade20k")
    (folder / "images" / "validation" / "b.jpg").write_bytes(b"damaged")
    refuse(folder, "ade20k")
    folder = build_public_set("voc")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("../../a\nb\n")
    refuse(folder, "voc", r"val\.txt")  # lists name files of the set only
    folder = build_public_set("coco-stuff")
    shutil.rmtree(folder / "annotations" / "train2017")
    evaluation = pixels(TableData(str(folder), DataOptions(layout="coco-stuff")))
    with pytest.raises(ValueError, match=r"`data` .*train split"):
        find_task("segmentation_probe").measure(evaluation)


def test_data_with_a_train_split_take_no_other(imagenet_train):
    options = DataOptions(layout="imagenet-1k", train_data=str(imagenet_train))
    refused("train_data", lambda: TableData(str(imagenet_train), options))


@pytest.fixture
def imagenet_folder(tmp_path, monkeypatch) -> Path:
    """ImageNet-A of two classes with three images, which is all that it has then."""
    for wnid, count in (("n01498041", 2), ("n01531178", 1)):  # stingray and goldfinch
        for number in range(count):
            place = tmp_path / "imagenet-a" / wnid / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (100 * number, 0, 0)).save(place)
    for name in ("imagenet-a", "imagenet-v2", "imagenet-1k", "imagenet-real"):
        public = replace(public_sets()[name], counts={"validation": 3})
        monkeypatch.setitem(public_sets(), name, public)
    return tmp_path / "imagenet-a"


def test_variants_of_imagenet_have_the_names_of_their_classes(imagenet_folder, text_folder, pixels):
    settings = EvaluationSettings(
        checkpoint=text_folder, data=str(imagenet_folder), preset="imagenet-a", templates="plain"
    )
    data = TableData(str(imagenet_folder), settings)
    assert data.part("labels").class_names == ("stingray", "goldfinch")
    assert imagenet_names_of(["n02797295", "97"]) == ["wheelbarrow", "duck"]  # torchvision: barrow, drake
    measured = find_task("zero_shot").measure(Evaluation(RadioFeatures.open(text_folder), data, settings))
    assert [each.metric for each in measured] == ["accuracy"]
    for wnid, index in (("n01498041", "6"), ("n01531178", "11")):
        (imagenet_folder / wnid).rename(imagenet_folder / index)
    options = DataOptions(layout="imagenet-v2", class_names="imagenet-1k")
    part = TableData(str(imagenet_folder), options).part("labels")
    assert dict(zip(part.class_names, part.test.labels.bincount().tolist(), strict=True)) == {
        "stingray": 2,
        "goldfinch": 1,
    }
    with pytest.raises(ValueError, match=r"`data` .*train split"):
        find_task("knn").measure(pixels(TableData(str(imagenet_folder), options.replace(layout="imagenet-1k"))))
    (imagenet_folder / "6" / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"`data` .* got 2"):
        TableData(str(imagenet_folder), options)


@pytest.fixture
def imagenet_train(imagenet_folder, monkeypatch) -> Path:
    """ImageNet-1k with three classes, two of which are ImageNet-A's: blue, green and red."""
    folder = imagenet_folder.parent / "imagenet-1k"
    for wnid, color in (("n01498041", (0, 0, 200)), ("n01530575", (0, 99, 0)), ("n01531178", (200, 0, 0))):
        for split, count in (("train", 2), ("val", 1)):
            for number in range(count):
                path = folder / split / wnid / f"{number + 1}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), color).save(path)
    monkeypatch.setitem(
        public_sets(), "imagenet-1k", replace(public_sets()["imagenet-1k"], counts={"train": 6, "validation": 3})
    )
    return folder


@pytest.mark.parametrize("layout", ["imagenet-a", "imagenet-v2"])
def test_variants_of_imagenet_learn_from_imagenet(layout, imagenet_folder, imagenet_train, pixels):
    for wnid, index, color in (("n01498041", "6", (9, 9, 90)), ("n01531178", "11", (90, 9, 9))):
        for path in (imagenet_folder / wnid).iterdir():
            Image.new("RGB", (20, 20), color).save(path)
        (imagenet_folder / wnid).rename(imagenet_folder / (index if layout == "imagenet-v2" else wnid))
    options = DataOptions(layout=layout, class_names="imagenet-1k", train_data=str(imagenet_train))
    data = TableData(str(imagenet_folder), options)
    part = data.part("labels")
    colors = [image[0, 0, 0].item() for image in part.train.images]
    names = [part.class_names[label] for label in part.train.labels]
    assert list(zip(names, colors, strict=True)) == [("stingray", 0)] * 2 + [("goldfinch", 200)] * 2
    assert [source.name for source in data.sources()] == ["imagenet-a", "imagenet-1k"]
    for task in ("knn", "logistic_regression"):
        measured = {each.metric: each.value for each in find_task(task).measure(pixels(data, neighbors=2))}
        assert measured["accuracy"] == 1
    (imagenet_train / "val" / "n01498041").rename(imagenet_train / "val" / "n02797295")
    shutil.rmtree(imagenet_train / "train")
    with pytest.raises(ValueError, match=r"`train_data`.*n01498041"):
        TableData(str(imagenet_folder), options)


@pytest.mark.parametrize("preset", CLASS_LAYOUTS)
def test_presets_of_imagenet_run_to_the_end(preset, imagenet_train, reference_folder, monkeypatch):
    counts = {"train": 6, "validation": 3}
    monkeypatch.setitem(public_sets(), preset, replace(public_sets()[preset], counts=counts))
    (imagenet_train / "real.json").write_text("[[0, 2]]")
    folder = imagenet_train if preset in ("imagenet-1k", "imagenet-real") else imagenet_train / "val"
    settings = EvaluationSettings(checkpoint=reference_folder, data=str(folder), preset=preset, templates="plain")
    evaluation = Evaluation(RadioFeatures.open(reference_folder), TableData(str(folder), settings), settings)
    for name in settings.tasks:
        measured = find_task(name).measure(evaluation)
        assert measured[0].metric == "accuracy"
        assert all(0 <= each.value <= 1 for each in measured)


def test_several_classes_may_be_right(imagenet_folder):
    for number, path in enumerate(sorted(imagenet_folder.rglob("*.jpg"))):
        path.rename(path.with_name(f"ILSVRC2012_val_{number + 1:08d}.jpg"))
    (imagenet_folder / "real.json").write_text("[[1, 3], [], [0]]")
    options = DataOptions(layout="imagenet-real")
    test = TableData(str(imagenet_folder), options).part("labels").test
    assert test.answers == [[1, 3], [], [0]]
    assert is_right(torch.tensor([3, 0, 1]), test).tolist() == [True, False]
    (imagenet_folder / "real.json").write_text("[[1, 3], []]")
    with pytest.raises(ValueError, match=r"`data`.*00000003"):
        TableData(str(imagenet_folder), options).part("labels")
