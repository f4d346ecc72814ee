"""Tasks on whole images: kNN, logistic regression, retrieval, zero-shot classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from modeling_radio.evaluation.data import Examples
from modeling_radio.evaluation.features import StoredFeatures, Wanted
from modeling_radio.evaluation.models.pretrained import SentenceEncoder
from modeling_radio.evaluation.models.teachers import TeacherFeatures
from modeling_radio.evaluation.tasks.base import (
    Evaluation,
    Task,
    knows_texts,
    require_protocol,
    summary_or_mean,
    takes_sizes,
)
from modeling_radio.metrics.feature_model import FeatureModel, TextModel
from modeling_radio.metrics.knn import (
    knn_predictions,
    nearest_neighbors,
    num_comparable,
    retrieval_scores,
)
from modeling_radio.metrics.results import Measurement
from modeling_radio.zero_shot_radio import OPENAI_TEMPLATES, PLAIN_TEMPLATES, SIMPLE_TEMPLATES


NUM_FOLDS = 5
"""Folds of the logistic regression without a train split; our choice, scikit-learn's default."""
MAX_ITERATIONS = 2000
"""Our choice: the solver stops long before on sets of some thousand images."""
TEMPLATES = {"openai": OPENAI_TEMPLATES, "simple": SIMPLE_TEMPLATES, "plain": PLAIN_TEMPLATES}
PROMPT = "a photo of a {}"
RECALL_AT = (1, 5, 10)
"""Ranks up to which retrieval counts, as in the papers."""
NUM_CONSE_CLASSES = 10
"""Classes of a classifier that embed an image in text space; 10 as in the ConSE paper."""


def labels_of(examples: Examples) -> Tensor:
    """Return the labels of examples that have them."""
    assert examples.labels is not None  # the part's kind says so
    return examples.labels


def is_right(predictions: Tensor, examples: Examples) -> Tensor:
    """Return whether each predicted class is right, of images that count, bool `(num_images,)`."""
    if examples.answers is None:
        return predictions == labels_of(examples)
    pairs = zip(predictions.tolist(), examples.answers, strict=True)
    return torch.tensor([guess in answers for guess, answers in pairs if answers])


def vectors_of(features: StoredFeatures) -> dict[str, Tensor]:
    """Return the summary and the mean of the features, by the end of the metric's name."""
    summary = features.summary()
    means = {", mean features": features.mean_features()}
    return means if summary is None else {"": summary, **means}


def smallest_class(labels: Tensor) -> int:
    """Return the number of images of the smallest class that occurs."""
    counts = labels.bincount()
    return int(counts[counts > 0].min())


def measure_knn(evaluation: Evaluation) -> list[Measurement]:
    """Measure weighted kNN accuracy with the summary, and with the mean of the dense features for comparison."""
    part = evaluation.part("labels")
    require_protocol(part)
    queries = vectors_of(evaluation.features("labels"))
    gallery = queries if part.train is None else vectors_of(evaluation.features("labels", "gallery"))
    measurements = []
    for suffix, query in queries.items():
        scores = is_right(predict_by_knn(evaluation, query, gallery[suffix]), part.test)
        measurements.append(evaluation.mean("knn", f"accuracy{suffix}", scores, "labels"))
    return measurements


def predict_by_knn(evaluation: Evaluation, queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the classes by kNN, `(num_queries,)`; without a train split images of one source do not vote for another.

    Args:
        evaluation: Labels and settings.
        queries: Vectors of the test images.
        gallery: Vectors of the gallery.

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


def measure_mode_switching(evaluation: Evaluation) -> list[Measurement]:
    """Measure kNN accuracy at several sizes of the queries, with the gallery at the model's own size and at theirs.

    The features of a model with mode switching depend on the resolution: it is good where both sizes are alike, and bad
    where they differ. Images are middle squares.

    References:
        RADIOv2.5, section 3 (mode switching). https://arxiv.org/abs/2412.07679
    """
    labels, own_size = labels_of(evaluation.part("labels").test), evaluation.model.size_px

    def vectors(split: str, size_px: int) -> Tensor:
        return summary_or_mean(evaluation.square_features("labels", split, size_px=size_px))

    measurements = []
    for size in evaluation.supported_sizes("switching_sizes_px", evaluation.settings.switching_sizes_px):
        queries = vectors("test", size)
        for name, gallery_size in (("gallery alike", size), (f"gallery at {own_size} px", own_size)):
            scores = predict_by_knn(evaluation, queries, vectors("gallery", gallery_size)) == labels
            measurements.append(evaluation.mean("mode_switching", f"{size} px, {name}", scores, "labels"))
        own = vectors("test", own_size)
        cosine = (F.normalize(queries - own.mean(0), dim=-1) * F.normalize(own - own.mean(0), dim=-1)).sum(1)
        metric = f"{size} px, centered cosine with {own_size} px"
        measurements.append(evaluation.mean("mode_switching", metric, cosine, "labels"))
    return measurements


def measure_logistic_regression(evaluation: Evaluation) -> list[Measurement]:
    """Measure the accuracy of scikit-learn's logistic regression on standardized summaries, and on mean features.

    Without a train split `NUM_FOLDS` folds predict each other's images; images of one source stay in one fold.

    References:
        CLIP, appendix A.3: L-BFGS on frozen features. https://arxiv.org/abs/2103.00020
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    part, settings = evaluation.part("labels"), evaluation.settings
    require_protocol(part)
    queries = vectors_of(evaluation.features("labels"))
    truth = labels_of(part.test).numpy()
    measurements = []
    for suffix, query in queries.items():
        regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=MAX_ITERATIONS))
        if part.train is None:
            predictions = _predict_by_folds(regression, query.numpy(), truth, part.test.groups, settings.seed)
        else:
            stored = vectors_of(evaluation.features("labels", "gallery"))[suffix]
            regression.fit(stored.numpy(), labels_of(part.train).numpy())
            predictions = regression.predict(query.numpy())
        scores = is_right(torch.from_numpy(predictions), part.test)
        measurements.append(evaluation.mean("logistic_regression", f"accuracy{suffix}", scores, "labels"))
    return measurements


def _predict_by_folds(
    regression: Any, features: np.ndarray, labels: np.ndarray, groups: Tensor | None, seed: int
) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold, cross_val_predict

    folds = max(2, min(NUM_FOLDS, smallest_class(torch.from_numpy(labels))))
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    split = splitter(folds, shuffle=True, random_state=seed)
    return cross_val_predict(regression, features, labels, groups=None if groups is None else groups.numpy(), cv=split)


def measure_image_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well each image finds the images of its class: mean average precision, hits and recall.

    Queries whose class has no other image are left out. Without a train split images of one source do not find each
    other.
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
        ranks=RECALL_AT,
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


def no_text_tower(model: FeatureModel, task: str) -> ValueError:
    """Return the error of a task on a model without a text tower."""
    return ValueError(
        f"`{task}` needs a text tower in the checkpoint (radio convert --text-tower), which {model.name!r} "
        "does not have. Leave the task out."
    )


def text_features(model: FeatureModel) -> Wanted:
    """Return the features whose summary is compared with texts.

    Raises:
        ValueError: If the model has no text tower.
    """
    if not isinstance(model, TextModel):
        raise no_text_tower(model, "image_text_retrieval")
    return Wanted() if model.text_adaptor is None else Wanted(adaptors=frozenset([model.text_adaptor]))


def measure_image_text_retrieval(evaluation: Evaluation) -> list[Measurement]:
    """Measure whether images find one of their captions, and captions their image, among the first results."""
    model = evaluation.model
    if not isinstance(model, TextModel):
        raise no_text_tower(model, "image_text_retrieval")
    captions = evaluation.part("captions").test.captions
    assert captions is not None  # the part's kind says so
    summary = evaluation.features("captions").summary(model.text_adaptor)
    images = _require_summary(summary, "image_text_retrieval", evaluation.model.name)
    texts = model.embed_texts([text for several in captions for text in several])
    owners = torch.tensor([image for image, several in enumerate(captions) for _ in several])
    own = torch.arange(len(images))
    ranks = RECALL_AT
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
        query_owners: Index of the image that each query is or describes, `(num_queries,)`.
        gallery: `(num_gallery, dim)`.
        gallery_owners: The same for the gallery, `(num_gallery,)`.
        ranks: The numbers `k`; those beyond the gallery are cut to it.

    Returns:
        "recall@k" by name, `(num_queries,)` of 0 and 1.
    """
    most = min(max(ranks), len(gallery))
    is_own = gallery_owners[nearest_neighbors(queries, gallery, most).index] == query_owners[:, None]
    return {f"recall@{rank}": is_own[:, : min(rank, most)].any(1).double() for rank in ranks}


def zero_shot_features(model: FeatureModel) -> Wanted:
    """Return the features of zero-shot accuracy: the text adaptor's, or all adaptors' to find a classifier."""
    return text_features(model) if isinstance(model, TextModel) else Wanted(adaptors=frozenset(model.adaptor_names))


def measure_zero_shot(evaluation: Evaluation) -> list[Measurement]:
    """Measure zero-shot accuracy through the model's text tower, or else through a teacher's classifier.

    No labeled image is used. With a text tower the sizes of `zero_shot_sizes_px` are measured too.
    """
    if isinstance(evaluation.model, TextModel):
        return _by_texts(evaluation, evaluation.model)
    measurements = []
    for name, teacher in evaluation.teachers.items():
        if isinstance(teacher, TeacherFeatures) and teacher.teacher.class_names:
            measurements += _by_classifier(evaluation, name, teacher)
    if not measurements:
        raise ValueError(
            "`zero_shot` needs a text tower in the checkpoint (radio convert --text-tower), or an adaptor "
            "for a teacher with a classifier, such as efficientnet-lite0, and the --recipe that names it."
        )
    return measurements


def _by_texts(evaluation: Evaluation, model: TextModel) -> list[Measurement]:
    classes = model.embed_classes(evaluation.part("labels").class_names, TEMPLATES[evaluation.settings.templates])
    wanted, measurements = zero_shot_features(evaluation.model), []
    for size_px in (None, *evaluation.settings.zero_shot_sizes_px):
        summary = evaluation.features("labels", wanted=wanted, size_px=size_px).summary(model.text_adaptor)
        metric = "accuracy" if size_px is None else f"accuracy, {size_px} px"
        images = _require_summary(summary, "zero_shot", evaluation.model.name)
        measurements.append(_accuracy(evaluation, evaluation.model.name, metric, images, classes))
    return measurements


def _by_classifier(evaluation: Evaluation, name: str, teacher: TeacherFeatures) -> list[Measurement]:
    """Measure a teacher and its adaptor by the names of the classes that the teacher's classifier predicts."""
    examples = evaluation.examples("labels")
    classifier, encoder = teacher.teacher, SentenceEncoder()
    known = encoder.encode([PROMPT.format(each) for each in classifier.class_names])
    labels = encoder.encode([PROMPT.format(each) for each in evaluation.part("labels").class_names])
    mean = known.mean(dim=0)
    of_teacher = evaluation.store.extract(
        teacher, examples.images, examples.image_fingerprint, Wanted(), description="zero-shot"
    )
    of_student = evaluation.features("labels", wanted=zero_shot_features(evaluation.model))
    measurements = []
    for model, summary in {
        f"teacher {name}": of_teacher.summary(),
        f"adaptor {name}": of_student.summary(name),
    }.items():
        logits = classifier.classify(_require_summary(summary, "zero_shot", model).to(evaluation.model.device)).cpu()
        embeddings = conse_embeddings(logits, centered(known, mean), top_k=NUM_CONSE_CLASSES)
        measurements.append(_accuracy(evaluation, model, "accuracy", embeddings, centered(labels, mean)))
    return measurements


def _accuracy(evaluation: Evaluation, model: str, metric: str, images: Tensor, classes: Tensor) -> Measurement:
    scores = is_right(zero_shot_predictions(images, classes), evaluation.examples("labels"))
    return replace(evaluation.mean("zero_shot", metric, scores, "labels"), model=model)


def _require_summary(summary: Tensor | None, task: str, model: str) -> Tensor:
    if summary is None:
        raise ValueError(f"`{task}` needs a summary, which {model!r} does not have.")
    return summary


def conse_embeddings(class_logits: Tensor, class_name_embeddings: Tensor, *, top_k: int) -> Tensor:
    """Embed images in text space by the names of their likeliest classes.

    Args:
        class_logits: Output of the classifier, `(num_images, num_classes)`.
        class_name_embeddings: Sentence embeddings of the class names, `(num_classes, text_dim)`.
        top_k: Number of classes that contribute.

    Returns:
        Unit vectors, `(num_images, text_dim)`.
    """
    probabilities, classes = class_logits.softmax(dim=1).topk(top_k, dim=1)
    return F.normalize(torch.einsum("nk,nkd->nd", probabilities, class_name_embeddings[classes]), dim=1)


def centered(embeddings: Tensor, mean: Tensor) -> Tensor:
    """Return unit vectors of `embeddings`, `(num_texts, text_dim)`, about `mean`, `(text_dim,)`.

    A prompt such as "a photo of a ..." adds one common direction to all names, which makes them all alike.
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


KNN = Task(measure_knn, "labels", of_baselines=True)
LOGISTIC_REGRESSION = Task(measure_logistic_regression, "labels", of_baselines=True)
ZERO_SHOT = Task(measure_zero_shot, "labels", zero_shot_features, of_compared=knows_texts)
IMAGE_RETRIEVAL = Task(measure_image_retrieval, "labels", of_baselines=True)
IMAGE_TEXT_RETRIEVAL = Task(measure_image_text_retrieval, "captions", text_features, of_compared=knows_texts)
MODE_SWITCHING = Task(measure_mode_switching, "labels", of_compared=takes_sizes)
