"""Answers in files are the pipeline's; a run goes on where it was; damaged images are left out and named."""

import csv
import json
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from releases import needs_heads
from tiny_folders import overflow
from tiny_tuning import TINY_DETECTOR, TINY_DPT
from transformers import pipeline

from modeling_radio import (
    RadioForDepthEstimation,
    RadioForImageClassification,
    RadioForInstanceSegmentation,
    RadioForObjectDetection,
    RadioForSemanticSegmentation,
    RadioModel,
    pipelines_radio,
)
from modeling_radio.api import predict
from modeling_radio.core.files import WriteError
from modeling_radio.core.opening import open_model
from modeling_radio.prediction import run as module
from modeling_radio.prediction.answers import NOT_FINITE, Answering
from modeling_radio.prediction.answers import _read_depth as read_depth
from modeling_radio.prediction.page import drawing_of
from modeling_radio.prediction.predict import main
from modeling_radio.prediction.run import predict_all, safe_name
from modeling_radio.prediction.settings import PredictSettings
from modeling_radio.prediction.writers import WRITERS


SIZES = [(70, 50), (33, 90), (64, 64), (120, 40)]
TILES = [{}, {"tile_size": 64}]


@pytest.fixture
def photographs(tmp_path):
    """A folder of images of several sizes, one of which is damaged, in folders of classes."""
    folder = tmp_path / "photographs"
    generator = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    (folder / "a" / "damaged.png").write_bytes((folder / "a" / "0.png").read_bytes()[:300])
    return folder


def answers(folder):
    return {row["image"]: row for row in map(json.loads, (folder / "predictions.jsonl").read_text().splitlines())}


def table(folder):
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def by_pipeline(checkpoint, task, name, image, **options):
    """The answer of transformers' pipeline of our class."""
    opened = open_model(str(checkpoint), device="cpu")
    parts = {"model": opened.model, "image_processor": opened.processor, "tokenizer": opened.tokenizer}
    pipe = pipeline(task, pipeline_class=getattr(pipelines_radio, f"Radio{name}Pipeline"), **parts)
    return pipe(Image.open(image).convert("RGB"), **options)


def test_classes(save_tuned, photographs, tmp_path, capsys):
    checkpoint = save_tuned(RadioForImageClassification)
    output = tmp_path / "answers"
    assert main([str(checkpoint), str(photographs), "--output", str(output), "--batch-size", "3"]) == 0
    said = capsys.readouterr().out
    assert "4 images, 1 without an answer (a/damaged.png" in said
    found, rows = answers(output), table(output)
    assert len(found) == 5
    assert "damaged.png" in found["a/damaged.png"]["error"]
    for row in rows:
        expected = by_pipeline(checkpoint, "image-classification", "ImageClassification", photographs / row["image"])
        assert row["label"] == expected[0]["label"]
        scores = {each["label"]: each["score"] for each in expected}
        assert {name: float(row[name]) for name in scores} == pytest.approx(scores, abs=1e-5)
    assert len(rows) == 4
    page = (output / "index.html").read_text()
    assert page.count("<img") == 4
    assert "a/0.png" in page


def test_classes_in_words(texts, photographs, tmp_path):
    settings = PredictSettings(
        checkpoint=str(texts), data=str(photographs), output=tmp_path / "x", classes=["cat", "dog"]
    )
    predict_all(settings)
    (row, *_) = table(tmp_path / "x")
    expected = by_pipeline(
        texts,
        "zero-shot-image-classification",
        "ZeroShotImageClassification",
        photographs / row["image"],
        candidate_labels=["cat", "dog"],
    )
    assert (row["label"], float(row["score"])) == (expected[0]["label"], pytest.approx(expected[0]["score"], abs=1e-5))
    with pytest.raises(ValueError, match=r"`output`.* other settings"):
        predict_all(settings.replace(classes=["cat"]))
    with pytest.raises(ValueError, match="`classes`"):
        predict_all(settings.replace(classes=None, output=tmp_path / "y"))


@pytest.mark.parametrize("tiles", TILES)
def test_maps_of_classes(tiles, save_tuned, photographs, tmp_path):
    checkpoint = save_tuned(RadioForSemanticSegmentation)
    predict_all(PredictSettings(checkpoint=str(checkpoint), data=str(photographs), output=tmp_path / "x", **tiles))
    assert (tmp_path / "x" / "index.html").read_text().count("<img") == len(SIZES)
    names = open_model(str(checkpoint), device="cpu").class_names
    for name, row in answers(tmp_path / "x").items():
        if "error" not in row:
            indices = np.asarray(Image.open(tmp_path / "x" / row["file"]))
            expected = by_pipeline(checkpoint, "image-segmentation", "ImageSegmentation", photographs / name, **tiles)
            for each in expected:
                (number,) = [number for number, label in names.items() if label == each["label"]]
                assert ((indices == number) == (np.asarray(each["mask"]) > 0)).all()
            assert sum(each["share"] for each in row["segments"]) == pytest.approx(1)


@pytest.mark.parametrize("tiles", TILES)
def test_depth(tiles, save_tuned, photographs, tmp_path):
    checkpoint = save_tuned(RadioForDepthEstimation, **TINY_DPT)
    predict_all(PredictSettings(checkpoint=str(checkpoint), data=str(photographs), output=tmp_path / "x", **tiles))
    for name, row in answers(tmp_path / "x").items():
        if "error" not in row:
            stored = np.asarray(Image.open(tmp_path / "x" / row["file"]))
            expected = by_pipeline(checkpoint, "depth-estimation", "DepthEstimation", photographs / name, **tiles)
            assert stored.dtype == np.uint16
            assert np.abs(stored / 1000 - expected["predicted_depth"].numpy().clip(0)).max() <= 0.0006


@needs_heads
@pytest.mark.parametrize(("has_masks", "tiles"), [(True, {}), *((False, tiles) for tiles in TILES)])
def test_objects(has_masks, tiles, save_tuned, photographs, tmp_path):
    from pycocotools import mask as coco_mask
    from pycocotools.coco import COCO

    checkpoint = save_tuned(RadioForInstanceSegmentation if has_masks else RadioForObjectDetection, **TINY_DETECTOR)
    output = tmp_path / "x"
    options = {"threshold": 0.0, **tiles}
    predict_all(PredictSettings(checkpoint=str(checkpoint), data=str(photographs), output=output, **options))
    task = "image-segmentation" if has_masks else "object-detection"
    name = "InstanceSegmentation" if has_masks else "ObjectDetection"
    coco = COCO(str(output / "predictions.coco.json"))
    assert len(coco.imgs) == 4
    assert coco.anns
    if not has_masks:
        assert not all(side.is_integer() for each in coco.anns.values() for side in each["bbox"])
    for image in coco.imgs.values():
        expected = by_pipeline(checkpoint, task, name, photographs / image["file_name"], **options)
        found = coco.imgToAnns[image["id"]]
        assert len(found) == len(expected) > 0
        for one, each in zip(found, expected, strict=True):
            assert coco.cats[one["category_id"]]["name"] == each["label"]
            assert one["score"] == pytest.approx(each["score"], abs=1e-5)
            if has_masks:
                assert (coco_mask.decode(coco.annToRLE(one)) == (np.asarray(each["mask"]) > 0)).all()
            else:
                left, top, width, height = one["bbox"]
                sides = (left, top, left + width, top + height)
                assert [int(side) for side in sides] == list(each["box"].values())


@needs_heads
@pytest.mark.parametrize(
    ("model_class", "fields", "options"),
    [
        (RadioForImageClassification, {}, {}),
        (RadioForImageClassification, {"problem_type": "multi_label_classification"}, {"threshold": 0.5}),
        (RadioForSemanticSegmentation, {}, {}),
        (RadioForSemanticSegmentation, {}, {"tile_size": 64}),
        (RadioForDepthEstimation, TINY_DPT, {}),
        (RadioForObjectDetection, TINY_DETECTOR, {}),
        (RadioForObjectDetection, TINY_DETECTOR, {"tile_size": 64}),
        (RadioForInstanceSegmentation, TINY_DETECTOR, {}),
    ],
)
def test_outputs_that_overflow_are_errors(model_class, fields, options, save_tuned, photographs, tmp_path):
    checkpoint = overflow(save_tuned(model_class, **fields))
    settings = PredictSettings(checkpoint=str(checkpoint), data=str(photographs), output=tmp_path / "x", **options)
    done = predict_all(settings)
    assert (done.num_images, len(done.skipped)) == (0, 5)
    found = answers(tmp_path / "x")
    assert all(
        found[f"{'ab'[n % 2]}/{n}.png"] == {"image": f"{'ab'[n % 2]}/{n}.png", **NOT_FINITE.values} for n in range(4)
    )


def test_one_image_that_overflows_leaves_the_others_of_its_batch(save_tuned):
    opened = open_model(str(save_tuned(RadioForImageClassification)), device="cpu")
    images = [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]
    expected = Answering(opened)(images)

    def spoil(module, inputs, output):
        output.logits[1, 0] = torch.inf

    opened.model.register_forward_hook(spoil)
    assert Answering(opened)(images) == [expected[0], NOT_FINITE, expected[2]]


def test_an_image_that_the_model_refuses_is_an_error_of_its_own(save_tuned, photographs, tmp_path, monkeypatch):
    class Picky(Answering):
        def __call__(self, images):
            if (64, 64) in [image.size for image in images]:
                raise ValueError("no squares")
            return super().__call__(images)

    monkeypatch.setattr(module, "Answering", Picky)
    checkpoint = str(save_tuned(RadioForImageClassification))
    done = predict_all(PredictSettings(checkpoint=checkpoint, data=str(photographs), output=tmp_path / "x"))
    assert done.num_images == 3
    assert answers(tmp_path / "x")["a/2.png"] == {"image": "a/2.png", "error": "no squares"}


@needs_heads
def test_tiles_of_small_and_narrow_images_have_a_patch_for_each_query(save_tuned, tmp_path):
    checkpoint = str(save_tuned(RadioForObjectDetection, **TINY_DETECTOR))
    sizes = [(50, 40), (30, 300), (300, 30), (1, 1), (200, 150)]
    (tmp_path / "data").mkdir()
    for number, size in enumerate(sizes):
        Image.new("RGB", size, "red").save(tmp_path / "data" / f"{number}.png")
    options = {"checkpoint": checkpoint, "data": str(tmp_path / "data"), "threshold": 0.0}
    done = predict_all(PredictSettings(**options, output=tmp_path / "x", tile_size=64))
    assert (done.num_images, done.skipped) == (5, [])
    for (width, height), row in zip(sizes, answers(tmp_path / "x").values(), strict=True):
        assert row["objects"]
        for each in row["objects"]:
            assert 0 <= each["box"][0] <= each["box"][2] <= width + 0.01
            assert 0 <= each["box"][1] <= each["box"][3] <= height + 0.01
    with pytest.raises(ValueError, match="`tile_size`"):
        predict_all(PredictSettings(**options, output=tmp_path / "y", tile_size=32))


@needs_heads
def test_classes_of_one_name_are_told_apart(save_tuned, photographs, tmp_path):
    names = ["crane (0)", "crane (1)", "dog"]

    def saved(model_class, **fields):
        folder = save_tuned(model_class, **fields)
        config = json.loads((folder / "config.json").read_text())
        config["id2label"], config["label2id"] = {"0": "crane", "1": "crane", "2": "dog"}, {"crane": 1, "dog": 2}
        config["score_thresholds"] = [0.0, 0.0, 1.0] if "Detection" in model_class.__name__ else None
        (folder / "config.json").write_text(json.dumps(config))
        done = predict_all(
            PredictSettings(checkpoint=str(folder), data=str(photographs), output=tmp_path / f"{folder.name}-out")
        )
        return done.output

    rows = table(saved(RadioForImageClassification))
    assert [*rows[0]] == ["image", "label", "score", *names]
    assert all(sum(float(row[name]) for name in names) == pytest.approx(1) for row in rows)
    output = saved(RadioForSemanticSegmentation)
    opened = open_model(str(tmp_path / "RadioForSemanticSegmentation"), device="cpu")
    for name, row in answers(output).items():
        if "error" not in row:
            picture = Image.open(photographs / name).convert("RGB")
            inputs = opened.processor(picture, return_tensors="pt")
            logits = opened.model(**inputs).logits
            ids = torch.nn.functional.interpolate(logits, picture.size[::-1], mode="bilinear")[0].argmax(0).numpy()
            assert (np.asarray(Image.open(output / row["file"])) == ids).mean() > 0.99
            assert {each["label"] for each in row["segments"]} == {names[number] for number in np.unique(ids)}
    output = saved(RadioForObjectDetection, **TINY_DETECTOR)
    coco = json.loads((output / "predictions.coco.json").read_text())
    assert coco["categories"] == [{"id": number, "name": name} for number, name in enumerate(names)]
    assert {each["category_id"] for each in coco["annotations"]} <= {0, 1}
    assert {row["label"] for row in table(output)} <= set(names[:2])


def test_a_run_goes_on_and_streams(save_tuned, photographs, tmp_path, monkeypatch):
    checkpoint = save_tuned(RadioForImageClassification)
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for path in sorted(photographs.rglob("*.png")):
                archive.add(path, path.name)
    settings = PredictSettings(
        checkpoint=str(checkpoint), data=f"{tmp_path}/*.tar", streaming=True, output=tmp_path / "x"
    )
    whole = predict(**settings.to_dict())
    assert [row["image"] for row in whole.answers() if "error" in row] == [f"{n}/damaged" for n in range(3)]
    assert (whole.num_images, len(whole.skipped)) == (12, 3)
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    next((tmp_path / "x" / "parts").glob("000001-*")).unlink()  # as a killed run leaves it
    (tmp_path / "x" / "predictions.csv").unlink()
    calls = []
    part = module._PredictedPart
    rows = part.rows
    monkeypatch.setattr(part, "rows", lambda each: (calls.append(each.shard.start), rows(each))[1])
    predict_all(settings.replace(batch_size=1))
    assert calls == [1]
    after = {path.name: path.read_bytes() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert after["predictions.csv"].count(b"\n") == before["predictions.csv"].count(b"\n")


def test_parts_and_maps_that_were_changed_or_removed_are_answered_again(save_tuned, photographs, tmp_path, caplog):
    options = {"checkpoint": str(save_tuned(RadioForSemanticSegmentation)), "data": str(photographs)}
    settings, output = PredictSettings(**options, output=tmp_path / "x"), tmp_path / "x"
    predict_all(settings)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    (part,) = (output / "parts").iterdir()
    mask = output / answers(output)["a/0.png"]["file"]
    spoiled = [(part, before[part][:-40]), (part, b""), (part, b"\xff"), (mask, before[mask][:-9]), (mask, None)]
    spoiled.append((mask, before[mask][:-1] + b"!"))
    for path, content in spoiled:
        path.unlink() if content is None else path.write_bytes(content)
        caplog.clear()
        predict_all(settings)
        assert str(part) in caplog.text
        assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
    caplog.clear()
    predict_all(settings)
    assert "answered again" not in caplog.text
    (output / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"`output`.*settings\.json"):
        predict_all(settings)


def test_an_output_that_is_removed_while_it_runs_does_not_come_back(save_tuned, photographs, tmp_path, monkeypatch):
    settings = PredictSettings(
        checkpoint=str(save_tuned(RadioForSemanticSegmentation)), data=str(photographs), output=tmp_path / "x"
    )

    class Removing(Answering):
        def __call__(self, images):
            shutil.rmtree(tmp_path / "x")
            return super().__call__(images)

    with monkeypatch.context() as patch:
        patch.setattr(module, "Answering", Removing)
        with pytest.raises(WriteError, match="x"):
            predict_all(settings)
    assert not (tmp_path / "x").exists()
    assert predict_all(settings).num_images == 4


def test_names_of_strangers_are_no_formulas_in_tables(save_tuned, tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("=1+1.png", "@a.png", "plain.png"):
        Image.new("RGB", (40, 40), "red").save(tmp_path / "data" / name)
    folder = save_tuned(RadioForImageClassification, problem_type="regression")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "=cmd|' /C calc'!A0", "1": "-dog", "2": "+cow"}
    (folder / "config.json").write_text(json.dumps(config))
    predict_all(PredictSettings(checkpoint=str(folder), data=str(tmp_path / "data"), output=tmp_path / "x"))
    rows = table(tmp_path / "x")
    assert [row["image"] for row in rows] == ["'=1+1.png", "'@a.png", "plain.png"]
    assert [*rows[0]][3:] == ["'=cmd|' /C calc'!A0", "'-dog", "'+cow"]
    assert all(row["label"].startswith("'") for row in rows)
    assert all(float(row["score"]) == max(float(row[name]) for name in [*row][3:]) for row in rows)
    assert [*answers(tmp_path / "x")] == ["=1+1.png", "@a.png", "plain.png"]


def test_what_has_no_answers_is_refused(save_tuned, photographs, tmp_path):
    backbone = save_tuned(RadioModel)
    options = {"data": str(photographs), "output": tmp_path / "x"}
    with pytest.raises(ValueError, match=r"`checkpoint`.*radio extract"):
        predict_all(PredictSettings(checkpoint=str(backbone), **options))
    classifier = save_tuned(RadioForImageClassification)
    for wrong, name in (({"classes": ["cat"]}, "`classes`"), ({"output": photographs / "x"}, "`output`")):
        with pytest.raises(ValueError, match=name):
            predict_all(PredictSettings(checkpoint=str(classifier), **{**options, **wrong}))
    assert not (tmp_path / "x").exists()


def test_splits_with_the_same_names_and_large_images(save_tuned, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_radio.prediction.answers.MOST_PIXELS", 1000)
    checkpoint = save_tuned(RadioForSemanticSegmentation)
    for split in ("train", "test"):
        (tmp_path / "data" / split).mkdir(parents=True)
        Image.open(photographs / "a" / "0.png").save(tmp_path / "data" / split / "x.png")
    predict_all(PredictSettings(checkpoint=str(checkpoint), data=str(tmp_path / "data"), output=tmp_path / "x"))
    files = {name: row["file"] for name, row in answers(tmp_path / "x").items()}
    assert len(files) == len(set(files.values())) == 2
    for file in files.values():
        assert Image.open(tmp_path / "x" / file).size == SIZES[0]


def test_the_page_shows_the_stored_answers(save_tuned, tmp_path):
    """Above two megapixels too, where the model saw a smaller image than the page would show it."""
    checkpoint = save_tuned(RadioForSemanticSegmentation)
    (tmp_path / "data").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (25, 32, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((1800, 1200))
    picture.save(tmp_path / "data" / "large.png")
    predict_all(PredictSettings(checkpoint=str(checkpoint), data=str(tmp_path / "data"), output=tmp_path / "x"))
    (row,) = answers(tmp_path / "x").values()
    numbers = {name: number for number, name in open_model(str(checkpoint), device="cpu").class_names.items()}
    shown = drawing_of(row, picture, "segments", numbers, tmp_path / "x")
    stored = np.asarray(Image.open(tmp_path / "x" / row["file"]))
    rows, cols = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in ((512, 1200), (768, 1800)))
    for region in shown.regions:
        assert np.array_equal(region.area, stored[rows][:, cols] == region.index)
    assert len(shown.regions) == len(row["segments"]) > 1
    page = (tmp_path / "x" / "index.html").read_text()
    assert all(f"{each['label']} {each['share']:.0%}" in page for each in table_of_shares(tmp_path / "x"))


def table_of_shares(folder):
    return [{"label": row["label"], "share": float(row["share"])} for row in table(folder)]


def test_another_format_is_an_entry_of_the_table(save_tuned, photographs, tmp_path, monkeypatch):
    def write(answers, target):
        target.write_text("\n".join(row["image"] for row in answers.answered()))

    monkeypatch.setitem(WRITERS["classes"], "names.txt", write)
    settings = PredictSettings(
        checkpoint=str(save_tuned(RadioForImageClassification)), data=str(photographs), output=tmp_path / "x"
    )
    assert "names.txt" in predict_all(settings).files
    assert sorted((tmp_path / "x" / "names.txt").read_text().split()) == ["a/0.png", "a/2.png", "b/1.png", "b/3.png"]


def test_only_maps_and_boxes_have_tiles(save_tuned, photographs, tmp_path):
    options = {"data": str(photographs), "output": tmp_path / "x"}
    for kind, side in ((RadioForImageClassification, 64), (RadioForSemanticSegmentation, 65)):
        checkpoint = str(save_tuned(kind))
        with pytest.raises(ValueError, match="`tile_size`"):
            predict_all(PredictSettings(checkpoint=checkpoint, tile_size=side, **options))


def test_a_wrong_setting_does_not_stop_the_right_one(save_tuned, photographs, tmp_path):
    options = {"checkpoint": str(save_tuned(RadioForImageClassification)), "data": str(photographs)}
    with pytest.raises(ValueError, match="`threshold`"):
        predict_all(PredictSettings(**options, output=tmp_path / "x", threshold=5.0))
    assert predict_all(PredictSettings(**options, output=tmp_path / "x", threshold=0.0)).num_images == 4


def test_depth_of_any_unit_is_stored():
    for largest, steps in ((60.0, 1000), (80.0, 256), (5000.0, 10), (1e9, 1)):
        found = {"predicted_depth": torch.tensor([[1.0, largest]])}
        answer = read_depth(found, (2, 1), {})
        assert answer.values["depth"]["steps"] == steps
        assert answer.image[0, 0] == steps


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", "c:\\a", "a\0", "a\nb", "a" * 300, "./a", "a//b"])
def test_names_of_strangers_stay_in_the_folder(name, tmp_path):
    assert "/" not in safe_name(name)
    assert safe_name("a/b.jpg") == "a/b.jpg"
