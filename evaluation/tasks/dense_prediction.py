"""Tasks on dense features: class maps and depth by probe or text, correspondence of patches, sizes and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_radio.core.seeds import make_generator
from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data import ByNumber, CroppedViews, Examples, Kind
from modeling_radio.evaluation.models.radio import PatchTextModel, RadioFeatures
from modeling_radio.evaluation.tasks.base import DENSE, Evaluation, Task, dense_features, require_protocol, takes_sizes
from modeling_radio.evaluation.tasks.classification import TEMPLATES, no_text_tower
from modeling_radio.evaluation.tasks.settings import RADSEG_STEPS, TaskSettings
from modeling_radio.metrics.dense import (
    IGNORE_INDEX,
    class_sums,
    depth_errors,
    depth_sums,
    mean_iou_of_sums,
    pixel_accuracy_of_sums,
)
from modeling_radio.metrics.results import Measurement
from modeling_radio.training.losses.fidelity import map_agreement


BATCH_SIZE = 16
"""Windows for each step of a probe, as in the papers."""
BACKGROUND = "background"
NUM_CROPS = 4
"""Our choice of crops of each image for the correspondence of patches."""
DEFAULT_WINDOW = 16
"""Our choice for models without windows of their own: the window of the published ones, in tokens."""
CENTERED = ("", ", centered")
"""Ends of the metrics' names for the two cosines of `map_agreement`."""


class DenseProbe(nn.Sequential):
    """Batch norm and a 1x1 convolution: `(batch, dim, rows, cols)` to `(batch, num_outputs, rows, cols)`."""

    def __init__(self, dim: int, num_outputs: int, generator: torch.Generator):
        linear = nn.utils.skip_init(nn.Conv2d, dim, num_outputs, kernel_size=1)
        super().__init__(nn.BatchNorm2d(dim), linear)
        for parameter in linear.parameters():
            nn.init.normal_(parameter, std=0.01, generator=generator)


def fit_dense_probe(
    read: Callable[[Sequence[int]], tuple[Tensor, Tensor]],
    num_items: int,
    num_outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: TaskSettings,
    *,
    device: torch.device | str = "cpu",
) -> DenseProbe:
    """Train a probe; equal arguments give equal probes, whatever the global random state (on a GPU up to rounding).

    Args:
        read: Returns dense features `(batch, dim, rows, cols)` and targets `(batch, height, width)` of items by index;
            targets may be finer than the features.
        num_items: Number of items.
        num_outputs: Channels of the output.
        loss: Function of outputs at the targets' resolution, `(batch, num_outputs, height, width)`, and the targets.
        settings: Steps, learning rate, warmup, schedule and seed.
        device: Where it is trained; each batch is moved there. Initial weights and batches are the same anywhere.

    Returns:
        The trained probe in eval mode, on that device.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    dim = read([0])[0].shape[1]
    probe = DenseProbe(dim, num_outputs, generator).to(device)
    optimizer = torch.optim.AdamW(probe.parameters(), settings.probe_learning_rate, weight_decay=0.0)
    rates = _schedule(optimizer, settings)
    for _ in ProgressBar(range(settings.probe_steps), desc="probe", leave=False, disable=None):
        rows = torch.randint(num_items, (min(BATCH_SIZE, num_items),), generator=generator)
        features, targets = (each.to(device) for each in read(rows.tolist()))
        value = loss(upsampled(probe(features), targets.shape[-2:]), targets)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rates.step()
    return probe.eval()


def _schedule(optimizer: torch.optim.Optimizer, settings: TaskSettings) -> torch.optim.lr_scheduler.LRScheduler:
    schedulers = torch.optim.lr_scheduler
    rest = max(1, settings.probe_steps - settings.probe_warmup_steps)
    falling = {"cosine": schedulers.CosineAnnealingLR, "linear": schedulers.PolynomialLR}[settings.probe_schedule]
    after = falling(optimizer, rest)
    if not settings.probe_warmup_steps:
        return after
    rising = schedulers.LinearLR(optimizer, 1e-6, total_iters=settings.probe_warmup_steps)
    return schedulers.SequentialLR(optimizer, [rising, after], [settings.probe_warmup_steps])


def upsampled(outputs: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Return outputs at another resolution, `(batch, num_outputs, *size)`."""
    return F.interpolate(outputs, size, mode="bilinear", align_corners=False)


def segmentation_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Return the cross-entropy over pixels other than `IGNORE_INDEX`; 0 if there are none.

    Args:
        logits: `(batch, num_classes, height, width)`.
        masks: Class indices, `(batch, height, width)`.
    """
    total = F.cross_entropy(logits, masks.long(), ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (masks != IGNORE_INDEX).sum().clamp(min=1)


def log_depth_loss(logs: Tensor, depth: Tensor) -> Tensor:
    """Return the mean absolute error of the logarithm of depth over pixels with a depth; 0 if there are none.

    Our choice of a loss: relative errors count alike near and far, as in the metrics.

    Args:
        logs: Predicted logarithms, `(batch, 1, height, width)`.
        depth: Meters, `(batch, height, width)`; 0 where the depth is not known.
    """
    is_known = depth > 0
    error = (logs[:, 0] - depth.clamp(min=1e-6).log()).abs()
    return (error * is_known).sum() / is_known.sum().clamp(min=1)


def measure_segmentation_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean IoU and the pixel accuracy of a linear probe on the dense features.

    Without a train split the sources of the images are divided in two halves: a probe of either predicts the other.
    """
    num_classes = len(evaluation.part("masks").class_names)
    masks = masks_of(evaluation.part("masks").test)
    shown = evaluation.shown("masks")
    sums: dict[int, Tensor] = {}
    for train, test in folds(evaluation, "masks"):
        probe = fit_probe(evaluation, "masks", train, num_classes, segmentation_loss)
        for image in ProgressBar(test, desc="masks", leave=False, disable=None):
            mask = masks[image]
            prediction = resized_to(predict_with_probe(evaluation, "masks", probe, image), mask).argmax(0)
            sums[image] = class_sums(prediction, mask, num_classes)
            if image in shown:
                evaluation.shown_masks[image] = prediction
    return _iou_measurements(evaluation, "segmentation_probe", torch.stack([sums[image] for image in sorted(sums)]))


def measure_depth_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure the errors of a linear probe of the logarithm of depth; folds as of the segmentation probe."""
    depth = evaluation.part("depth").test.depth
    assert depth is not None  # the part's kind says so
    sums: dict[int, Tensor] = {}
    for train, test in folds(evaluation, "depth"):
        probe = fit_probe(evaluation, "depth", train, 1, log_depth_loss)
        for image in ProgressBar(test, desc="depth", leave=False, disable=None):
            true = depth[image]
            logs = resized_to(predict_with_probe(evaluation, "depth", probe, image), true)
            sums[image] = depth_sums(logs[0].exp(), true)
    stacked = torch.stack([sums[image] for image in sorted(sums)])
    return [
        evaluation.of_sums("depth_probe", metric, stacked, lambda each, name=metric: depth_errors(each)[name], "depth")
        for metric in ("abs_rel", "rmse", "delta1")
    ]


def _iou_measurements(evaluation: Evaluation, task: str, sums: Tensor) -> list[Measurement]:
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
    """Yield indices of the images of the gallery to train on, and of the test images to predict.

    Raises:
        ValueError: If there is neither a train split nor a second source, or a public set lacks its train split.
    """
    part = evaluation.part(kind)
    if part.train is not None:
        yield range(len(part.train)), range(len(part.test))
        return
    require_protocol(part)
    groups = torch.arange(len(part.test)) if part.test.groups is None else part.test.groups
    sources = groups.unique()
    if len(sources) < 2:
        raise ValueError(f"`data` must have a train split or several images for a probe of {kind}, got one source.")
    drawn = sources[torch.randperm(len(sources), generator=make_generator(evaluation.settings.seed, "folds"))]
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
    windows = evaluation.windows(kind, "gallery")
    features = evaluation.features(kind, "gallery", wanted=DENSE)
    gallery = evaluation.part(kind).gallery
    targets = gallery.masks if kind == "masks" else gallery.depth
    rows = [window for image in images for window in windows.of_image(image)]
    assert targets is not None  # the part's kind says so

    def read(items: Sequence[int], targets: ByNumber[Tensor] = targets) -> tuple[Tensor, Tensor]:
        chosen = [rows[item] for item in items]
        return features.maps(chosen), torch.stack([windows.target(targets, row) for row in chosen])

    return fit_dense_probe(read, len(rows), num_outputs, loss, evaluation.settings, device=evaluation.model.device)


@torch.no_grad()
def predict_with_probe(evaluation: Evaluation, kind: Kind, probe: DenseProbe, image: int) -> Tensor:
    """Return a probe's output for a test image, `(num_outputs, height, width)` of its resized frame, on the CPU."""
    windows = evaluation.windows(kind)
    maps = evaluation.features(kind, wanted=DENSE).maps(windows.of_image(image))
    outputs = upsampled(probe(maps.to(evaluation.model.device)), (windows.window_px, windows.window_px))
    return windows.merged(image, list(outputs.cpu()))


def resized_to(outputs: Tensor, target: Tensor) -> Tensor:
    """Return outputs `(num_outputs, rows, cols)` at the size of a target `(height, width)`."""
    if outputs.shape[1:] == target.shape:
        return outputs
    return upsampled(outputs[None], (target.shape[0], target.shape[1]))[0]


@torch.no_grad()
def measure_open_vocabulary(evaluation: Evaluation) -> list[Measurement]:
    """Measure the mean IoU of patches that are compared with the names of the classes; nothing is trained.

    Maps are made as RADSeg does, or with some of its steps (`radseg`). If a class is named "background", a second
    number counts only the pixels of the other classes, compared with these alone, as in the papers' VOC20
    (https://arxiv.org/abs/2312.01597).
    """
    model, settings, part = evaluation.model, evaluation.settings, evaluation.part("masks")
    if not isinstance(model, PatchTextModel):
        raise no_text_tower(model, "open_vocabulary")
    names, number = part.class_names, len(part.class_names)
    texts = model.embed_classes(names, TEMPLATES[settings.templates]).to(model.device)
    others = [index for index, name in enumerate(names) if name != BACKGROUND]
    vocabularies = [texts, texts[others]] if len(others) < number else [texts]
    sums, sums_of_others = [], []
    for image in ProgressBar(range(len(part.test)), desc="open vocabulary", leave=False, disable=None):
        mask = masks_of(part.test)[image]
        scores, *scores_of_others = (
            resized_to(maps, mask) for maps in compare_with_texts(evaluation, model, vocabularies, image)
        )
        sums.append(class_sums(scores.argmax(0), mask, number))
        for each in scores_of_others:
            found = each.argmax(0)
            objects = mask.masked_fill(mask == names.index(BACKGROUND), IGNORE_INDEX)
            sums_of_others.append(class_sums(torch.tensor(others)[found], objects, number))
    measured = _iou_measurements(evaluation, "open_vocabulary", torch.stack(sums))
    if not sums_of_others:
        return measured
    stacked = torch.stack(sums_of_others)
    return [*measured, evaluation.of_sums("open_vocabulary", "mIoU, no background", stacked, mean_iou_of_sums, "masks")]


def compare_with_texts(
    evaluation: Evaluation, model: PatchTextModel, vocabularies: Sequence[Tensor], image: int
) -> list[Tensor]:
    """Return similarities of a test image's patches and texts on the CPU.

    For each vocabulary they are `(num_texts, rows, cols)` of any size.
    """
    settings, windows = evaluation.settings, evaluation.windows("masks")
    wanted, side = RADSEG_STEPS if settings.radseg is None else settings.radseg, settings.window_px
    options: dict[str, Any] = dict.fromkeys(step for step in RADSEG_STEPS if step not in wanted)
    if "sliding" in wanted and side is not None:
        options["sliding"] = (side, max(1, round(side * settings.window_stride)))

    def compare(pixels: Tensor) -> list[Tensor]:
        found = model.segment(pixels[None].to(model.device), vocabularies, settings.dense_source, options)
        return [maps.float().cpu() for maps in found]

    if "sliding" in wanted:  # the model cuts windows itself, and joins them before it compares
        pixels = model.preprocessing(settings.shorter_px or side)(evaluation.examples("masks").images[image])
        return [maps[0] for maps in compare(pixels)]
    size = (windows.window_px, windows.window_px)
    by_window = [compare(model.preprocess(windows[window])) for window in windows.of_image(image)]
    return [
        windows.merged(image, [upsampled(maps, size)[0] for maps in of_vocabulary])
        for of_vocabulary in zip(*by_window, strict=True)
    ]


def measure_patch_correspondence(evaluation: Evaluation) -> list[Measurement]:
    """Measure how often the nearest patch of an image to a patch of its crop lies at the right position.

    Crops are zoomed by up to two and nothing else differs, so that no annotated points are needed. The size is given,
    because a preprocessing that cuts off borders would make the distances wrong.
    """
    examples, seed = evaluation.examples("photographs"), evaluation.settings.seed
    views = CroppedViews(examples.images, NUM_CROPS, seed)
    features = evaluation.store.extract(
        evaluation.model,
        views,
        f"{examples.image_fingerprint} crops {NUM_CROPS} {seed}",
        DENSE,
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
    """Return the distance of the nearest patch of the whole image from the right position, for each patch of a crop.

    Args:
        features: Features of the whole square image, `(dim, rows, cols)`.
        crop: Features of the crop, `(dim, crop_rows, crop_cols)`.
        top: Upper edge of the crop as a share of the image.
        left: Its left edge.
        side: Its side.

    Returns:
        Distances in patches of the whole image, the larger of rows and columns, `(crop_rows * crop_cols,)`.
    """
    rows, cols = features.shape[1:]
    found = (F.normalize(crop.flatten(1), dim=0).T @ F.normalize(features.flatten(1), dim=0)).argmax(dim=1)
    found_centers = torch.stack([found // cols, found % cols], dim=1) + 0.5
    crop_rows, crop_cols = ((torch.arange(count) + 0.5) / count for count in crop.shape[1:])
    axes = (top + crop_rows * side) * rows, (left + crop_cols * side) * cols
    true_centers = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)
    return (found_centers - true_centers).abs().amax(dim=1)


def measure_resolution_consistency(evaluation: Evaluation) -> list[Measurement]:
    """Measure the cosine of dense features of the images' middle squares at each size with those at the largest.

    Metrics are "SIZE to LARGEST px", and the same with ", centered" about the mean feature.
    """
    sizes = evaluation.supported_sizes("consistency_sizes_px", evaluation.settings.consistency_sizes_px)
    maps = {size: evaluation.square_features("photographs", size_px=size, wanted=DENSE) for size in sizes}
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


@torch.no_grad()
def measure_window_consistency(evaluation: Evaluation) -> list[Measurement]:
    """Measure the cosine of features with ViTDet windows and with global attention, at the largest switching size."""
    model, settings = evaluation.model, evaluation.settings
    if not isinstance(model, RadioFeatures) or not model.model.config.has_windowed_blocks:
        raise ValueError(
            f"`window_consistency` needs a RADIO model with windowed blocks (`vitdet_num_global`), got {model.name!r}. "
            "Leave the task out."
        )
    window = model.model.config.vitdet_window_size or DEFAULT_WINDOW
    num_patches = max(1, min(max(settings.switching_sizes_px), model.max_size_px) // model.patch_size)
    size = num_patches * model.patch_size
    if window >= num_patches:
        raise ValueError(
            f"`switching_sizes_px` must reach more than the {window} patches of a window, got {num_patches} at {size} "
            "px: else one window is the whole image."
        )
    images = evaluation.examples("photographs").images
    pairs: list[tuple[Tensor, Tensor]] = []
    for index in ProgressBar(range(len(images)), desc="windows", leave=False, disable=None):
        pixels = model.preprocess(images[index], size)[None].to(model.device)
        windowed, whole = (
            model.encode(pixels, window_size=choice).features[0].float().cpu() for choice in (window, "global")
        )
        pairs.append((windowed, whole))
    mean = torch.stack([whole.mean((1, 2)) for _, whole in pairs]).mean(0)
    agreement = torch.stack([map_agreement(windowed, whole, mean) for windowed, whole in pairs])
    return [
        evaluation.mean("window_consistency", f"window {window} at {size} px{suffix}", scores, "photographs")
        for suffix, scores in zip(CENTERED, agreement.T, strict=True)
    ]


SEGMENTATION_PROBE = Task(measure_segmentation_probe, "masks", dense_features, of_baselines=True)
OPEN_VOCABULARY = Task(measure_open_vocabulary, "masks")
DEPTH_PROBE = Task(measure_depth_probe, "depth", dense_features, of_baselines=True)
PATCH_CORRESPONDENCE = Task(measure_patch_correspondence, "photographs", of_baselines=True)
RESOLUTION_CONSISTENCY = Task(measure_resolution_consistency, "photographs", of_compared=takes_sizes)
WINDOW_CONSISTENCY = Task(measure_window_consistency, "photographs")
