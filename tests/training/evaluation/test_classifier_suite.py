"""Tuned classifiers in the evaluator and the suite of `evaluate`, beside the plain count of right answers."""

import json

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from task_models import tiny_config
from torchvision.transforms.v2.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from model_cards.results import Results
from modeling_radio import RadioForImageClassification, RadioImageProcessor
from training.evaluation.classifier_suite import METRIC, classifier_suite, suite_measurements


evaluate = pytest.importorskip("evaluate")

NAMES = ["ant", "bee", "cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier")
    config = tiny_config(id2label=dict(enumerate(NAMES)), label2id={name: index for index, name in enumerate(NAMES)})
    model = RadioForImageClassification(config)
    torch.nn.init.normal_(model.classifier[1].weight)  # or all images would be of one class
    model.save_pretrained(path)
    RadioImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def opened(folder):
    """As a stranger opens the folder."""
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    return model, AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)


def labeled(names, count=12):
    images = [to_pil_image(torch.rand(3, 1, 1).expand(3, 32, 32) * torch.rand(3, 32, 32)) for _ in range(count)]
    features = Features({"image": Image(), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"image": images, "label": [index % len(names) for index in range(count)]}, features)


@pytest.fixture(scope="module")
def sets():
    torch.manual_seed(1)
    return {"first": labeled(NAMES), "other order": labeled(["cat", "dog", "bee", "ant"])}


def right_answers(opened, rows):
    """Share of right answers, without `evaluate`."""
    model, processor = opened
    with torch.no_grad():
        logits = model(**processor(list(rows["image"]), return_tensors="pt")).logits
    names = rows.features["label"].names
    predicted = [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
    return sum(name == names[label] for name, label in zip(predicted, rows["label"], strict=True)) / len(rows)


def test_the_evaluator_takes_a_folder_opened_by_auto_classes(opened, sets):
    model, processor = opened
    answer = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=model,
        feature_extractor=processor,
        data=sets["first"],
        metric=evaluate.load(str(METRIC)),
        label_mapping=model.config.label2id,
    )
    assert answer["accuracy"] == pytest.approx(right_answers(opened, sets["first"]))
    assert 0 < answer["accuracy"] < 1


def test_suite_saved_answers_and_results_agree(opened, sets, tmp_path):
    model, processor = opened
    answers = classifier_suite(processor, model.config.label2id, sets).run(model)
    expected = {name: right_answers(opened, rows) for name, rows in sets.items()}
    assert {answer["task_name"]: answer["accuracy"] for answer in answers} == pytest.approx(expected)
    assert len(set(expected.values())) == 2
    path = evaluate.save(tmp_path / "evaluate.json", answers=answers)
    Results(suite_measurements(answers)).save(tmp_path / "results.json")
    saved = json.loads(path.read_text())["answers"]
    measured = Results.load(tmp_path / "results.json").measurements
    assert [(row.dataset, row.metric, row.value) for row in measured] == [
        (answer["task_name"], metric, answer[metric.replace(" ", "_")])
        for answer in saved
        for metric in ("accuracy", "balanced accuracy")
    ]


def test_options_reach_the_evaluator(opened, sets):
    model, processor = opened
    suite = classifier_suite(
        processor, model.config.label2id, {"first": sets["first"]}, strategy="bootstrap", n_resamples=20, random_state=0
    )
    (answer,) = suite.run(model)
    low, high = answer["accuracy"]["confidence_interval"]
    assert low <= answer["accuracy"]["score"] <= high
    assert low < high
    accuracy, balanced = suite_measurements([answer], "mine")
    assert (accuracy.model, accuracy.value) == ("mine", answer["accuracy"]["score"])
    assert (accuracy.low, accuracy.high) == (low, high)
    undefined = {**answer, "accuracy": {"score": 1.0, "confidence_interval": (float("nan"), float("nan"))}}
    assert suite_measurements([undefined])[0].low is None
    assert balanced.metric == "balanced accuracy"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (labeled(["dog", "fox"]), "Classes of 'mine' must be among the model's, ant, bee, cat, got dog, fox. Rename"),
        (
            labeled(NAMES).rename_column("label", "kind"),
            r"`columns` must be of 'mine', \['image', 'kind'\], got \['label'\]",
        ),
        (labeled(NAMES).cast_column("label", Value("int64")), "Labels of 'mine' must be a ClassLabel with names"),
    ],
)
def test_sets_that_do_not_fit_are_refused(opened, rows, message):
    model, processor = opened
    with pytest.raises(ValueError, match=message):
        classifier_suite(processor, model.config.label2id, {"mine": rows})
