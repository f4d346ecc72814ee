"""What the tasks say equals what scikit-learn says of the same features."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from training.evaluation.data import Examples, Part
from training.evaluation.data_tables import TableData
from training.evaluation.models.radio import RadioFeatures
from training.evaluation.tasks.base import Evaluation, TaskSettings
from training.evaluation.tasks.classification import measure_knn, measure_logistic_regression


def value(measurements, metric: str = "accuracy") -> float:
    (found,) = [each for each in measurements if each.metric == metric]
    assert found.low <= found.value <= found.high
    return found.value


@pytest.fixture
def evaluation(noisy_folders, tiny_model) -> Evaluation:
    return Evaluation(RadioFeatures(tiny_model, size_px=16), TableData(str(noisy_folders)), TaskSettings(neighbors=7))


def test_knn_is_that_of_scikit_learn(evaluation):
    gallery, queries = (evaluation.features("labels", split).summary().numpy() for split in ("gallery", "test"))
    part = evaluation.part("labels")
    votes = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
    neighbors = KNeighborsClassifier(7, metric="cosine", weights=votes).fit(gallery, part.train.labels)
    score = neighbors.score(queries, part.test.labels)
    assert 0.4 < score < 1
    assert value(measure_knn(evaluation)) == pytest.approx(score, abs=1e-9)


def test_logistic_regression_is_that_of_scikit_learn(evaluation):
    gallery, queries = (evaluation.features("labels", split).summary().numpy() for split in ("gallery", "test"))
    part = evaluation.part("labels")
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)).fit(gallery, part.train.labels)
    assert value(measure_logistic_regression(evaluation)) == pytest.approx(regression.score(queries, part.test.labels))


def test_neighbors_change_the_answer(evaluation):
    values = set()
    for neighbors, temperature in ((1, 0.07), (7, 0.07), (13, 10.0)):
        evaluation.settings = evaluation.settings.replace(neighbors=neighbors, temperature=temperature)
        values.add(value(measure_knn(evaluation)))
    assert len(values) > 1


@pytest.mark.parametrize("is_grouped", [False, True])
def test_without_a_split_each_image_is_predicted_by_the_others(noisy_folders, tiny_model, is_grouped):
    data = TableData(str(noisy_folders / "train"))
    evaluation = Evaluation(RadioFeatures(tiny_model, size_px=16), data, TaskSettings(neighbors=5))
    part = evaluation.part("labels")
    groups = torch.arange(42) // 2 if is_grouped else None
    evaluation._parts["labels"] = Part(
        part.name, Examples(part.test.images, "x", labels=part.test.labels, groups=groups), None, part.class_names
    )
    features, labels = evaluation.features("labels").summary().numpy(), part.test.labels.numpy()
    right, sources = [], np.arange(42) // (2 if is_grouped else 1)
    for index in range(42):
        others = sources != sources[index]
        votes = lambda distances: np.exp((1 - distances) / 0.07)  # noqa: E731
        knn = KNeighborsClassifier(5, metric="cosine", weights=votes).fit(features[others], labels[others])
        right.append(knn.predict(features[index : index + 1])[0] == labels[index])
    assert value(measure_knn(evaluation)) == pytest.approx(np.mean(right))
    splitter = StratifiedGroupKFold if is_grouped else StratifiedKFold
    predictions = cross_val_predict(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
        features,
        labels,
        groups=None if groups is None else groups.numpy(),
        cv=splitter(5, shuffle=True, random_state=0),
    )
    assert value(measure_logistic_regression(evaluation)) == pytest.approx((predictions == labels).mean())


def test_a_model_without_summary_has_only_the_mean_of_its_features(pixels, monkeypatch):
    evaluation = pixels(neighbors=3)
    encode = type(evaluation.model).encode
    monkeypatch.setattr(
        type(evaluation.model), "encode", lambda self, batch, adaptors=(): encode(self, batch)._replace(summary=None)
    )
    assert [found.metric for found in measure_knn(evaluation)] == ["accuracy, mean features"]
    assert measure_knn(evaluation)[0].value == 1.0


def test_images_of_one_source_alone_have_no_neighbors(pixels):
    evaluation = pixels()
    test = evaluation.part("labels").test
    one = Examples(test.images, "x", labels=test.labels, groups=torch.zeros(6, dtype=torch.long))
    evaluation._parts["labels"] = Part("x", one)
    with pytest.raises(ValueError, match="a train split or images of several sources for kNN, got one source"):
        measure_knn(evaluation)


def test_neighbors_are_no_more_than_there_are_images(pixels):
    assert measure_knn(pixels(neighbors=20))[0].value == measure_knn(pixels(neighbors=6))[0].value
