"""Our metrics as modules of `evaluate`: opened here, from a copy and from a Space, and beside our functions."""

import json
import re
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from datasets import ClassLabel, Dataset, Image
from serving import serve
from task_models import SIZE, build, images, tiny_config
from torchvision.transforms.v2.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from modeling_radio import RadioForImageClassification, RadioImageProcessor
from training.evaluation.metrics.dense import IGNORE_INDEX, class_sums, mean_iou_of_sums
from training.evaluation.metrics.fidelity import adaptor_fidelity
from training.evaluation.metrics.knn import knn_accuracy, retrieval_scores
from training.evaluation.metrics.representation import mean_cosine
from training.evaluation.models.base import Features


evaluate = pytest.importorskip("evaluate")

METRICS = Path(__file__).parents[3] / "training" / "evaluation" / "metrics"
PAIR = {"predictions": [[1.0, 0.0], [0.0, 1.0]], "references": [[3.0, 0.0], [0.0, 3.0]]}
GALLERY = {"gallery": [[1.0, 0.1], [0.2, 1.0], [1.0, 0.3], [1.0, 0.9]], "gallery_labels": [0, 1, 1, 1]}
FOUND = {"mAP": 1.0, "hit rate@1": 1.0, "recall@1": 2 / 3, "hit rate@2": 1.0, "recall@2": 5 / 6}
VOTES = {"gallery": [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], "gallery_labels": [0, 0, 1], "k": 1}
DEPTHS = {"predictions": [[[1.0, 2.0]], [[5.0], [3.0]]], "references": [[[1.0, 4.0]], [[4.0], [0.0]]]}
MASKS = {"predictions": [[[0, 0, 1, 1]], [[1], [1]]], "references": [[[0, 1, 1, 255]], [[1], [0]]], "num_classes": 3}
EXAMPLES = {
    "accuracy": (
        {"predictions": [0, 0, 0, 1], "references": [0, 0, 1, 1]},
        {"accuracy": 0.75, "balanced_accuracy": 0.75},
    ),
    "depth_errors": (DEPTHS, {"abs_rel": 0.25, "rmse": 1.2909944, "delta1": 0.3333333}),
    "effective_rank": ({"data": [[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]]}, {"effective_rank": 2.0}),
    "feature_cosine": (PAIR, {"cosine": 1.0, "centered_cosine": 0.4472136}),
    "image_retrieval": (
        {"predictions": PAIR["predictions"], "references": [0, 1], **GALLERY, "ranks": [1, 2]},
        FOUND,
    ),
    "knn_accuracy": (
        {"predictions": [[1.0, 0.2], [0.1, 1.0], [1.0, 0.9]], "references": [0, 1, 1], **VOTES},
        {"knn_accuracy": 2 / 3},
    ),
    "mean_iou": (MASKS, {"mean_iou": 5 / 12, "pixel_accuracy": 0.6}),
}
"""Arguments of each module's `compute` and its answer, by hand."""


def load(name):
    return evaluate.load(str(METRICS / f"{name}.py"))


@pytest.mark.parametrize("name", EXAMPLES)
def test_answers_are_those_by_hand(name):
    arguments, expected = EXAMPLES[name]
    assert load(name).compute(**arguments) == pytest.approx(expected)


def test_every_module_has_an_example():
    texts = {path.stem: path.read_text() for path in METRICS.glob("*.py")}
    assert {name for name, text in texts.items() if "import evaluate\n" in text} == set(EXAMPLES)


STRANGER = """
import json, os, sys
os.environ.update(HF_ENDPOINT=sys.argv[1], HF_UPDATE_DOWNLOAD_COUNTS="0", HF_MODULES_CACHE="modules", HF_HOME="home")
import evaluate
for name, arguments in json.loads(sys.argv[2]).items():
    answers = []
    for module in (evaluate.load(f"alone/{name}"), evaluate.load(f"me/{name}")):
        answers.append(module.compute(**arguments))
        rows = {each: arguments.pop(each) for each in module.features}
        module.add_batch(**rows)
        answers.append(module.compute(**arguments))
        arguments |= rows
    print(json.dumps([name, answers]))
"""


def copy_module(name, folder):
    """Copy a module and the file that it imports."""
    folder.mkdir(parents=True)
    imported = re.findall(r"^from \.(\w+) import", (METRICS / f"{name}.py").read_text(), re.MULTILINE)
    for each in (name, *imported):
        shutil.copy(METRICS / f"{each}.py", folder)


@pytest.mark.tour
def test_copies_and_spaces_open_in_a_process_without_this_repository(run_elsewhere, tmp_path):
    served = tmp_path / "served"
    for name in EXAMPLES:
        copy_module(name, tmp_path / "alone" / name)
        copy_module(name, served / "spaces" / "me" / name / "resolve" / "main")
    given = json.dumps({name: arguments for name, (arguments, _) in EXAMPLES.items()})
    with serve(served) as address:
        printed = run_elsewhere(STRANGER, tmp_path, address, given).splitlines()
    answers = dict(json.loads(line) for line in printed if line.startswith("["))
    assert sorted(answers) == sorted(EXAMPLES)
    for name, (_, expected) in EXAMPLES.items():
        assert len(answers[name]) == 4
        assert all(answer == pytest.approx(expected) for answer in answers[name])


@pytest.fixture
def features():
    """Features of 30 queries, 40 gallery images, and a teacher's of the queries; labels of both."""
    labels = torch.arange(30) % 5
    return torch.randn(30, 8), labels, torch.randn(40, 8), torch.arange(40) % 5, torch.randn(30, 8)


def test_knn_accuracy_of_numpy_batches_is_ours(features):
    queries, labels, gallery, gallery_labels, _ = features
    module = load("knn_accuracy")
    for rows in (slice(0, 12), slice(12, 30)):
        module.add_batch(predictions=queries[rows].numpy(), references=labels[rows].numpy())
    answer = module.compute(gallery=gallery.numpy(), gallery_labels=gallery_labels.numpy(), k=7, temperature=0.5)
    ours = knn_accuracy(queries, labels, gallery, gallery_labels, k=7, temperature=0.5)
    assert answer == {"knn_accuracy": ours}
    assert 0 < ours < 1
    alone = load("knn_accuracy").compute(predictions=queries.numpy(), references=labels.numpy(), k=3)
    assert alone == {"knn_accuracy": knn_accuracy(queries, labels, queries, labels, k=3, leave_one_out=True)}


def test_image_retrieval_is_ours(features):
    queries, labels, gallery, gallery_labels, _ = features
    module = load("image_retrieval")
    answer = module.compute(
        predictions=queries.numpy(),
        references=labels.numpy(),
        gallery=gallery,
        gallery_labels=gallery_labels,
        ranks=[3],
    )
    scores = retrieval_scores(queries, labels, gallery, gallery_labels, ranks=[3])
    assert answer == {name: values.mean().item() for name, values in scores.items()}
    alone = module.compute(predictions=queries.numpy(), references=labels.numpy())
    assert alone["mAP"] == retrieval_scores(queries, labels, queries, labels, leave_one_out=True)["mAP"].mean().item()


def test_feature_cosine_is_adaptor_fidelity(features):
    queries, _, _, _, teacher = features
    answer = load("feature_cosine").compute(predictions=queries.numpy(), references=teacher.numpy())
    maps = [Features(rows, rows[:, :, None, None]) for rows in (queries, teacher)]
    ours = adaptor_fidelity(*maps)
    assert answer == pytest.approx({"cosine": ours.summary, "centered_cosine": ours.centered_summary}, abs=1e-6)
    assert answer["cosine"] == pytest.approx(mean_cosine(queries, teacher))


def test_a_tuned_segmenter_is_measured_by_the_module_as_by_our_own_count():
    torch.manual_seed(0)
    segmenter = build("linear segmenter")
    masks = torch.randint(3, (4, *SIZE))
    masks[:, :5] = IGNORE_INDEX
    with torch.no_grad():
        output = segmenter(images(4))
    maps = RadioImageProcessor().post_process_semantic_segmentation(output, [SIZE] * 4)
    module = load("mean_iou")
    for predicted, mask in zip(maps, masks, strict=True):
        module.add(predictions=predicted.numpy(), references=mask.numpy())
    answer = module.compute(num_classes=3)
    assert answer["mean_iou"] == mean_iou_of_sums(class_sums(torch.stack(list(maps)), masks, 3)).item()
    assert 0 < answer["mean_iou"] < 1


def test_the_evaluator_takes_a_tuned_classifier(tmp_path):
    torch.manual_seed(0)
    names = ["ant", "bee", "cat"]
    config = tiny_config(id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})
    tuned = RadioForImageClassification(config)
    torch.nn.init.normal_(tuned.classifier[1].weight)  # or all images would be of one class
    tuned.save_pretrained(tmp_path)
    RadioImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    model = AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True)
    processor = AutoImageProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    pictures = [to_pil_image(torch.rand(3, 1, 1).expand(3, 32, 32) * torch.rand(3, 32, 32)) for _ in range(12)]
    labels = [index % 3 for index in range(12)]
    rows = Dataset.from_dict(
        {"image": pictures, "label": labels}, datasets.Features(image=Image(), label=ClassLabel(names=names))
    )
    answer = evaluate.evaluator("image-classification").compute(
        model_or_pipeline=model,
        feature_extractor=processor,
        data=rows,
        metric=load("accuracy"),
        label_mapping=model.config.label2id,
    )
    with torch.no_grad():
        logits = model(**processor(list(rows["image"]), return_tensors="pt")).logits
    right = (logits.argmax(-1) == torch.tensor(labels)).double().mean().item()
    assert answer["accuracy"] == pytest.approx(right)
    assert 0 < right < 1


def test_what_does_not_fit_is_told_as_by_our_functions(features):
    queries, labels, gallery, gallery_labels, _ = features
    with pytest.raises(ValueError, match="`k` must be between 1 and the gallery's 40 images, got 41"):
        load("knn_accuracy").compute(
            predictions=queries.numpy(), references=labels.numpy(), gallery=gallery, gallery_labels=gallery_labels, k=41
        )
