"""Tasks on dense features: label maps and depth by probe, correspondence, outliers, resolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from core.seeds import make_generator
from core.timing import ProgressBar
from model_cards.results import Measurement
from training.evaluation.data import ByNumber, CroppedViews, Examples, Kind
from training.evaluation.features import Wanted
from training.evaluation.metrics.bootstrap import bootstrap_interval
from training.evaluation.metrics.dense import (
    IGNORE_INDEX,
    DenseProbe,
    ProbeTraining,
    class_sums,
    depth_errors,
    depth_sums,
    fit_dense_probe,
    log_depth_loss,
    mean_iou_of_sums,
    pixel_accuracy_of_sums,
    segmentation_loss,
    upsampled,
)
from training.evaluation.metrics.fidelity import map_agreement
from training.evaluation.models.radio import PatchTextModel, RadioFeatures
from training.evaluation.tasks.base import Evaluation, dense, summary_or_mean, unit
from training.evaluation.tasks.classification import TEMPLATES, answers_of_neighbors, labels_of, smallest_class


BACKGROUND = "background"
SHARPNESS = 10.0
"""Our choice: divides the attention among alike patches; their cosines differ by some tenths."""


def measure_segmentation_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean IoU and the pixel accuracy of a linear probe on the dense features.

    Without a train split the images are divided in two, whole sources each: a probe of either half predicts the other.
    """
    num_classes = len(evaluation.part("masks").class_names)
    sums: dict[int, Tensor] = {}
    shown = evaluation.shown("masks")
    for learn_from, measured in folds(evaluation, "masks"):
        probe = fit_probe(evaluation, "masks", learn_from, num_classes, segmentation_loss)
        for image in ProgressBar(measured, desc="masks", leave=False, disable=None):
            answer = probed(evaluation, "masks", probe, image)
            mask = masks_of(evaluation.part("masks").test)[image]
            prediction = resized_to(answer, mask).argmax(0)
            sums[image] = class_sums(prediction, mask, num_classes)
            if image in shown:
                evaluation.shown_masks[image] = prediction
    return iou_measurements(evaluation, "segmentation_probe", torch.stack([sums[image] for image in sorted(sums)]))


def iou_measurements(evaluation: Evaluation, task: str, sums: Tensor) -> list[Measurement]:
    """Return mean IoU and pixel accuracy of the sums of each test image, `(num_images, 3 * num_classes)`."""
    return [
        evaluation.of_sums(task, "mIoU", sums, mean_iou_of_sums, "masks"),
        evaluation.of_sums(task, "pixel accuracy", sums, pixel_accuracy_of_sums, "masks"),
    ]


def masks_of(examples: Examples) -> ByNumber[Tensor]:
    """Return the masks of examples that have them."""
    assert examples.masks is not None  # the part's kind says so
    return examples.masks


def folds(evaluation: Evaluation, kind: Kind) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Yield the images to learn from, of the gallery, and those to measure."""
    part = evaluation.part(kind)
    if part.train is not None:
        yield range(len(part.train)), range(len(part.test))
        return
    groups = torch.arange(len(part.test)) if part.test.groups is None else part.test.groups
    sources = groups.unique()
    if len(sources) < 2:
        raise ValueError(f"`data` must have a train split or several images for a probe of {kind}, got one source.")
    drawn = sources[torch.randperm(len(sources), generator=make_generator(evaluation.settings.random_seed, "folds"))]
    is_first = torch.isin(groups, drawn[: len(drawn) // 2])
    first, second = is_first.nonzero().flatten().tolist(), (~is_first).nonzero().flatten().tolist()
    yield first, second
    yield second, first


def fit_probe(
    evaluation: Evaluation,
    kind: Kind,
    images: Sequence[int],
    num_outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> DenseProbe:
    """Train a probe on the windows of some images of the gallery, on the model's device."""
    settings, windows = evaluation.settings, evaluation.windows(kind, "gallery")
    features = evaluation.features(kind, "gallery", wanted=dense(evaluation.model))
    gallery = evaluation.part(kind).gallery
    targets = gallery.masks if kind == "masks" else gallery.depth
    rows = [window for image in images for window in windows.of_image(image)]
    assert targets is not None  # the part's kind says so

    def read(items: Sequence[int], targets: ByNumber[Tensor] = targets) -> tuple[Tensor, Tensor]:
        chosen = [rows[item] for item in items]
        return features.maps(chosen), torch.stack([windows.target(targets, row) for row in chosen])

    return fit_dense_probe(
        read,
        len(rows),
        num_outputs,
        loss,
        ProbeTraining(
            settings.probe_steps,
            settings.probe_learning_rate,
            settings.probe_warmup_steps,
            settings.probe_schedule,
            seed=settings.random_seed,
        ),
        device=evaluation.model.device,
    )


@torch.no_grad()
def probed(evaluation: Evaluation, kind: Kind, probe: DenseProbe, image: int) -> Tensor:
    """Return what a probe says of a test image, `(num_outputs, height, width)` of its windows' frame, on the CPU."""
    windows = evaluation.windows(kind)
    maps = evaluation.features(kind, wanted=dense(evaluation.model)).maps(windows.of_image(image))
    answers = upsampled(probe(maps.to(evaluation.model.device)), (windows.window_px, windows.window_px))
    return windows.merged(image, list(answers.cpu()))


def resized_to(answers: Tensor, target: Tensor) -> Tensor:
    """Return answers `(num_outputs, rows, cols)` at the size of a target `(height, width)`."""
    if answers.shape[1:] == target.shape:
        return answers
    return upsampled(answers[None], (target.shape[0], target.shape[1]))[0]


@torch.no_grad()
def measure_open_vocabulary(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean IoU of patches that are compared with the names of the classes; no mask is learned from.

    With `refinement=correlation` each patch is first replaced by the mean of those that resemble it. "background" names
    nothing that could be seen: where there is a class of that name, the pixels that belong to others are measured
    besides, among those others, as in the papers' VOC20 (https://arxiv.org/abs/2312.01597).
    """
    model, settings, part = evaluation.model, evaluation.settings, evaluation.part("masks")
    if not isinstance(model, PatchTextModel):
        raise ValueError(
            "`open_vocabulary` needs a text tower in the checkpoint (conversion.from_nvidia --text-tower), which "
            f"{model.name!r} does not have. Leave the task out."
        )
    texts = model.embed_classes(part.class_names, TEMPLATES[settings.templates]).to(model.device)
    windows, number = evaluation.windows("masks"), len(part.class_names)
    sums, sums_of_others = [], []
    for image in ProgressBar(range(len(part.test)), desc="open vocabulary", leave=False, disable=None):
        logits = []
        for window in windows.of_image(image):
            pixels = model.preprocess(windows[window])[None].to(model.device)
            patches = model.aligned_patches(pixels, settings.dense_source)
            if settings.refinement == "correlation":
                patches = gather_alike(patches, model.encode(pixels).features)
            cosines = torch.einsum("dhw,nd->nhw", F.normalize(patches[0].float(), dim=0), texts)
            logits.append(upsampled(cosines[None], (windows.window_px, windows.window_px))[0].cpu())
        mask = masks_of(part.test)[image]
        answer = resized_to(windows.merged(image, logits), mask)
        sums.append(class_sums(answer.argmax(0), mask, number))
        if BACKGROUND in part.class_names:
            nothing = part.class_names.index(BACKGROUND)
            answer[nothing] = -torch.inf
            others = mask.masked_fill(mask == nothing, IGNORE_INDEX)
            sums_of_others.append(class_sums(answer.argmax(0), others, number))
    measured = iou_measurements(evaluation, "open_vocabulary", torch.stack(sums))
    if not sums_of_others:
        return measured
    others = torch.stack(sums_of_others)
    return [*measured, evaluation.of_sums("open_vocabulary", "mIoU, no background", others, mean_iou_of_sums, "masks")]


def gather_alike(values: Tensor, features: Tensor, sharpness: float = SHARPNESS) -> Tensor:
    """Return each patch as the weighted mean of the patches that resemble it, over the whole image.

    Weights are a softmax over the cosines of the features; patches less alike than the average have none. What one
    object covers so gets one answer, though single patches waver.

    Args:
        values: What is gathered, such as patches in the space of texts, `(batch, dim, rows, cols)`.
        features: What is compared, of the same grid, `(batch, feature_dim, rows, cols)`.
        sharpness: Multiplies the cosines.

    Raises:
        ValueError: If the grids differ.

    References:
        The self-correlating recursive attention (SCRA) of RADSeg, https://arxiv.org/abs/2511.19704, in one step and
        outside the network.
    """
    if values.shape[2:] != features.shape[2:]:
        raise ValueError(
            f"`features` must have the grid of `values`, {tuple(values.shape[2:])}, got {tuple(features.shape[2:])}."
        )
    vectors = F.normalize(features.flatten(2).float(), dim=1)
    alike = torch.einsum("bdi,bdj->bij", vectors, vectors)
    is_left_out = alike < alike.mean(dim=2, keepdim=True)
    weights = (alike * sharpness).masked_fill(is_left_out, -torch.inf).softmax(dim=2)
    gathered = torch.einsum("bij,bdj->bdi", weights, values.flatten(2).float())
    return gathered.unflatten(2, values.shape[2:]).to(values.dtype)


def measure_depth_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure the errors of a linear probe of the logarithm of depth; without a train split as of segmentation."""
    depth = evaluation.part("depth").test.depth
    assert depth is not None  # the part's kind says so
    sums: dict[int, Tensor] = {}
    for learn_from, measured in folds(evaluation, "depth"):
        probe = fit_probe(evaluation, "depth", learn_from, 1, log_depth_loss)
        for image in ProgressBar(measured, desc="depth", leave=False, disable=None):
            true = depth[image]
            answer = resized_to(probed(evaluation, "depth", probe, image), true)
            sums[image] = depth_sums(answer[0].exp(), true)
    stacked = torch.stack([sums[image] for image in sorted(sums)])
    return [
        evaluation.of_sums("depth_probe", metric, stacked, lambda each, name=metric: depth_errors(each)[name], "depth")
        for metric in ("abs_rel", "rmse", "delta1")
    ]


NUM_CROPS = 4
"""Our choice: views of each image."""


def measure_patch_correspondence(evaluation: Evaluation) -> list[Measurement]:
    """Measure how often the patch of an image that is most like one of a crop lies where that one does.

    Crops are zoomed by up to two and nothing else differs: the probe for data without annotated points. A size is
    given, so that models see views whole: distances would be wrong where a preprocessing cuts off their borders.
    """
    examples, seed = evaluation.examples("photographs"), evaluation.settings.random_seed
    views = CroppedViews(examples.images, NUM_CROPS, seed)
    features = evaluation.store.extract(
        evaluation.model,
        views,
        f"{examples.picture_fingerprint} crops {NUM_CROPS} {seed}",
        Wanted(dense=True),
        size_px=evaluation.model.size_px,
        description="crops",
    )
    near, close = [], []
    for image in range(len(examples)):
        whole, *crops = views.views_of(image)
        distances = torch.cat(
            [correspondence_distances(features.map(whole), features.map(view), *views.box(view)) for view in crops]
        )
        near.append((distances <= 1).double().mean())
        close.append((distances <= 2).double().mean())
    return [
        evaluation.mean("patch_correspondence", f"within {name}", torch.stack(scores), "photographs")
        for name, scores in (("1 patch", near), ("2 patches", close))
    ]


def correspondence_distances(features: Tensor, crop: Tensor, top: float, left: float, side: float) -> Tensor:
    """Return how far the most alike patch of the whole image is from the right place, for each patch of a crop.

    Args:
        features: Of the whole square image, `(dim, rows, cols)`.
        crop: Of the crop, `(dim, crop_rows, crop_cols)`.
        top: Upper edge of the crop in shares of the image.
        left: Its left edge.
        side: Its side.

    Returns:
        Distances in patches of the whole image, the larger of rows and columns, `(crop_rows * crop_cols,)`.
    """
    rows, cols = features.shape[1:]
    vectors = F.normalize(crop.flatten(1), dim=0).T @ F.normalize(features.flatten(1), dim=0)
    found = vectors.argmax(dim=1)
    found_places = torch.stack([found // cols, found % cols], dim=1) + 0.5  # centers of patches
    true_rows = (top + _centers(crop.shape[1]) * side) * rows
    true_cols = (left + _centers(crop.shape[2]) * side) * cols
    true_places = torch.stack(torch.meshgrid(true_rows, true_cols, indexing="ij"), dim=-1).flatten(0, 1)
    return (found_places - true_places).abs().amax(dim=1)


def _centers(count: int) -> Tensor:
    return (torch.arange(count) + 0.5) / count


def measure_out_of_distribution(evaluation: Evaluation) -> list[Measurement]:
    """Measure how well the distance from known classes tells images of classes that were held out.

    A seeded share of the classes is known. Detectors see images of these alone, and then score images of all: of the
    test split, or where there is none of the sources of which they have seen no image: half of those of known images
    are seen.
    """
    from pytorch_ood.detector import KNN, Mahalanobis

    vectors, labels, seen, tested = _divided(evaluation)
    test = evaluation.part("labels").test
    groups = None if test.groups is None else test.groups[tested - (len(labels) - len(test))]  # a train split is first
    known = labels[seen]
    k = min(evaluation.settings.neighbors, smallest_class(known))
    detectors = {"kNN distance": KNN(None, k=k), "Mahalanobis": Mahalanobis(None)}
    is_unknown = ~torch.isin(labels[tested], known.unique())
    if not is_unknown.any() or is_unknown.all():
        raise ValueError("`held_out_classes` must leave known and unknown test images, got only one kind of them.")
    numbered = torch.unique(known, return_inverse=True)[1]
    measurements = []
    for name, detector in detectors.items():
        detector.fit_features(vectors[seen], numbered)
        scores = detector.predict_features(vectors[tested]).cpu()
        measurements.append(_auroc(evaluation, name, scores, is_unknown, groups))
    return measurements


def _auroc(evaluation: Evaluation, name: str, scores: Tensor, is_unknown: Tensor, groups: Tensor | None) -> Measurement:
    def statistic(weights: Tensor) -> Tensor:
        return weighted_auroc(scores, is_unknown, weights)

    settings = evaluation.settings
    interval = bootstrap_interval(
        statistic, len(scores), groups=groups, num_resamples=settings.resamples, seed=settings.random_seed
    )
    value = statistic(torch.ones(1, len(scores), dtype=torch.float64)).item()
    return evaluation.measurement("out_of_distribution", f"AUROC, {name}", value, "labels", interval)


def _divided(evaluation: Evaluation) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return all vectors and labels, and the rows that detectors are fit to and measured on."""
    part, settings = evaluation.part("labels"), evaluation.settings
    vectors, labels = summary_or_mean(evaluation.features("labels")), labels_of(part.test)
    classes = labels_of(part.gallery).unique()
    generator = make_generator(settings.random_seed, "known classes")
    num_held_out = min(max(1, round(settings.held_out_classes * len(classes))), len(classes) - 1)
    held_out = classes[torch.randperm(len(classes), generator=generator)[:num_held_out]]
    if part.train is not None:
        stored, stored_labels = summary_or_mean(evaluation.features("labels", "gallery")), labels_of(part.train)
        seen = (~torch.isin(stored_labels, held_out)).nonzero().flatten()
        tested = torch.arange(len(labels)) + len(stored_labels)
        return torch.cat([stored, vectors]), torch.cat([stored_labels, labels]), seen, tested
    known = (~torch.isin(labels, held_out)).nonzero().flatten()
    groups = torch.arange(len(labels)) if part.test.groups is None else part.test.groups
    sources = groups[known].unique()
    if len(sources) < 2:
        raise ValueError("`data` must have a train split or known images of several sources, got one source.")
    is_seen = torch.isin(groups, sources[torch.randperm(len(sources), generator=generator)[: len(sources) // 2]])
    return vectors, labels, known[is_seen[known]], (~is_seen).nonzero().flatten()


def weighted_auroc(scores: Tensor, is_positive: Tensor, weights: Tensor) -> Tensor:
    """Return the area under the ROC curve for several weightings of the same images, `(num_weightings,)`.

    The probability that a positive image has a higher score than a negative one; ties count half.

    Args:
        scores: `(num_images,)`.
        is_positive: Which ones should score high, bool `(num_images,)`.
        weights: How often each image counts, `(num_weightings, num_images)`.
    """
    values, places = torch.unique(scores, return_inverse=True)
    shape = (len(weights), len(values))
    index = places.expand(len(weights), -1)
    positive = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, index, weights.double() * is_positive)
    negative = torch.zeros(shape, dtype=torch.float64).scatter_add_(1, index, weights.double() * ~is_positive)
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


DEFAULT_WINDOW = 16
"""Our choice for models without windows of their own: the window of the published ones, in tokens."""
CENTERED = ("", ", centered")


def measure_resolution_consistency(evaluation: Evaluation) -> list[Measurement]:
    """Measure how alike the dense features of the images' middle squares are at other sizes and at the largest.

    Metrics are "SIZE to LARGEST px", and the same with ", centered" about the mean feature.
    """
    sizes = evaluation.supported_sizes("consistency_sizes_px", evaluation.settings.consistency_sizes_px)
    maps = {size: evaluation.square_features("photographs", size_px=size, wanted=Wanted(dense=True)) for size in sizes}
    *smaller, largest = sizes
    mean = maps[largest].mean_features().mean(0)
    measurements = []
    for size in smaller:
        agreement = torch.stack(
            [map_agreement(maps[size].map(image), maps[largest].map(image), mean) for image in range(len(maps[size]))]
        )
        for suffix, scores in zip(CENTERED, agreement.T, strict=True):
            metric = f"{size} to {largest} px{suffix}"
            measurements.append(evaluation.mean("resolution_consistency", metric, scores, "photographs"))
    return measurements


def measure_mode_switching(evaluation: Evaluation) -> list[Measurement]:
    """Measure kNN accuracy at several sizes of the queries, the gallery at the model's own size and at theirs.

    A model that changes its mind with the resolution is good where both are alike, and bad where they differ. Of the
    images the middle squares are shown.

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
            scores = answers_of_neighbors(evaluation, queries, vectors("gallery", gallery_size)) == labels
            measurements.append(evaluation.mean("mode_switching", f"{size} px, {name}", scores, "labels"))
        own = vectors("test", own_size)
        cosine = (unit(queries - own.mean(0)) * unit(own - own.mean(0))).sum(1)
        metric = f"{size} px, centered cosine with {own_size} px"
        measurements.append(evaluation.mean("mode_switching", metric, cosine, "labels"))
    return measurements


@torch.no_grad()
def measure_window_consistency(evaluation: Evaluation) -> list[Measurement]:
    """Measure how alike features with ViTDet windows and with global attention are, at the largest switching size."""
    model, settings = evaluation.model, evaluation.settings
    if not isinstance(model, RadioFeatures) or not model.model.config.has_windowed_blocks:
        raise ValueError(
            f"`window_consistency` needs a RADIO model with windowed blocks (`vitdet_num_global`), got {model.name!r}. "
            "Leave the task out."
        )
    config = model.model.config
    window = settings.compared_window or config.vitdet_window_size or DEFAULT_WINDOW
    size = min(max(settings.switching_sizes_px), model.max_size_px)
    size = max(model.patch_size, size // model.patch_size * model.patch_size)
    if window >= size // model.patch_size:
        raise ValueError(
            f"`compared_window` must be below the {size // model.patch_size} patches of {size} px, got {window}: else "
            "one window is the whole image."
        )
    images = evaluation.examples("photographs").images
    pairs: list[tuple[Tensor, Tensor]] = []
    for index in ProgressBar(range(len(images)), desc="windows", leave=False, disable=None):
        pixels = model.preprocess(images[index], size)[None].to(model.device)
        windowed, whole = (model.with_window(pixels, choice).features[0].float().cpu() for choice in (window, "global"))
        pairs.append((windowed, whole))
    mean = torch.stack([whole.mean((1, 2)) for _, whole in pairs]).mean(0)
    agreement = torch.stack([map_agreement(windowed, whole, mean) for windowed, whole in pairs])
    return [
        evaluation.mean("window_consistency", f"window {window} at {size} px{suffix}", scores, "photographs")
        for suffix, scores in zip(CENTERED, agreement.T, strict=True)
    ]
