"""The evaluations, one function each: from a model's features of the held-out images to measurements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from model_cards.results import Measurement
from training.demo_kit.evaluation_sets import photographs
from training.evaluation.data.demo import NUM_NEIGHBORS, DemoData, load_photographs
from training.evaluation.extractors import FeatureExtractor, Features
from training.evaluation.metrics.adaptor_fidelity import adaptor_fidelity
from training.evaluation.metrics.knn_accuracy.votes import knn_accuracy
from training.evaluation.metrics.resolution_consistency import resolution_consistency
from training.evaluation.metrics.segmentation_probe import segmentation_probe_miou
from training.evaluation.metrics.zero_shot import centered, conse_embeddings, zero_shot_accuracy
from training.evaluation.text_encoder import SentenceEncoder


PROMPT = "a photo of a {}"
NUM_CONSE_CLASSES = 10
"""ImageNet classes that place an image in text space; 10 as in the ConSE paper."""


def measure_knn(model: str, extractor: FeatureExtractor, data: DemoData, seed: int | None = None) -> list[Measurement]:
    """Measure weighted kNN accuracy from the summary, and from the dense features' mean for comparison."""
    images = data.classification
    gallery = data.extract(extractor, images.gallery_images, f"{model}: gallery")
    queries = data.extract(extractor, images.query_images, f"{model}: queries")
    inputs = {"accuracy, mean features": (queries.mean_features, gallery.mean_features)}
    if queries.summary is not None and gallery.summary is not None:
        inputs = {"accuracy": (queries.summary, gallery.summary), **inputs}
    return [
        Measurement(
            model,
            "knn",
            metric,
            f"{data.source} objects",
            knn_accuracy(query, images.query_labels, stored, images.gallery_labels, k=NUM_NEIGHBORS),
            seed,
        )
        for metric, (query, stored) in inputs.items()
    ]


def measure_segmentation_probe(
    model: str, extractor: FeatureExtractor, data: DemoData, seed: int | None = None
) -> list[Measurement]:
    """Measure the mean IoU of a linear probe on the dense features."""
    scenes = data.segmentation
    train = data.extract(extractor, scenes.train_images, f"{model}: training scenes")
    test = data.extract(extractor, scenes.test_images, f"{model}: test scenes")
    num_classes = len(scenes.class_names)
    miou = segmentation_probe_miou(train.features, scenes.train_masks, test.features, scenes.test_masks, num_classes)
    return [Measurement(model, "segmentation_probe", "mIoU", f"{data.source} scenes", miou, seed)]


def measure_adaptor_fidelity(
    model: str, adaptor: FeatureExtractor, teacher: Features, data: DemoData, seed: int | None = None
) -> list[Measurement]:
    """Measure how closely an adaptor reproduces its teacher's features of `data.unlabeled`."""
    answer = data.extract(adaptor, data.unlabeled, f"{model}: images")
    fidelity = adaptor_fidelity(answer, teacher)
    return [
        Measurement(model, "adaptor_fidelity", metric.replace("_", " "), f"{data.source} images", value, seed)
        for metric, value in fidelity._asdict().items()
        if value is not None
    ]


def measure_zero_shot(
    model: str,
    extractor: FeatureExtractor,
    classify: Callable[[Tensor], Tensor],
    data: DemoData,
    seed: int | None = None,
) -> list[Measurement]:
    """Measure zero-shot accuracy through the ImageNet classifier of a teacher; no labeled image is used.

    Args:
        model: Name in the results.
        extractor: The teacher, or the student's adaptor for it.
        classify: The teacher's classifier: summaries to the logits of the 1,000 ImageNet classes.
        data: The images.
        seed: Seed of the training run; None if nothing was trained.

    Raises:
        ValueError: If the extractor gives no summary.
    """
    summaries, images = _query_summaries(model, extractor, data), data.classification
    encoder = SentenceEncoder()
    known = encoder.encode([PROMPT.format(name) for name in imagenet_class_names()])
    labels = encoder.encode([PROMPT.format(name) for name in images.class_names])
    mean = known.mean(dim=0)
    class_logits = classify(summaries.to(data.device)).cpu()
    embeddings = conse_embeddings(class_logits, centered(known, mean), top_k=NUM_CONSE_CLASSES)
    accuracy = zero_shot_accuracy(embeddings, centered(labels, mean), images.query_labels)
    return [Measurement(model, "zero_shot", "accuracy", f"{data.source} objects", accuracy, seed)]


def measure_text_zero_shot(
    model: str, adaptor: FeatureExtractor, class_embeddings: Tensor, data: DemoData, seed: int | None = None
) -> list[Measurement]:
    """Measure zero-shot accuracy through the text tower of an adaptor's teacher; no labeled image is used.

    Args:
        model: Name in the results.
        adaptor: The adaptor, whose summary lives in the space of the texts.
        class_embeddings: One vector for each of the images' classes, `(num_classes, summary_dim)`.
        data: The images.
        seed: Seed of the training run; None if nothing was trained.

    Raises:
        ValueError: If the adaptor gives no summary.
    """
    summaries = _query_summaries(model, adaptor, data)
    accuracy = zero_shot_accuracy(summaries, class_embeddings, data.classification.query_labels)
    return [Measurement(model, "zero_shot", "accuracy", f"{data.source} objects", accuracy, seed)]


def _query_summaries(model: str, extractor: FeatureExtractor, data: DemoData) -> Tensor:
    summaries = data.extract(extractor, data.classification.query_images, f"{model}: queries").summary
    if summaries is None:
        raise ValueError(f"`zero_shot` needs a summary, which {model!r} does not have.")
    return summaries


def imagenet_class_names() -> list[str]:
    """Return the names of the 1,000 ImageNet classes in the order of every ImageNet classifier."""
    return EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def measure_resolution_consistency(
    model: str,
    extractor: FeatureExtractor,
    data: DemoData,
    sizes_px: Sequence[int],
    seed: int | None = None,
) -> list[Measurement]:
    """Measure how alike the dense features of held-out photographs are at other sizes and at the largest.

    Metrics are "SIZE to LARGEST px", and the same with ", centered" about the mean feature.
    """
    images = load_photographs(photographs(data.assets), max(sizes_px))
    consistency = resolution_consistency(extractor, images, sizes_px, device=data.device)
    return [
        Measurement(
            model,
            "resolution_consistency",
            f"{size} to {max(sizes_px)} px{suffix}",
            f"{data.source} photographs",
            value,
            seed,
        )
        for size, both in consistency.items()
        for suffix, value in (("", both.features), (", centered", both.centered_features))
    ]
