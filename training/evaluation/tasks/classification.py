"""Tasks on whole images: k nearest neighbors, linear probe, retrieval, zero-shot classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model_cards.results import Measurement
from modeling_radio.zero_shot_radio import OPENAI_TEMPLATES, PLAIN_TEMPLATES, SIMPLE_TEMPLATES
from training.evaluation.data import Examples
from training.evaluation.data_tables import imagenet_class_names
from training.evaluation.features import StoredFeatures, Wanted
from training.evaluation.metrics.knn import knn_predictions, nearest_neighbors, num_comparable, retrieval_scores
from training.evaluation.models.base import FeatureModel, TextModel
from training.evaluation.models.pretrained import SentenceEncoder
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.tasks.base import Evaluation, summary_or_mean
from training.teachers.embedded import EfficientNetLiteTeacher


NUM_FOLDS = 5
"""Of the logistic regression where there is no train split; our choice, scikit-learn's default."""
MAX_ITERATIONS = 2000
"""Our choice: the solver stops long before on sets of some thousand images."""


def labels_of(examples: Examples) -> Tensor:
    """Return the labels of examples that have them."""
    assert examples.labels is not None  # the part's kind says so
    return examples.labels


def vectors(features: StoredFeatures) -> dict[str, Tensor]:
    """Return what classes are read from, by what its metric adds: the summary, and the mean of the features."""
    summary = features.summary()
    means = {", mean features": features.mean_features()}
    return means if summary is None else {"": summary, **means}


def measure_knn(evaluation: Evaluation) -> list[Measurement]:
    """Measure weighted kNN accuracy from the summary, and from the dense features' mean for comparison."""
    part = evaluation.part("labels")
    is_alone = part.train is None
    queries = vectors(evaluation.features("labels"))
    gallery = queries if is_alone else vectors(evaluation.features("labels", "gallery"))
    measurements = []
    for suffix, query in queries.items():
        scores = answers_of_neighbors(evaluation, query, gallery[suffix]) == labels_of(part.test)
        measurements.append(evaluation.mean("knn", f"accuracy{suffix}", scores, "labels"))
    return measurements


def answers_of_neighbors(evaluation: Evaluation, queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the classes by kNN, `(num_queries,)`; without a train split images of one source do not vote for another.

    Args:
        evaluation: Whose labels and settings.
        queries: Vectors of the test images.
        gallery: Those of the gallery.

    Raises:
        ValueError: If there is nothing to compare with.
    """
    part, settings = evaluation.part("labels"), evaluation.settings
    options = {"leave_one_out": part.train is None, "groups": part.test.groups}
    most = num_comparable(len(gallery), **options)
    if not most:
        raise ValueError("`data` must have a train split or images of several sources for kNN, got one source.")
    k, temperature = min(settings.neighbors, most), settings.temperature
    return knn_predictions(queries, gallery, labels_of(part.gallery), k=k, temperature=temperature, **options)


def smallest_class(labels: Tensor) -> int:
    """Return how many images the smallest class has that occurs at all."""
    counts = labels.bincount()
    return int(counts[counts > 0].min())


def measure_logistic_regression(evaluation: Evaluation) -> list[Measurement]:
    """Measure the accuracy of scikit-learn's logistic regression on standardized summaries, and on mean features.

    Without a train split each image is predicted by a regression that has not seen it, of `NUM_FOLDS` folds in which
    images of one source stay together.
    """
    part = evaluation.part("labels")
    queries = vectors(evaluation.features("labels"))
    truth = labels_of(part.test).numpy()
    measurements = []
    for suffix, query in queries.items():
        regression = build_regression(evaluation.settings.logistic_c)
        if part.train is None:
            predictions = _predict_by_folds(
                regression, query.numpy(), truth, part.test.groups, evaluation.settings.random_seed
            )
        else:
            stored = vectors(evaluation.features("labels", "gallery"))[suffix]
            regression.fit(stored.numpy(), labels_of(part.train).numpy())
            predictions = regression.predict(query.numpy())
        scores = torch.from_numpy(predictions == truth)
        measurements.append(evaluation.mean("logistic_regression", f"accuracy{suffix}", scores, "labels"))
    return measurements


def build_regression(inverse_strength: float) -> Any:
    """Return scikit-learn's regression after a standardization.

    Args:
        inverse_strength: `C` of the regression.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_strength, max_iter=MAX_ITERATIONS))


def _predict_by_folds(
    regression: Any, features: np.ndarray, labels: np.ndarray, groups: Tensor | None, seed: int
) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

    folds = max(2, min(NUM_FOLDS, smallest_class(torch.from_numpy(labels))))
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    split = splitter(folds, shuffle=True, random_state=seed)
    return cross_val_predict(regression, features, labels, groups=None if groups is None else groups.numpy(), cv=split)


def measure_image_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well the images of a class are found by each of them: mean average precision, hits and recall.

    Queries whose class has no other image are left out. Without a train split images of one source do not count as
    found by each other.
    """
    part = evaluation.part("labels")
    is_alone = part.train is None
    queries = summary_or_mean(evaluation.features("labels"))
    gallery = queries if is_alone else summary_or_mean(evaluation.features("labels", "gallery"))
    scores = retrieval_scores(
        queries,
        labels_of(part.test),
        gallery,
        labels_of(part.gallery),
        ranks=evaluation.settings.recall_at,
        leave_one_out=is_alone,
        groups=part.test.groups,
    )
    is_defined = ~scores["mAP"].isnan()
    if not is_defined.any():
        raise ValueError(
            "`data` must have two images of one class, of different sources, for image_retrieval, got none. Leave the "
            "task out."
        )
    groups = None if part.test.groups is None else part.test.groups[is_defined]
    return [
        evaluation.mean("image_retrieval", metric, values[is_defined], "labels", groups)
        for metric, values in scores.items()
    ]


def text_space(model: FeatureModel) -> Wanted:
    """Return that the adaptor is wanted whose summary lives in the space of texts."""
    adaptor = text_model(model, "image_text_retrieval").text_adaptor
    return Wanted() if adaptor is None else Wanted(adaptors=frozenset([adaptor]))


def text_model(model: FeatureModel, task: str) -> TextModel:
    """Return a model as one that knows texts.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(model, TextModel):
        raise ValueError(
            f"`{task}` needs a text tower in the checkpoint (conversion.from_nvidia --text-tower), which "
            f"{model.name!r} does not have. Leave the task out."
        )
    return model


def measure_image_text_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure whether images find one of their captions, and captions their image, among the first ones."""
    model = text_model(evaluation.model, "image_text_retrieval")
    captions = evaluation.part("captions").test.captions
    assert captions is not None  # the part's kind says so
    images = evaluation.features("captions").summary(model.text_adaptor)
    if images is None:
        raise ValueError(f"`image_text_retrieval` needs a summary, which {evaluation.model.name!r} does not have.")
    texts = model.embed_texts([text for several in captions for text in several])
    owners = torch.tensor([image for image, several in enumerate(captions) for _ in several])
    own = torch.arange(len(images))
    ranks = evaluation.settings.recall_at
    groups = evaluation.part("captions").test.groups
    sources = own if groups is None else groups  # several captions of one image are of one source
    return [
        evaluation.mean("image_text_retrieval", f"{direction} {metric}", scores, "captions", resampled)
        for direction, found, resampled in (
            ("image to text", pair_scores(images, own, texts, owners, ranks), sources),
            ("text to image", pair_scores(texts, owners, images, own, ranks), sources[owners]),
        )
        for metric, scores in found.items()
    ]


def pair_scores(
    queries: Tensor, query_owners: Tensor, gallery: Tensor, gallery_owners: Tensor, ranks: Sequence[int]
) -> dict[str, Tensor]:
    """Return whether each query finds one of its own among its first `k`: images their captions, or the reverse.

    Args:
        queries: `(num_queries, dim)`.
        query_owners: The image that each query is or belongs to, `(num_queries,)`.
        gallery: `(num_gallery, dim)`.
        gallery_owners: The same of the gallery, `(num_gallery,)`.
        ranks: The numbers `k`; those beyond the gallery are cut to it.

    Returns:
        "recall@k" by name, `(num_queries,)` of 0 and 1.
    """
    most = min(max(ranks), len(gallery))
    is_own = gallery_owners[nearest_neighbors(queries, gallery, most).index] == query_owners[:, None]
    return {f"recall@{rank}": is_own[:, : min(rank, most)].any(1).double() for rank in ranks}


TEMPLATES = {"openai": OPENAI_TEMPLATES, "simple": SIMPLE_TEMPLATES, "plain": PLAIN_TEMPLATES}
PROMPT = "a photo of a {}"
NUM_CONSE_CLASSES = 10
"""ImageNet classes that place an image in text space; 10 as in the ConSE paper."""


def wanted(model: FeatureModel) -> Wanted:
    """Return that the adaptor is wanted whose summary is compared with texts; all, where a classifier is looked for."""
    if isinstance(model, TextModel):
        return Wanted() if model.text_adaptor is None else Wanted(adaptors=frozenset([model.text_adaptor]))
    return Wanted(adaptors=frozenset(model.adaptor_names))


def measure_zero_shot(evaluation: Evaluation) -> list[Measurement]:
    """Measure zero-shot accuracy through the model's text tower, or else through a teacher's classifier.

    No labeled image is used. With a text tower further sizes are measured where `zero_shot_sizes_px` asks for them.
    """
    if isinstance(evaluation.model, TextModel):
        return _by_texts(evaluation, evaluation.model)
    measurements = []
    for name, teacher in evaluation.teachers.items():
        if isinstance(teacher, TeacherFeatures) and isinstance(teacher.teacher, EfficientNetLiteTeacher):
            measurements += _by_classifier(evaluation, name, teacher, teacher.teacher)
    if not measurements:
        raise ValueError(
            "`zero_shot` needs a text tower in the checkpoint (conversion.from_nvidia --text-tower), or an adaptor "
            "for a teacher with a classifier: efficientnet-lite0."
        )
    return measurements


def _by_texts(evaluation: Evaluation, model: TextModel) -> list[Measurement]:
    part, adaptor = evaluation.part("labels"), model.text_adaptor
    classes = model.embed_classes(part.class_names, TEMPLATES[evaluation.settings.templates])
    measurements = []
    for size_px in (None, *evaluation.settings.zero_shot_sizes_px):
        features = evaluation.features("labels", wanted=wanted(evaluation.model), size_px=size_px)
        images = _summary(features.summary(adaptor), evaluation.model.name)
        metric = "accuracy" if size_px is None else f"accuracy, {size_px} px"
        measurements.append(_accuracy(evaluation, evaluation.model.name, metric, images, classes))
    return measurements


def _by_classifier(
    evaluation: Evaluation, name: str, teacher: TeacherFeatures, classifier: EfficientNetLiteTeacher
) -> list[Measurement]:
    """Measure a teacher and the adaptor for it by the names of the classes that its classifier sees."""
    examples = evaluation.examples("labels")
    encoder = SentenceEncoder()
    known = encoder.encode([PROMPT.format(each) for each in imagenet_class_names()])
    labels = encoder.encode([PROMPT.format(each) for each in evaluation.part("labels").class_names])
    mean = known.mean(dim=0)
    answers = {
        f"teacher {name}": evaluation.store.extract(
            teacher, examples.images, examples.picture_fingerprint, Wanted(), description="zero-shot"
        ).summary(),
        f"adaptor {name}": evaluation.features("labels", wanted=wanted(evaluation.model)).summary(name),
    }
    measurements = []
    for model, summaries in answers.items():
        logits = classifier.classify(_summary(summaries, model).to(evaluation.model.device)).cpu()
        embeddings = conse_embeddings(logits, centered(known, mean), top_k=NUM_CONSE_CLASSES)
        measurements.append(_accuracy(evaluation, model, "accuracy", embeddings, centered(labels, mean)))
    return measurements


def _accuracy(evaluation: Evaluation, model: str, metric: str, images: Tensor, classes: Tensor) -> Measurement:
    scores = zero_shot_predictions(images, classes) == labels_of(evaluation.examples("labels"))
    return replace(evaluation.mean("zero_shot", metric, scores, "labels"), model=model)


def _summary(summary: Tensor | None, model: str) -> Tensor:
    if summary is None:
        raise ValueError(f"`zero_shot` needs a summary, which {model!r} does not have.")
    return summary


def conse_embeddings(class_logits: Tensor, class_name_embeddings: Tensor, *, top_k: int) -> Tensor:
    """Embed images in text space by the names of their likeliest classes.

    Args:
        class_logits: The classifier's answer, `(num_images, num_classes)`.
        class_name_embeddings: Sentence embeddings of the class names, `(num_classes, text_dim)`.
        top_k: Classes that contribute.

    Returns:
        Unit vectors, `(num_images, text_dim)`.
    """
    probabilities, classes = class_logits.softmax(dim=1).topk(top_k, dim=1)
    return F.normalize(torch.einsum("nk,nkd->nd", probabilities, class_name_embeddings[classes]), dim=1)


def centered(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Return unit vectors of `embeddings`, `(num_texts, text_dim)`, about `mean`, `(text_dim,)`.

    A prompt such as "a photo of a ..." adds one common direction to all names, which would make all alike.
    """
    return F.normalize(embeddings - mean, dim=1)


def zero_shot_predictions(image_embeddings: Tensor, label_embeddings: Tensor) -> Tensor:
    """Return the label whose embedding is nearest to each image's, `(num_images,)`.

    Args:
        image_embeddings: `(num_images, text_dim)`.
        label_embeddings: `(num_labels, text_dim)`.
    """
    similarity = F.normalize(image_embeddings, dim=1) @ F.normalize(label_embeddings, dim=1).T
    return similarity.argmax(dim=1)
