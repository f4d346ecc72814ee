"""Classes by texts and through a classifier."""

import pytest
import torch
from torch.nn import functional as F

from conversion.text_tower import canonicalizing
from modeling_radio import RadioConfig, RadioForZeroShotImageClassification, RadioModel
from modeling_radio.zero_shot_radio import OPENAI_TEMPLATES, PLAIN_TEMPLATES
from training.evaluation.data import Examples, Part, Stacked
from training.evaluation.models.base import TextModel
from training.evaluation.models.radio import RadioFeatures, open_radio
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.tasks import classification
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.classification import (
    centered,
    conse_embeddings,
    measure_zero_shot,
    zero_shot_predictions,
)
from training.teachers.base import Teacher
from training.teachers.embedded import EfficientNetLiteTeacher
from training.teachers.outputs import TeacherOutput


@pytest.fixture
def packed(build_dual_encoder, word_tokenizer, tmp_path):
    """A folder with a text tower, and the model and the tokenizer in it."""
    adaptor = {"name": "siglip2-g", "summary_dim": 12, "feature_dim": 10, "hidden_size": 16}
    radio = RadioModel(RadioConfig.from_preset("radio-test", adaptors=[adaptor])).eval()
    model = RadioForZeroShotImageClassification.from_parts(radio, build_dual_encoder("siglip", 12))
    tokenizer = canonicalizing(word_tokenizer, 16)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path, model, tokenizer


class Labeled:
    """Noise, labeled as a model that is given says."""

    name = "labeled"

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, class_names: tuple[str, ...]) -> None:
        self.given = Part("labeled", Examples(Stacked(images), "x", labels=labels), None, class_names)

    def part(self, kind):
        return self.given


def test_texts_tell_the_classes_at_every_size(packed):
    folder, model, tokenizer = packed
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    classes = {
        name: model.embed_classes(tokenizer, ["cat", "dog"], templates)
        for name, templates in (("openai", OPENAI_TEMPLATES), ("plain", PLAIN_TEMPLATES))
    }
    opened = open_radio(folder, size_px=32)
    assert isinstance(opened, TextModel)
    torch.testing.assert_close(opened.embed_classes(["cat", "dog"], OPENAI_TEMPLATES), classes["openai"])
    torch.testing.assert_close(opened.embed_texts(["cat"]), model.embed_texts(tokenizer, ["cat"]))
    with torch.no_grad():
        summaries = F.normalize(model.get_image_features(images / 255).pooler_output, dim=1)
    labels = (summaries @ classes["openai"].T).argmax(1)
    labels[0] = 1 - labels[0]
    evaluation = Evaluation(opened, Labeled(images, labels, ("cat", "dog")), TaskSettings(zero_shot_sizes_px=[16, 32]))
    found = {each.metric: each.value for each in measure_zero_shot(evaluation)}
    assert list(found) == ["accuracy", "accuracy, 16 px", "accuracy, 32 px"]
    assert found["accuracy"] == found["accuracy, 32 px"] == pytest.approx(4 / 5)


def test_a_tower_without_a_tokenizer_is_refused(packed):
    folder, _, _ = packed
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises((OSError, ValueError), match=r"tokenizer"):
        open_radio(folder).embed_classes(["cat"], PLAIN_TEMPLATES)


class ColorWords:
    """Knows "red" and "green"; every other word means neither."""

    def encode(self, texts):
        return torch.tensor([[float("red" in text), float("green" in text)] for text in texts]) + 0.01


class ColorClassifier(EfficientNetLiteTeacher):
    """Answers with the mean color, and takes red and green for classes of ImageNet."""

    def __init__(self) -> None:
        Teacher.__init__(self, "teacher_a", summary_dim=3, feature_dim=3, patch_size=8)

    def answer(self, pixel_values):
        return TeacherOutput(pixel_values.mean((2, 3)), F.avg_pool2d(pixel_values, 8))

    def classify(self, summary):
        logits = torch.zeros(len(summary), 3)
        logits[:, 1], logits[:, 2] = 20 * summary[:, 0], 20 * summary[:, 1]
        return logits


def test_classifiers_of_teachers_stand_in_for_texts(data, tiny_model, monkeypatch):
    monkeypatch.setattr(classification, "SentenceEncoder", ColorWords)
    monkeypatch.setattr(classification, "imagenet_class_names", lambda: ["a desk", "a red fox", "a green mamba"])
    monkeypatch.setattr(classification, "NUM_CONSE_CLASSES", 2)
    teacher = TeacherFeatures(ColorClassifier(), patch_size=8, size_px=16, name="teacher teacher_a")
    student = RadioFeatures(tiny_model, size_px=16)
    evaluation = Evaluation(student, data, find_teachers=lambda: {"teacher_a": teacher})
    found = {each.model: each.value for each in measure_zero_shot(evaluation)}
    assert set(found) == {"teacher teacher_a", "adaptor teacher_a"}
    assert found["teacher teacher_a"] == 1.0


def test_without_texts_and_classifier_it_is_refused(pixels):
    with pytest.raises(ValueError, match=r"`zero_shot` needs a text tower .* or an adaptor for a teacher with"):
        measure_zero_shot(pixels())


def test_conse_is_the_probability_weighted_mean_of_the_likeliest_names():
    logits = torch.tensor([[0.6, 0.3, 0.1]]).log()
    embedding = conse_embeddings(logits, torch.eye(3), top_k=2)
    expected = torch.tensor([[0.6, 0.3, 0.0]])
    torch.testing.assert_close(embedding, expected / expected.norm())


def test_the_label_is_the_one_at_the_smallest_angle():
    images = torch.tensor([[1.0, 0.1], [0.2, 5.0], [3.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 100.0]])  # however long
    assert zero_shot_predictions(images, labels).tolist() == [0, 1, 0]


def test_centering_removes_what_all_prompts_share():
    shared = torch.tensor([100.0, 100.0])
    embeddings = shared + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    apart = centered(embeddings, embeddings.mean(0))
    assert (apart[0] @ apart[1]).item() == pytest.approx(-1.0)
