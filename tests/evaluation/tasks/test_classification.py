"""Tasks on whole images beside scikit-learn and torchmetrics on the same features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torchmetrics.retrieval import RetrievalHitRate

from modeling_radio import RadioForZeroShotImageClassification
from modeling_radio.evaluation.data import Examples, Part, Stacked
from modeling_radio.evaluation.data_tables import TableData
from modeling_radio.evaluation.models.pretrained import RawPixels
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.evaluation.tasks import classification
from modeling_radio.evaluation.tasks.base import Evaluation
from modeling_radio.evaluation.tasks.classification import (
    centered,
    conse_embeddings,
    measure_image_retrieval,
    measure_image_text_retrieval,
    measure_knn,
    measure_logistic_regression,
    measure_zero_shot,
    pair_scores,
    text_features,
    zero_shot_predictions,
)
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.metrics.feature_model import TextModel
from modeling_radio.metrics.knn import retrieval_scores
from modeling_radio.tokenizer import open_tokenizer
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import TeacherOutput
from modeling_radio.zero_shot_radio import OPENAI_TEMPLATES, PLAIN_TEMPLATES


class Fixed:
    """A data set of one part."""

    def __init__(self, images, train=None, class_names=(), **targets) -> None:
        test = Examples(Stacked(images), "x", **targets)
        self.name, self.given = "fixed", Part("fixed", test, test if train else None, class_names)

    def part(self, kind):
        return self.given


def value(measurements, metric: str = "accuracy") -> float:
    (found,) = [each for each in measurements if each.metric == metric]
    assert found.low <= found.value <= found.high
    return found.value


def knn(gallery, labels, neighbors):
    votes = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
    return KNeighborsClassifier(neighbors, metric="cosine", weights=votes).fit(gallery, labels)


@pytest.fixture
def regression():
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))


def test_knn_and_regression_are_those_of_scikit_learn(noisy_folders, tiny_model, regression):
    model, data = RadioFeatures(tiny_model, size_px=16), TableData(str(noisy_folders))
    evaluation = Evaluation(model, data, TaskSettings(neighbors=7))
    gallery, queries = (evaluation.features("labels", split).summary().numpy() for split in ("gallery", "test"))
    part = evaluation.part("labels")
    score = knn(gallery, part.train.labels, 7).score(queries, part.test.labels)
    assert 0.4 < score < 1
    assert value(measure_knn(evaluation)) == pytest.approx(score, abs=1e-9)
    regression.fit(gallery, part.train.labels)
    assert value(measure_logistic_regression(evaluation)) == pytest.approx(regression.score(queries, part.test.labels))
    values = {score}
    for neighbors, temperature in ((1, 0.07), (13, 10.0)):
        evaluation.settings = evaluation.settings.replace(neighbors=neighbors, temperature=temperature)
        values.add(value(measure_knn(evaluation)))
    assert len(values) > 1


@pytest.mark.parametrize("is_grouped", [False, True])
def test_without_a_split_each_image_is_predicted_by_the_others(noisy_folders, tiny_model, regression, is_grouped):
    data = TableData(str(noisy_folders / "train"))
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), data, TaskSettings(neighbors=5))
    part = evaluation.part("labels")
    groups = torch.arange(42) // 2 if is_grouped else None
    test = Examples(part.test.images, "x", labels=part.test.labels, groups=groups)
    evaluation._parts["labels"] = Part(part.name, test, None, part.class_names)
    features, labels = evaluation.features("labels").summary().numpy(), part.test.labels.numpy()
    right, sources = [], np.arange(42) // (2 if is_grouped else 1)
    for index in range(42):
        others = sources != sources[index]
        predicted = knn(features[others], labels[others], 5).predict(features[index : index + 1])[0]
        right.append(predicted == labels[index])
    assert value(measure_knn(evaluation)) == pytest.approx(np.mean(right))
    splitter = (StratifiedGroupKFold if is_grouped else StratifiedKFold)(5, shuffle=True, random_state=0)
    predictions = cross_val_predict(
        regression, features, labels, groups=None if groups is None else groups.numpy(), cv=splitter
    )
    assert value(measure_logistic_regression(evaluation)) == pytest.approx((predictions == labels).mean())


def test_a_model_without_summary_has_only_the_mean_of_its_features(pixels, monkeypatch):
    encode = RawPixels.encode
    monkeypatch.setattr(
        RawPixels, "encode", lambda self, batch, adaptors=(): encode(self, batch)._replace(summary=None)
    )
    (found,) = measure_knn(pixels(neighbors=20))  # no more than there are images
    assert (found.metric, found.value) == ("accuracy, mean features", measure_knn(pixels(neighbors=6))[0].value)


@pytest.mark.parametrize(
    ("measure", "labels", "groups", "message"),
    [
        (measure_knn, [0, 1] * 3, [0] * 6, "`data` must have .* for kNN"),
        (measure_image_retrieval, range(6), None, "`data` must have .* image_retrieval"),
        (measure_image_retrieval, [0, 1] * 3, [0, 1] * 3, "`data` must have .* image_retrieval"),
    ],
)
def test_too_few_sources_and_classes(pixels, data, measure, labels, groups, message):
    groups = None if groups is None else torch.tensor(groups)
    given = Fixed(data.classification.query_images, labels=torch.tensor([*labels]), groups=groups)
    with pytest.raises(ValueError, match=message):
        measure(pixels(given, neighbors=1))


def test_image_retrieval_compares_the_test_split_with_the_train_split(pixels, noisy_folders):
    evaluation = pixels(TableData(str(noisy_folders)))
    found = measure_image_retrieval(evaluation)
    part = evaluation.part("labels")
    queries, gallery = (evaluation.features("labels", split).summary() for split in ("test", "gallery"))
    scores = retrieval_scores(queries, part.test.labels, gallery, part.train.labels, ranks=[1, 5, 10])
    assert {each.metric: value(found, each.metric) for each in found} == {
        name: pytest.approx(each.mean().item()) for name, each in scores.items()
    }


def test_images_of_one_source_do_not_find_each_other(pixels):
    """Each image of three equal pairs finds its own pair; without that the next one is of the other class."""
    colors = torch.tensor([[255, 0, 0], [255, 60, 0], [0, 60, 255]], dtype=torch.uint8).repeat_interleave(2, 0)
    images, labels = colors[:, :, None, None].repeat(1, 1, 16, 16), torch.tensor([0, 0, 1, 1, 0, 0])
    for groups, hits in ((None, 1), (torch.arange(6) // 2, 0)):
        found = measure_image_retrieval(pixels(Fixed(images, labels=labels, groups=groups)))
        assert {each.metric: each.value for each in found}["hit rate@1"] == hits


class WithTexts(RawPixels):
    """Embeds the names of colors as the mean color of an image."""

    text_adaptor = None
    COLORS = {"red": [1.0, 0.1, 0.1], "green": [0.1, 1.0, 0.1], "orange": [1.0, 0.4, 0.0]}

    def encode(self, pixels, adaptors=()):
        return super().encode(pixels)._replace(summary=pixels.mean((2, 3)))

    def embed_texts(self, texts):
        return torch.tensor([self.COLORS[text] for text in texts])

    def embed_classes(self, class_names, templates):
        return self.embed_texts(class_names)


def test_images_and_texts_find_each_other(monkeypatch):
    monkeypatch.setattr(classification, "RECALL_AT", (1, 3, 9))
    images = 255 * torch.eye(3, dtype=torch.uint8)[:, :, None, None].repeat(1, 1, 16, 16)  # red, green, and blue
    captioned = Fixed(images, captions=[["red"], ["green", "green"], ["orange"]])
    found = measure_image_text_retrieval(Evaluation(WithTexts(8, 16), captioned, TaskSettings()))
    assert {each.metric: each.value for each in found} == {
        "image to text recall@1": pytest.approx(2 / 3),
        "image to text recall@3": pytest.approx(2 / 3),  # its caption is the last of four
        "image to text recall@9": 1.0,
        "text to image recall@1": pytest.approx(3 / 4),
        "text to image recall@3": 1.0,
        "text to image recall@9": 1.0,
    }


def test_recall_of_captions_is_torchmetrics_hit_rate():
    generator = torch.Generator().manual_seed(0)
    images, owners = torch.randn(12, 5, generator=generator), torch.arange(12).repeat_interleave(3)
    texts = images[owners] + torch.randn(36, 5, generator=generator)
    cosines = torch.nn.functional.normalize(images, dim=1) @ torch.nn.functional.normalize(texts, dim=1).T
    is_own = owners == torch.arange(12)[:, None]
    for given, scores, target in (
        ((images, torch.arange(12), texts, owners), cosines, is_own),
        ((texts, owners, images, torch.arange(12)), cosines.T, is_own.T),
    ):
        rows = torch.arange(len(scores))[:, None].expand(scores.shape)
        found = pair_scores(*given, [1, 5])
        for rank in (1, 5):
            rate = RetrievalHitRate(top_k=rank)(scores.flatten(), target.flatten(), indexes=rows.flatten())
            assert 0 < rate < 1
            assert found[f"recall@{rank}"].mean().item() == pytest.approx(rate.item(), abs=1e-6)


def test_models_without_texts_are_refused(pixels):
    with pytest.raises(ValueError, match=r"`image_text_retrieval` .* 'raw pixels'"):
        text_features(RawPixels(8, 16))
    with pytest.raises(ValueError, match="`zero_shot`"):
        measure_zero_shot(pixels())


def test_texts_tell_the_classes_at_every_size(text_folder):
    model, tokenizer = RadioForZeroShotImageClassification.from_pretrained(text_folder), open_tokenizer(text_folder)
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    opened = RadioFeatures.open(text_folder, size_px=32)
    assert isinstance(opened, TextModel)
    classes = model.embed_classes(tokenizer, ["cat", "dog"], OPENAI_TEMPLATES)
    torch.testing.assert_close(opened.embed_classes(["cat", "dog"], OPENAI_TEMPLATES), classes)
    torch.testing.assert_close(opened.embed_texts(["cat"]), model.embed_texts(tokenizer, ["cat"]))
    with torch.no_grad():
        summaries = F.normalize(model.get_image_features(images / 255).pooler_output, dim=1)
    labels = (summaries @ classes.T).argmax(1)
    labels[0] = 1 - labels[0]
    labeled = Fixed(images, labels=labels, class_names=("cat", "dog"))
    found = measure_zero_shot(Evaluation(opened, labeled, TaskSettings(zero_shot_sizes_px=[16, 32])))
    values = {each.metric: each.value for each in found}
    assert list(values) == ["accuracy", "accuracy, 16 px", "accuracy, 32 px"]
    assert values["accuracy"] == values["accuracy, 32 px"] == pytest.approx(4 / 5)
    for path in text_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises((OSError, ValueError), match="tokenizer"):
        RadioFeatures.open(text_folder).embed_classes(["cat"], PLAIN_TEMPLATES)


class ColorWords:
    """Knows "red" and "green"; every other word means neither."""

    def encode(self, texts):
        return torch.tensor([[float("red" in text), float("green" in text)] for text in texts]) + 0.01


class ColorClassifier(Teacher):
    """Outputs the mean color, and scores a class for red and one for green."""

    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    class_names = ("a desk", "a red fox", "a green mamba")

    def __init__(self) -> None:
        super().__init__("teacher_a", summary_dim=3, feature_dim=3, patch_size=8)

    def extract_features(self, pixel_values):
        return TeacherOutput(pixel_values.mean((2, 3)), F.avg_pool2d(pixel_values, 8))

    def classify(self, summary):
        logits = torch.zeros(len(summary), 3)
        logits[:, 1], logits[:, 2] = 20 * summary[:, 0], 20 * summary[:, 1]
        return logits


def test_classifiers_of_teachers_stand_in_for_texts(data, tiny_model, monkeypatch):
    monkeypatch.setattr(classification, "SentenceEncoder", ColorWords)
    monkeypatch.setattr(classification, "NUM_CONSE_CLASSES", 2)
    teacher = TeacherFeatures(ColorClassifier(), patch_size=8, size_px=16, name="teacher teacher_a")
    student = RadioFeatures(tiny_model, size_px=16)
    evaluation = Evaluation(student, data, find_teachers=lambda: {"teacher_a": teacher})
    found = {each.model: each.value for each in measure_zero_shot(evaluation)}
    assert set(found) == {"teacher teacher_a", "adaptor teacher_a"}
    assert found["teacher teacher_a"] == 1.0


def test_embeddings_by_hand():
    embedding = conse_embeddings(torch.tensor([[0.6, 0.3, 0.1]]).log(), torch.eye(3), top_k=2)
    torch.testing.assert_close(embedding, F.normalize(torch.tensor([[0.6, 0.3, 0.0]])))
    images, labels = torch.tensor([[1.0, 0.1], [0.2, 5.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 100.0]])
    assert zero_shot_predictions(images, labels).tolist() == [0, 1, 0]  # whatever the lengths
    embeddings = 100 + torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # a shared direction
    apart = centered(embeddings, embeddings.mean(0))
    assert (apart[0] @ apart[1]).item() == pytest.approx(-1.0)
