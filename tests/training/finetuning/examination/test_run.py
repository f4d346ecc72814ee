"""A tuned model is examined: pictures lie there, and its configuration holds what pipelines read."""

import json

import pytest
import torch
from datasets import List, Value
from PIL import Image
from tiny_tuning import TINY_DETECTOR, run_settings, save_labels

from modeling_radio import RadioConfig, RadioForImageClassification, RadioForObjectDetection, RadioImageProcessor
from modeling_radio.pipelines_radio import RadioImageClassificationPipeline, RadioObjectDetectionPipeline
from training.finetuning.examination import run as examination
from training.finetuning.examination.calibration import Calibration
from training.finetuning.examination.run import examine, gather_evidence
from training.finetuning.run import FinetuningRun


pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def tuned(base, data, output, task="image-classification", **options):
    FinetuningRun(run_settings(base, data, output, task, **options)).run()
    return json.loads((output / "results.json").read_text()), RadioConfig.from_pretrained(output / "final")


@pytest.fixture
def fitted(monkeypatch):
    """A temperature, which three images do not always have."""
    monkeypatch.setattr(examination, "calibrate", lambda logits, labels: Calibration(2.5, 0.2, 0.1))
    return 2.5


def pictures(output):
    return {path.name for path in (output / "pictures").iterdir() if not path.name.startswith("step-")}


def test_a_classifier_is_calibrated_and_its_pipeline_reads_the_temperature(base, class_folders, tmp_path, fitted):
    results, config = tuned(base, class_folders, tmp_path / "run")
    assert pictures(tmp_path / "run") == {"confusion.png", "precision_recall.png", "worst.png"}
    assert config.temperature == results["calibration"]["temperature"] == fitted
    assert config.score_thresholds is None
    model = RadioForImageClassification.from_pretrained(tmp_path / "run" / "final").eval()
    model.config.temperature = 4.0
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "final")
    image = Image.new("RGB", (48, 32), "teal")
    found = RadioImageClassificationPipeline(model=model, image_processor=processor)(image)
    with torch.no_grad():
        logits = model(**processor(image, return_tensors="pt")).logits[0]
    expected = (logits / 4).softmax(-1)
    assert [each["score"] for each in found] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-6)


def test_an_adapter_and_what_is_merged_hold_the_temperature(base, class_folders, tmp_path, fitted):
    _, config = tuned(base, class_folders, tmp_path / "run", tune="lora", merge=True)
    assert config.temperature == fitted
    assert RadioConfig.from_pretrained(tmp_path / "run" / "merged").temperature == config.temperature


def test_several_labels_have_thresholds_that_a_pipeline_takes(base, tmp_path):
    labels = [["cat"], ["dog", "cat"], [], ["dog"], ["cat"], ["dog"]]
    data = save_labels(tmp_path / "data", List(Value("string")), labels)
    results, config = tuned(base, data, tmp_path / "run", validation_share=0.5)
    assert list(results["thresholds"]) == ["cat", "dog"]
    assert config.score_thresholds == list(results["thresholds"].values())
    model = RadioForImageClassification.from_pretrained(tmp_path / "run" / "final").eval()
    model.config.score_thresholds = [0.0, 1.0]
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "final")
    classify = RadioImageClassificationPipeline(model=model, image_processor=processor)
    image = Image.new("RGB", (48, 32), "teal")
    assert len(classify(image)) == 2
    assert [each["label"] for each in classify(image, threshold="tuned")] == ["cat"]
    assert classify(image, threshold=1.0) == []
    with pytest.raises(ValueError, match=r"`threshold` must be a number in \[0, 1\] or 'tuned', got 'low'"):
        classify(image, threshold="low")


def test_a_detector_has_thresholds_by_default(base, coco_folder, tmp_path):
    results, config = tuned(base, coco_folder, tmp_path / "run", "object-detection", config=TINY_DETECTOR)
    assert pictures(tmp_path / "run") == {"precision_recall.png", "worst.png"}
    assert "calibration" not in results
    assert len(config.score_thresholds) == 2
    model = RadioForObjectDetection.from_pretrained(tmp_path / "run" / "final").eval()
    processor = RadioImageProcessor.from_pretrained(tmp_path / "run" / "final")
    detect = RadioObjectDetectionPipeline(model=model, image_processor=processor)
    image = Image.new("RGB", (48, 32), "teal")
    model.config.score_thresholds = [0.0, 1.0]
    assert {each["label"] for each in detect(image)} == {"bus"}
    assert {each["label"] for each in detect(image, threshold=0.0)} == {"bus", "person"}
    model.config.score_thresholds = None
    assert detect(image) == detect(image, threshold=0.5)


@pytest.mark.parametrize(
    ("task", "fixture", "expected"),
    [
        ("semantic-segmentation", "voc_folder", {"confusion.png", "worst.png"}),
        ("depth-estimation", "depth_folder", {"worst.png"}),
    ],
)
def test_pictures_of_maps(base, tmp_path, request, task, fixture, expected):
    config = {"dpt_hidden_size": 8}
    results, _ = tuned(base, request.getfixturevalue(fixture), tmp_path / "run", task, config=config)
    assert pictures(tmp_path / "run") == expected
    assert "thresholds" not in results


def test_evidence_is_of_every_image_once(base, class_folders, tmp_path):
    run = FinetuningRun(run_settings(base, class_folders, tmp_path / "run", validation_share=0.5))
    examples = run.trainer.eval_dataset
    evidence = gather_evidence(run.task, run.model, examples)
    assert len(evidence.errors) == len(examples) == 3
    assert evidence.confusion.sum() == 3
    with torch.no_grad():
        logits = torch.cat([run.model(examples[index]["pixel_values"][None]).logits for index in range(3)])
    torch.testing.assert_close(evidence.logits, logits, atol=1e-5, rtol=1e-4)
    assert examine(run.task, evidence).config_fields["temperature"] > 0
