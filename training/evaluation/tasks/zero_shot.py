"""Classes by their names alone: through a text tower, or through the classifier of a teacher.

ConSE (Norouzi et al., 2014, https://arxiv.org/abs/1312.5650) places an image in the space of a sentence
encoder as the mean of the names of its likeliest classes. An adaptor's summary passes through its teacher's
own classifier first, just as RADIO's SigLIP2 adaptor is compared with the texts of SigLIP2's own tower.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from model_cards.results import Measurement
from modeling_radio.zero_shot_radio import OPENAI_TEMPLATES, PLAIN_TEMPLATES, SIMPLE_TEMPLATES
from training.evaluation.data.tables import imagenet_class_names
from training.evaluation.features import Wanted
from training.evaluation.models.base import FeatureModel, TextModel
from training.evaluation.models.sentences import SentenceEncoder
from training.evaluation.models.teachers import TeacherFeatures
from training.evaluation.tasks.base import Evaluation
from training.evaluation.tasks.classification import labels_of
from training.teachers.embedded.efficientnet_lite import EfficientNetLiteTeacher


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
