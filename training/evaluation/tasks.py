"""The evaluations by name: each turns a model's features of the held-out images into measurements."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

from model_cards.results import Measurement
from training.demo_kit.assets import DemoAssets, Photograph, load_demo_assets
from training.demo_kit.evaluation_sets import (
    ClassificationSet,
    SegmentationSet,
    classification_set,
    photographs,
    segmentation_set,
)
from training.demo_kit.images import render
from training.evaluation.adaptor_fidelity import adaptor_fidelity
from training.evaluation.extractors import FeatureExtractor, Features, extract_features
from training.evaluation.knn import knn_accuracy
from training.evaluation.resolution_consistency import resolution_consistency
from training.evaluation.segmentation_probe import segmentation_probe_miou
from training.evaluation.text_encoder import SentenceEncoder
from training.evaluation.zero_shot import centered, conse_embeddings, zero_shot_accuracy
from training.views.images import build_images


NUM_NEIGHBORS = 5
"""Our choice for the demo's sets, some of whose classes have fewer images than the papers' k = 20."""
NUM_UNLABELED = 256
"""Held-out images on which adaptors are compared with their teachers; our choice."""
PROMPT = "a photo of a {}"
NUM_CONSE_CLASSES = 10
"""ImageNet classes that place an image in text space; 10 as in the ConSE paper."""


@dataclass(frozen=True)
class EvaluationData:
    """The held-out images of one data source at one size, and how models are run on them.

    Attributes:
        source: As in the recipe's `data.source`.
        assets: What the images are made of.
        classification: Objects of known classes.
        segmentation: Scenes with masks.
        unlabeled: Images like those of the training, uint8 `(num_images, 3, size, size)`.
        device: Where models run.
        dtype: Autocast type; None for the models' own.
    """

    source: str
    assets: DemoAssets
    classification: ClassificationSet
    segmentation: SegmentationSet
    unlabeled: Tensor
    device: str = "cpu"
    dtype: torch.dtype | None = None

    @classmethod
    def load(cls, source: str, size: int, *, device: str = "cpu", dtype: torch.dtype | None = None) -> EvaluationData:
        """Fetch and render the images of a source at `size` x `size` pixels.

        Raises:
            ValueError: If the source has no labeled images.
            PackageError: If packages cannot be fetched.
        """
        assets = load_demo_assets(source)
        unlabeled = build_images(source, size=size, num_images=NUM_UNLABELED, split="held_out")
        return cls(
            source,
            assets,
            classification_set(assets, size),
            segmentation_set(assets, size),
            render(unlabeled, range(NUM_UNLABELED), num_workers=0, show_progress=False),
            device,
            dtype,
        )

    def extract(self, extractor: FeatureExtractor, images: Tensor, description: str) -> Features:
        """Run a model over some of the images."""
        return extract_features(extractor, images, device=self.device, dtype=self.dtype, description=description)

    def remarks(self) -> list[str]:
        """Say what the test sets are and how far their numbers can be trusted."""
        classes, scenes = self.classification, self.segmentation
        num_queries, num_stored = len(classes.query_labels), len(classes.gallery_labels)
        majority = classes.query_labels.bincount().max().item() / num_queries
        error = math.sqrt(0.25 / num_queries)
        return [
            f"kNN, k = {NUM_NEIGHBORS}: {num_queries} held-out objects of {len(classes.class_names)} classes, "
            f"{num_stored} training objects. Always answering the most frequent class scores {majority:.3f}; "
            f"the standard error of an accuracy of one half is {error:.3f}.",
            f"Segmentation probe: {len(scenes.train_images)} training and {len(scenes.test_images)} test "
            f"scenes of {len(scenes.class_names)} classes with the background, composed of objects on "
            "photographs; those of the test scenes are held out.",
            f"Adaptor fidelity: mean cosine with the teacher on {len(self.unlabeled)} held-out images; "
            "centered: about the teacher's mean, where a constant answer scores zero.",
        ]


def measure_knn(
    model: str, extractor: FeatureExtractor, data: EvaluationData, seed: int | None = None
) -> list[Measurement]:
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
    model: str, extractor: FeatureExtractor, data: EvaluationData, seed: int | None = None
) -> list[Measurement]:
    """Measure the mean IoU of a linear probe on the dense features."""
    scenes = data.segmentation
    train = data.extract(extractor, scenes.train_images, f"{model}: training scenes")
    test = data.extract(extractor, scenes.test_images, f"{model}: test scenes")
    num_classes = len(scenes.class_names)
    miou = segmentation_probe_miou(train.features, scenes.train_masks, test.features, scenes.test_masks, num_classes)
    return [Measurement(model, "segmentation_probe", "mIoU", f"{data.source} scenes", miou, seed)]


def measure_adaptor_fidelity(
    model: str, adaptor: FeatureExtractor, teacher: Features, data: EvaluationData, seed: int | None = None
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
    data: EvaluationData,
    seed: int | None = None,
) -> list[Measurement]:
    """Measure zero-shot accuracy through the ImageNet classifier of a teacher; no labeled image is used.

    Args:
        model: Name in the results.
        extractor: The teacher, or the student's adaptor for it.
        classify: The teacher's classifier: summaries to the logits of the 1,000 ImageNet classes.
        data: The images.
        seed: Seed of the training run, None for what was not trained here.
    """
    images = data.classification
    queries = data.extract(extractor, images.query_images, f"{model}: queries")
    if queries.summary is None:
        raise ValueError(f"zero_shot needs a summary, which {model!r} does not have")
    encoder = SentenceEncoder()
    known = encoder.encode([PROMPT.format(name) for name in imagenet_class_names()])
    labels = encoder.encode([PROMPT.format(name) for name in images.class_names])
    mean = known.mean(dim=0)
    class_logits = classify(queries.summary.to(data.device)).cpu()
    embeddings = conse_embeddings(class_logits, centered(known, mean), top_k=NUM_CONSE_CLASSES)
    accuracy = zero_shot_accuracy(embeddings, centered(labels, mean), images.query_labels)
    return [Measurement(model, "zero_shot", "accuracy", f"{data.source} objects", accuracy, seed)]


def measure_text_zero_shot(
    model: str, adaptor: FeatureExtractor, class_embeddings: Tensor, data: EvaluationData, seed: int | None = None
) -> list[Measurement]:
    """Measure zero-shot accuracy through the text tower of an adaptor's teacher; no labeled image is used.

    Args:
        model: Name in the results.
        adaptor: The adaptor, whose summary lives in the space of the texts.
        class_embeddings: One vector for each of the images' classes, `(num_classes, summary_dim)`.
        data: The images.
        seed: As of `measure_zero_shot`.
    """
    images = data.classification
    queries = data.extract(adaptor, images.query_images, f"{model}: queries")
    if queries.summary is None:
        raise ValueError(f"zero_shot needs a summary, which {model!r} does not have")
    accuracy = zero_shot_accuracy(queries.summary, class_embeddings, images.query_labels)
    return [Measurement(model, "zero_shot", "accuracy", f"{data.source} objects", accuracy, seed)]


def imagenet_class_names() -> list[str]:
    """Return the names of the 1,000 ImageNet classes in the order of every ImageNet classifier."""
    return EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]


def measure_resolution_consistency(
    model: str,
    extractor: FeatureExtractor,
    data: EvaluationData,
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


def load_photographs(chosen: Sequence[Photograph], size: int) -> Tensor:
    """Return the middle squares of photographs, uint8 RGB, `(num_photographs, 3, size, size)`."""
    pictures = []
    for photograph in chosen:
        with Image.open(photograph.path) as picture:
            square = ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.array(square)).movedim(-1, 0))
    return torch.stack(pictures)
