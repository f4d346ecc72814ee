"""Classes of pixels by a linear probe and by texts beside patches; their depth by a linear probe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from foundation.machine.timing import ProgressBar
from foundation.seeds import make_generator
from model_cards.results import Measurement
from training.evaluation.data.base import ByNumber, Examples, Kind
from training.evaluation.metrics.confusion import (
    IGNORE_INDEX,
    class_sums,
    mean_iou_of_sums,
    pixel_accuracy_of_sums,
)
from training.evaluation.metrics.dense_probe import (
    DenseProbe,
    ProbeTraining,
    fit_dense_probe,
    log_depth_loss,
    segmentation_loss,
    upsampled,
)
from training.evaluation.metrics.depth import depth_errors, depth_sums
from training.evaluation.models.radio import PatchTextModel
from training.evaluation.tasks.base import Evaluation, dense
from training.evaluation.tasks.zero_shot import TEMPLATES


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
