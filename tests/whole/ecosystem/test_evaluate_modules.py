"""Our metrics as modules of `evaluate`: opened from a folder and from a Space, and beside our functions."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Image
from serving import serve
from task_models import SIZE, build, images, tiny_config
from torchvision.transforms.v2.functional import to_pil_image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from modeling_radio import RadioForImageClassification, RadioImageProcessor
from training.evaluation.metrics.adaptor_fidelity import adaptor_fidelity
from training.evaluation.metrics.feature_cosine.cosines import mean_cosine
from training.evaluation.metrics.image_retrieval.ranking import retrieval_scores
from training.evaluation.metrics.knn_accuracy.votes import knn_accuracy
from training.evaluation.metrics.mean_iou.confusion import IGNORE_INDEX, mean_iou
from training.evaluation.models.base import Features


evaluate = pytest.importorskip("evaluate")

METRICS = Path(__file__).parents[3] / "training" / "evaluation" / "metrics"
MODULES = sorted(path.parent for path in METRICS.glob("*/example.json"))
NAMES = [folder.name for folder in MODULES]


def test_every_module_is_here():
    assert NAMES == [
        "accuracy",
        "depth_errors",
        "effective_rank",
        "feature_cosine",
        "image_retrieval",
        "knn_accuracy",
        "mean_iou",
    ]


def load(name):
    return evaluate.load(str(METRICS / name))


@pytest.mark.parametrize("folder", MODULES, ids=NAMES)
def test_cards_say_what_a_space_asks_for(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(front)
    assert card["sdk"] == "gradio"
    assert (folder / card["app_file"]).is_file()
    assert card["tags"] == ["evaluate", "measurement" if folder.name == "effective_rank" else "metric"]
    assert len(card["short_description"]) <= 60
    assert f"training/evaluation/metrics/{folder.name}" in text
    example = json.loads((folder / "example.json").read_text())
    assert all(f"`{name}`" in text for name in example["arguments"])
    assert (folder / "requirements.txt").read_text().startswith("evaluate")


def test_one_app_serves_every_module():
    assert len({(folder / "app.py").read_text() for folder in MODULES}) == 1


STRANGER = """
import json, os, pathlib, sys
os.environ.update(HF_ENDPOINT=sys.argv[1], HF_UPDATE_DOWNLOAD_COUNTS="0", HF_MODULES_CACHE="modules", HF_HOME="home")
import evaluate
for folder in sorted(pathlib.Path("alone").iterdir()):
    example = json.loads((folder / "example.json").read_text())
    answers = []
    for module in (evaluate.load(f"alone/{folder.name}"), evaluate.load(f"me/{folder.name}")):
        answers.append(module.compute(**example["arguments"]))
        rows = {name: example["arguments"].pop(name) for name in module.features}
        module.add_batch(**rows)
        answers.append(module.compute(**example["arguments"]))
        example["arguments"] |= rows
    print(json.dumps([folder.name, answers]))
"""


@pytest.mark.tour
def test_folders_alone_and_spaces_open_in_a_process_without_this_repository(run_elsewhere, tmp_path):
    for folder in MODULES:
        shutil.copytree(folder, tmp_path / "alone" / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    served = tmp_path / "served"
    for folder in MODULES:
        shutil.copytree(tmp_path / "alone" / folder.name, served / "spaces" / "me" / folder.name / "resolve" / "main")
    with serve(served) as address:
        printed = run_elsewhere(STRANGER, tmp_path, address).splitlines()
    answers = dict(json.loads(line) for line in printed if line.startswith("["))
    assert sorted(answers) == NAMES
    for folder in MODULES:
        expected = json.loads((folder / "example.json").read_text())["result"]
        assert len(answers[folder.name]) == 4
        assert all(answer == pytest.approx(expected) for answer in answers[folder.name])


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
    assert answer["mean_iou"] == mean_iou(torch.stack(list(maps)), masks, 3)
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
