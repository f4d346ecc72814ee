"""A tuned model's answers: the numbers of its run, of `radio predict` and of the server, scored by hand."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, List, Value
from matplotlib.figure import Figure
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from sklearn.metrics import average_precision_score
from tiny_tuning import TINY_DETECTOR, TINY_DPT, run_settings, save_splits
from tuning_fixtures import _short_and_apart

from modeling_radio import RadioConfig, RadioForImageClassification
from modeling_radio.api import evaluate, predict
from modeling_radio.core.timing import Clock
from modeling_radio.metrics.results import STUDENT, Results
from modeling_radio.model_cards.build import write_card
from modeling_radio.tuning.record import record_run
from modeling_radio.tuning.run import FINAL, SETTINGS, FinetuningRun


__all__ = ["_short_and_apart"]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

SIZE = (48, 32)
"""Of the images, and of the tiny model's inputs: predictions at the size of an image need no resizing."""
LARGER = (240, 160)
"""The same for objects: new heads find boxes of a twentieth of the image, whose corners the pipeline rounds."""
CLASSES = ("bird", "cat", "dog")


def picture(number, size=SIZE):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def save_all(folder, size=SIZE):
    """Pictures as files."""
    folder.mkdir(parents=True)
    for number in range(6):
        picture(number, size).save(folder / f"{number}.png")


def tuned(base, data, output, task, **options):
    """Save what a run of no step saves, with the random head of its seed, and return its validation metrics."""
    run = FinetuningRun(run_settings(base, data, output, task, **options))
    run.trainer.evaluate()
    metrics = run.trainer.metrics.latest
    output.mkdir(exist_ok=True)
    run.settings.save(output / SETTINGS)
    run.save(run.model.state_dict(), record_run(run.task, metrics, Clock()))
    return metrics


def measure(checkpoint, data, **options):
    """The scores with few draws."""
    settings = {"checkpoint": str(checkpoint), "data": str(data), "num_workers": 0, "resamples": 100, **options}
    found = evaluate(**settings)
    return {name.partition(" ")[2]: value for name, value in found.scores.items()}


def answers_of(checkpoint, data, output, **options):
    return {
        each["image"]: each
        for each in predict(checkpoint=str(checkpoint), data=str(data), output=output, **options).answers()
    }


def served(checkpoint, images, query=""):
    """The server's answers for images, in a process of ours."""
    pytest.importorskip("fastapi", reason="needs the extra `app`")
    from starlette.testclient import TestClient

    from modeling_radio.serving.serve import ServeSettings, build_app

    with TestClient(build_app(ServeSettings(checkpoint=str(checkpoint), device="cpu"))) as client:
        for image in images:
            body = io.BytesIO()
            image.save(body, "png")
            yield client.post(f"/predict{query}", content=body.getvalue()).json()


def labels_of(answers):
    return [answer["classes"][0]["label"] for answer in answers]


@pytest.fixture
def pets(tmp_path):
    """Class folders with a split of their own, of which the test split lacks a class."""
    for split, classes in (("train", CLASSES), ("test", CLASSES[1:])):
        for number, name in enumerate(classes * 2):
            path = tmp_path / "pets" / split / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(10 * len(classes) + number).save(path)
    return tmp_path / "pets"


@pytest.mark.tour
@pytest.mark.parametrize("task", ["image-classification", "zero-shot-image-classification"])
def test_classes(task, base, pets, tmp_path, request):
    words = {}
    if task.startswith("zero"):
        base, words = request.getfixturevalue("zero_shot_folder"), {"classes": list(CLASSES)}
    expected = tuned(base, pets, tmp_path / "run", task)
    output = tmp_path / "test.json"
    assert measure(tmp_path / "run", pets, output=str(output)).items() >= expected.items()
    results = Results.load(output)
    assert {each.model for each in results.measurements} == {STUDENT, "always the most frequent class"}
    assert all(each.low <= each.value <= each.high for each in results.measurements if each.model == STUDENT)
    assert results.by_class["cat"]["images"] == 2
    assert output.with_suffix(".html").read_text().count("<img") >= 3
    card = write_card(tmp_path / "run" / FINAL, results).read_text()
    assert f"{expected['accuracy']:.3f}" in card
    assert measure(tmp_path / "run", pets / "test")["accuracy"] == expected["accuracy"]
    found = answers_of(tmp_path / "run", pets / "test", tmp_path / "answers", **words)
    is_right = [each["classes"][0]["label"] == name.partition("/")[0] for name, each in found.items()]
    assert np.mean(is_right) == pytest.approx(expected["accuracy"])
    images = [Image.open(pets / "test" / name) for name in found]
    replies = served(tmp_path / "run", images, f"?classes={','.join(CLASSES)}" if words else "")
    assert labels_of(replies) == labels_of(found.values())


@pytest.mark.tour
def test_several_classes_and_numbers(base, tmp_path):
    several = [["cat"], ["dog", "cat"], [], ["dog"]]
    for name, feature, labels in (
        ("several", List(Value("string")), several),
        ("numbers", Value("float64"), [1.5, 2.0, 0.5, 4.0]),
    ):
        data = save_splits(tmp_path / name, feature, labels, labels[::-1])
        expected = tuned(base, data, tmp_path / f"run-{name}", "image-classification")
        scores = measure(tmp_path / f"run-{name}", data)
        assert {each: scores[each] for each in expected} == pytest.approx(expected)
        Dataset.load_from_disk(data / "validation").to_parquet(tmp_path / f"{name}.parquet")
        found = list(
            answers_of(tmp_path / f"run-{name}", tmp_path / f"{name}.parquet", tmp_path / f"x-{name}").values()
        )
        images = Dataset.load_from_disk(data / "validation")["image"]
        assert labels_of(served(tmp_path / f"run-{name}", images)) == labels_of(found)
        if name == "numbers":
            errors = [abs(each["classes"][0]["score"] - true) for each, true in zip(found, labels[::-1], strict=True)]
            assert np.mean(errors) == pytest.approx(expected["mean_absolute_error"], abs=1e-4)
        else:
            shares = [{one["label"]: one["score"] for one in each["classes"]} for each in found]
            by_hand = [
                average_precision_score([kind in each for each in labels[::-1]], [each[kind] for each in shares])
                for kind in ("cat", "dog")
            ]
            assert np.mean(by_hand) == pytest.approx(expected["mean_average_precision"], abs=1e-4)


@pytest.fixture
def scenes(tmp_path):
    """A function that saves images with masks or depth maps in the folders of two splits."""

    def save(kind, draw):
        for split in ("train", "test"):
            save_all(tmp_path / "scenes" / split / "images")
            (tmp_path / "scenes" / split / kind).mkdir()
            for number in range(6):
                draw(np.random.default_rng(number), tmp_path / "scenes" / split / kind / str(number))
        return tmp_path / "scenes"

    return save


@pytest.mark.tour
def test_maps_of_classes(base, scenes, tmp_path):
    def draw(random, path):
        ids = random.integers(0, 3, SIZE[::-1], dtype=np.uint8)
        ids[:4] = 255
        Image.fromarray(ids).save(path.with_suffix(".png"))

    data = scenes("masks", draw)
    expected = tuned(base, data, tmp_path / "run", "semantic-segmentation")
    assert measure(tmp_path / "run", data).items() >= expected.items()
    images = data / "test" / "images"
    assert measure(tmp_path / "run", data, tile_size=48).items() >= expected.items()  # one tile is the whole
    assert measure(tmp_path / "run", data, size=64, tile_size=32) != measure(tmp_path / "run", data, size=64)
    found = answers_of(tmp_path / "run", images, tmp_path / "answers")
    pairs = []
    for name, reply in zip(found, served(tmp_path / "run", map(Image.open, map(images.joinpath, found))), strict=True):
        assert [each["label"] for each in reply["segments"]] == [each["label"] for each in found[name]["segments"]]
        stored = (tmp_path / "answers" / found[name]["file"], data / "test" / "masks" / name)
        pairs.append(np.stack([np.asarray(Image.open(path)) for path in stored])[:, 4:])
    predicted, true = np.concatenate(pairs, axis=1)
    by_hand = [((predicted == n) & (true == n)).sum() / ((predicted == n) | (true == n)).sum() for n in range(3)]
    assert np.mean(by_hand) == pytest.approx(expected["mean_iou"])
    # The same classes in another order are found by their names.
    before = measure(tmp_path / "run", data / "test")
    for path in (data / "test" / "masks").iterdir():
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 255, 255, 2 - ids.clip(max=2)).astype(np.uint8)).save(path)
    (data / "test" / "classes.txt").write_text("class 2\nclass 1\nclass 0\n")
    assert measure(tmp_path / "run", data / "test") == before
    (data / "test" / "classes.txt").write_text("class 2\nclass 1\ntree\n")
    with pytest.raises(ValueError, match="'tree'"):
        measure(tmp_path / "run", data / "test")


@pytest.mark.tour
def test_depth(base, scenes, tmp_path):
    data = scenes("depth", lambda random, path: np.save(path, random.random(SIZE[::-1]).astype(np.float32) + 1))
    expected = tuned(base, data, tmp_path / "run", "depth-estimation", config=TINY_DPT)
    scores = measure(tmp_path / "run", data, output=str(tmp_path / "test.json"))
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    constant = {
        each.metric: each.value for each in Results.load(tmp_path / "test.json").measurements if each.model != STUDENT
    }
    truths = [np.load(path) for path in sorted((data / "test" / "depth").iterdir())]
    mean = np.mean(truths)
    assert constant["abs_rel"] == pytest.approx(np.mean([abs(mean - each) / each for each in truths]), rel=1e-4)
    images = data / "test" / "images"
    found = answers_of(tmp_path / "run", images, tmp_path / "answers")
    errors = []
    for name, reply in zip(found, served(tmp_path / "run", map(Image.open, map(images.joinpath, found))), strict=True):
        assert reply["depth"]["max"] == pytest.approx(found[name]["depth"]["max"], rel=1e-3)
        stored = np.asarray(Image.open(tmp_path / "answers" / found[name]["file"])) / found[name]["depth"]["steps"]
        true = np.load(data / "test" / "depth" / f"{Path(name).stem}.npy")
        errors.append(abs(stored - true) / true)
    assert np.mean(errors) == pytest.approx(expected["abs_rel"], abs=1e-3)


def annotate(folder, objects, has_masks):
    """Write COCO annotations of some objects of each image."""
    content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}, {"id": 2, "name": "dog"}]}
    numbers = {each["name"]: each["id"] for each in content["categories"]}
    for image, name in enumerate(objects):
        content["images"].append({"id": image, "file_name": name, "width": LARGER[0], "height": LARGER[1]})
        for one in objects[name]:
            left, top, right, bottom = one["box"]
            entry = {"id": len(content["annotations"]) + 1, "image_id": image, "category_id": numbers[one["label"]]}
            entry |= {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            entry |= {"iscrowd": 0, **({"segmentation": one["mask"]} if has_masks else {})}
            content["annotations"].append(entry)
    (folder / "_annotations.coco.json").write_text(json.dumps(content))


@pytest.mark.tour
@pytest.mark.parametrize("task", ["object-detection", "instance-segmentation"])
def test_objects(task, base, tmp_path, monkeypatch):
    """The true objects are some of those that the model finds, so that it scores."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: Path(path).touch())
    data, has_masks = tmp_path / "data", task.startswith("instance")
    some = {"label": "cat", "box": [4, 4, 40, 28], "mask": [[4, 4, 40, 4, 40, 28, 4, 28]]}
    for split in ("train", "test"):
        save_all(data / split, LARGER)
        annotate(data / split, {f"{number}.png": [some, {**some, "label": "dog"}] for number in range(6)}, has_masks)
    options = {"config": TINY_DETECTOR, "size": LARGER[::-1]}
    tuned(base, data, tmp_path / "first", task, **options)
    found = answers_of(tmp_path / "first", data / "test", tmp_path / "x", threshold=0.0)
    for split in ("train", "test"):
        objects = {
            name: [each for each in answer["objects"][1:4] if each["box"][2] > each["box"][0]]
            for name, answer in found.items()
        }
        annotate(data / split, objects, has_masks)
    expected = tuned(base, data, tmp_path / "run", task, **options)
    assert expected["mask_map_50" if has_masks else "map"] > 0.1
    scores = measure(tmp_path / "run", data)
    assert {name: scores[name] for name in expected} == pytest.approx(expected)
    found = answers_of(tmp_path / "run", data / "test", tmp_path / "answers", threshold=0.0)
    if not has_masks:  # masks are scored at a quarter of the size of the inputs
        truth = COCO(str(data / "test" / "_annotations.coco.json"))
        predicted = json.loads((tmp_path / "answers" / "predictions.coco.json").read_text())
        images = {each["id"]: each["file_name"] for each in predicted["images"]}
        numbers = {each["file_name"]: each["id"] for each in truth.dataset["images"]}
        names = {each["id"]: each["name"] for each in predicted["categories"]}
        ids = {each["name"]: each["id"] for each in truth.dataset["categories"]}
        rows = [
            {**each, "image_id": numbers[images[each["image_id"]]], "category_id": ids[names[each["category_id"]]]}
            for each in predicted["annotations"]
        ]
        by_hand = COCOeval(truth, truth.loadRes(rows), "bbox")
        by_hand.evaluate()
        by_hand.accumulate()
        by_hand.summarize()
        assert by_hand.stats[1] == pytest.approx(expected["map_50"], abs=0.01)
    files = [Image.open(data / "test" / name) for name in found]
    for answer, reply in zip(found.values(), served(tmp_path / "run", files), strict=True):
        certain = [each["label"] for each in answer["objects"] if each["score"] > 0.5]
        assert [each["label"] for each in reply["objects"]][: len(certain)] == certain


@pytest.fixture
def classifier(save_tuned):
    """A random classifier of images of any shape, and its classes."""
    folder = save_tuned(RadioForImageClassification)
    return folder, list(RadioConfig.from_pretrained(folder).id2label.values())


def class_folders(folder, names):
    """Two pictures of each class."""
    for number, name in enumerate([*names, *names]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture(number).save(folder / name / f"{number}.png")
    return folder


def test_images_of_any_source_are_measured(classifier, tmp_path):
    """Ids of a source with names of its own are found by name; a stream has the numbers of a table."""
    checkpoint, names = classifier
    data = class_folders(tmp_path / "data", names[::-1])
    scores = measure(checkpoint, data)
    answers = answers_of(checkpoint, data, tmp_path / "answers").items()
    is_right = [each["classes"][0]["label"] == name.partition("/")[0] for name, each in answers]
    assert scores["accuracy"] == pytest.approx(np.mean(is_right))
    turned = ClassLabel(names=names[::-1])
    labels = [turned.str2int(path.parent.name) for path in sorted(data.rglob("*.png"))]
    images = [Image.open(path) for path in sorted(data.rglob("*.png"))]
    table = Dataset.from_dict({"image": images, "cls": labels}).cast_column("cls", turned)
    table.to_parquet(tmp_path / "test.parquet")
    assert measure(checkpoint, tmp_path / "test.parquet", label_column="cls") == pytest.approx(scores)
    assert measure(checkpoint, tmp_path / "test.parquet", streaming=True) == pytest.approx(scores)
    assert measure(checkpoint, data, max_images=2)["accuracy"] in (0, 0.5, 1)
    of_backbone = measure(checkpoint, data, tasks=["knn"], neighbors=1)
    assert of_backbone.keys() != scores.keys()


def test_what_cannot_be_measured_is_refused(classifier, tmp_path):
    checkpoint, names = classifier
    data = class_folders(tmp_path / "data", [names[0], "unicorn"])
    with pytest.raises(ValueError, match=r"label 'unicorn' of test image"):
        measure(checkpoint, data)
    save_splits(tmp_path / "several", List(Value("string")), [[names[0]]], [[names[0]], []])
    with pytest.raises(ValueError, match=r"`data`.*multi_label"):
        measure(checkpoint, tmp_path / "several")
    of_others = {"neighbors": 3}, {"compare": ["pixels"]}, {"mask_column": "mask"}
    for option in (*of_others, {"base": "x"}, {"size": 10_000}, {"tile_size": 32}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}`"):
            measure(checkpoint, class_folders(tmp_path / "known", names), **option)
    with pytest.raises(ValueError, match="no split 'night'"):
        measure(checkpoint, tmp_path / "known", test_split="night")
