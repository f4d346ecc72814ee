"""Tasks with a DPT head on four blocks of the frozen network: depth in bins, and surface normals; as in Probe3D.

References:
    Probe3D, https://arxiv.org/abs/2404.08636, and its code, https://github.com/mbanani/probe3d: constants below without
    another source are of its configurations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2.functional import center_crop

from modeling_radio.core.timing import ProgressBar
from modeling_radio.evaluation.data import Examples, Kind, square
from modeling_radio.evaluation.models.radio import RadioFeatures
from modeling_radio.evaluation.tasks.base import Evaluation, Task
from modeling_radio.evaluation.tasks.settings import TaskSettings
from modeling_radio.metrics.dense import DELTA, normal_scores
from modeling_radio.metrics.results import Measurement


BATCH_SIZE = 8
HIDDEN_DIM = 512
NUM_BINS, MIN_DEPTH, MAX_DEPTH = 256, 1e-3, 10.0
"""Bins of depth, and their first and last in meters; depth beyond the last is not known."""
LEAST_RATE = 0.01
"""Learning rate at the start and the end, as a share of the peak."""
JITTER, JITTER_SHARE = 0.2, 0.8
"""Strength of the changes of color of training images, and the share of images with them."""
SMALLEST_CROP, CROP_SHARE = 0.5, 0.5
"""Smallest area of a square cut out of a training image, and the share of images that are cut."""
ANGLES = (11.25, 22.5, 30.0)
"""Degrees within which a normal counts as right."""


class Residual(nn.Module):
    """Two convolutions whose output is added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape, `(batch, dim, rows, cols)`."""
        return self.layers(maps) + maps


class DptProbe(nn.Module):
    """Fuses the maps of four blocks, the last first, to 16 rows and columns for each patch.

    Args:
        dim: Channels of the maps.
        num_outputs: Channels of the output.
        hidden_dim: Channels in between.
    """

    def __init__(self, dim: int, num_outputs: int, hidden_dim: int = HIDDEN_DIM) -> None:
        super().__init__()
        self.inputs = nn.ModuleList(nn.Conv2d(dim, hidden_dim, 1) for _ in range(4))
        self.before = nn.ModuleList(Residual(hidden_dim) for _ in range(3))
        self.after = nn.ModuleList(Residual(hidden_dim) for _ in range(4))
        layers = [nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), nn.ReLU()]
        self.outputs = nn.Sequential(*layers, nn.Conv2d(hidden_dim, num_outputs, 3, padding=1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return `(batch, num_outputs, 16 * rows, 16 * cols)` of four maps `(batch, dim, rows, cols)`."""
        *others, last = [enlarged(layer(each), 2) for layer, each in zip(self.inputs, maps, strict=True)]
        fused = self.after[3](last)
        for block in (2, 1, 0):
            fused = self.after[block](self.before[block](others[block]) + fused)
        return enlarged(self.outputs(enlarged(fused, 4)), 2)


def enlarged(maps: Tensor, factor: int) -> Tensor:
    """Return maps with `factor` times as many rows and columns."""
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=True)


def depth_of_bins(outputs: Tensor) -> Tensor:
    """Return the mean depth of bins in meters, `(batch, height, width)`, of `(batch, num_bins, height, width)`."""
    shares = outputs.relu() + 0.1
    bins = torch.linspace(MIN_DEPTH, MAX_DEPTH, outputs.shape[1], device=outputs.device)
    return torch.einsum("bnhw,n->bhw", shares / shares.sum(1, keepdim=True), bins)


def depth_loss(predicted: Tensor, true: Tensor) -> Tensor:
    """Return ten times the scale-invariant error of log depth, and half of the error of its gradients at four scales.

    Args:
        predicted: Meters, `(batch, height, width)`.
        true: Meters; 0 where the depth is not known.

    References:
        DINOv2, https://arxiv.org/abs/2304.07193; AdaBins, https://arxiv.org/abs/2011.14141.
    """
    is_known = true > 0
    if not is_known.any():
        return 0 * predicted.sum()
    error = (predicted + 1e-3).log() - (true + 1e-3).log()
    known = error[is_known]
    scale = (known.square().mean() - 0.85 * known.mean().square()).clamp(min=1e-12).sqrt()
    steps = [gradient_error(error[:, ::step, ::step], is_known[:, ::step, ::step]) for step in (1, 2, 4, 6)]
    return 10 * scale + 0.5 * torch.stack(steps).sum()


def gradient_error(error: Tensor, is_known: Tensor) -> Tensor:
    """Return the differences of an error between pixels two apart, summed, for each known pixel."""
    total = error.new_zeros(())
    for dim in (1, 2):
        length = error.shape[dim] - 2
        first, second = error.narrow(dim, 0, length), error.narrow(dim, 2, length)
        both = is_known.narrow(dim, 0, length) & is_known.narrow(dim, 2, length)
        total = total + (first - second).abs()[both].sum()
    return total / is_known.sum().clamp(min=1)


def normal_loss(predicted: Tensor, true: Tensor, is_known: Tensor) -> Tensor:
    """Return the negative log likelihood of normals by the angular von Mises-Fisher distribution.

    Args:
        predicted: Direction, and as the fourth channel concentration before its activation, `(batch, 4, height, width)`
        true: Unit normals, `(batch, 3, height, width)`.
        is_known: Pixels that count, bool `(batch, height, width)`.

    References:
        Bae et al., Estimating and exploiting the aleatoric uncertainty in surface normal estimation, ICCV 2021.
        https://arxiv.org/abs/2109.09881
    """
    if not is_known.any():
        return 0 * predicted.sum()
    angles = F.cosine_similarity(predicted[:, :3], true, dim=1).clamp(-1 + 1e-4, 1 - 1e-4).acos()
    kappa = F.elu(predicted[:, 3]) + 1.01
    losses = (1 + (-kappa * math.pi).exp()).log() - (kappa.square() + 1).log() + kappa * angles
    return losses[is_known].mean()


def measure_depth_dpt_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure depth by a DPT head with bins: the share of pixels within a factor of 1.25, and the error in meters.

    Both are means over images, of middle squares.
    """

    def loss(outputs: Tensor, depth: Tensor) -> Tensor:
        return depth_loss(depth_of_bins(outputs), depth[:, 0])

    def scores(outputs: Tensor, depth: Tensor) -> Tensor:
        return depth_scores(depth_of_bins(outputs), depth[:, 0])

    found = fit_and_score(evaluation, "depth", NUM_BINS, loss, scores)
    return [
        evaluation.mean("depth_dpt_probe", metric, values, "depth")
        for metric, values in zip(("delta1", "rmse"), found.T, strict=True)
    ]


def depth_scores(predicted: Tensor, true: Tensor) -> Tensor:
    """Return for each image the share of pixels within a factor of 1.25, and the root mean square error, `(batch, 2)`.

    Args:
        predicted: Meters, `(batch, height, width)`.
        true: Meters; 0 where the depth is not known.
    """
    is_known = true > 0
    count = is_known.sum((1, 2)).clamp(min=1).double()
    ratio = torch.maximum(predicted / true.clamp(min=1e-9), true / predicted.clamp(min=1e-9))
    within = ((ratio < DELTA) & is_known).sum((1, 2)) / count
    square_error = ((predicted - true).square() * is_known).double().sum((1, 2)) / count
    return torch.stack([within, square_error.sqrt()], dim=1)


def measure_normals_dpt_probe(evaluation: Evaluation) -> list[Measurement]:
    """Measure surface normals by a DPT head: the shares within 11.25, 22.5 and 30 degrees, means over images.

    Pixels without a depth do not count. Images are middle squares.
    """

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return normal_loss(outputs, targets[:, 1:], targets[:, 0] > 0)

    def scores(outputs: Tensor, targets: Tensor) -> Tensor:
        return normal_scores(outputs[:, :3], targets[:, 1:], targets[:, 0] > 0, ANGLES)

    found = fit_and_score(evaluation, "normals", 4, loss, scores)
    return [
        evaluation.mean("normals_dpt_probe", f"within {angle:g} degrees", values, "normals")
        for angle, values in zip(ANGLES, found.T, strict=True)
    ]


def fit_and_score(
    evaluation: Evaluation,
    kind: Kind,
    num_outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    scores: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Train a probe on the train split and return the scores of each test image, `(num_images, num_scores)`.

    Raises:
        ValueError: If there is no train split, or the model does not give its blocks.
    """
    model, part, settings = evaluation.model, evaluation.part(kind), evaluation.settings
    if part.train is None:
        raise ValueError(f"`data` must have a train split for a probe of {kind}, got none.")
    if not isinstance(model, RadioFeatures):
        raise ValueError(f"A DPT probe needs a RADIO model, which gives its blocks, got {model.name!r}.")
    probe = fit_dpt_probe(model, part.train, kind, num_outputs, loss, settings)
    found = []
    with torch.no_grad():
        for index in ProgressBar(range(len(part.test)), desc=kind, leave=False, disable=None):
            image, target = read_square(part.test, kind, index, model.size_px)
            found.append(scores(predicted(model, probe, image[None], target.shape[-2:]), target[None].to(model.device)))
    return torch.cat(found).cpu()


def fit_dpt_probe(
    model: RadioFeatures,
    examples: Examples,
    kind: Kind,
    num_outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    settings: TaskSettings,
) -> DptProbe:
    """Train a probe with AdamW on batches of 8; equal arguments give equal probes, whatever the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        probe = DptProbe(model.model.config.hidden_size, num_outputs, HIDDEN_DIM).to(model.device)
        optimizer = torch.optim.AdamW(probe.parameters(), settings.probe_learning_rate)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, settings))
        batches = shuffled_batches(len(examples), settings.probe_steps)
        for rows in ProgressBar(batches, desc="DPT probe", leave=False, disable=None, total=settings.probe_steps):
            pairs = [augmented(*read_square(examples, kind, row, model.size_px)) for row in rows]
            images, targets = (torch.stack(each) for each in zip(*pairs, strict=True))
            value = loss(predicted(model, probe, images, targets.shape[-2:]), targets.to(model.device))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            rates.step()
    return probe.eval()


def shuffled_batches(num_items: int, num_batches: int) -> Iterator[list[int]]:
    """Yield batches of indices, each item once before any comes again.

    Probe3D's loader shuffles on several GPUs only; on one it reads the frames in the order of their names.
    """
    made = 0
    while made < num_batches:
        for rows in torch.randperm(num_items).split(BATCH_SIZE)[: num_batches - made]:
            made += 1
            yield rows.tolist()


def rate_at(step: int, settings: TaskSettings) -> float:
    """Return the learning rate of a step as a share of the peak: it rises in a line, and falls as a quarter cosine."""
    rising, last = settings.probe_warmup_steps, settings.probe_steps
    if step <= rising:
        return (1 - LEAST_RATE) * (step / rising if rising else 1.0) + LEAST_RATE
    return (1 - LEAST_RATE) * math.cos(math.pi / 2 * (step - rising) / (last - rising)) + LEAST_RATE


def read_square(examples: Examples, kind: Kind, index: int, side_px: int) -> tuple[Tensor, Tensor]:
    """Return the middle square of an image, uint8, and of its targets: depth, followed by normals if asked for.

    Args:
        examples: The images.
        kind: "depth" or "normals".
        index: Number of the image.
        side_px: Side of both.
    """
    assert examples.depth is not None
    depth = examples.depth[index][None].clone()
    depth[depth > MAX_DEPTH] = 0
    parts = [depth]
    if kind == "normals":
        assert examples.normals is not None
        parts.append(examples.normals[index])
    target = center_crop(torch.cat(parts), [min(depth.shape[1:])] * 2)
    return square(examples.images[index], side_px), F.interpolate(target[None], (side_px, side_px), mode="nearest")[0]


def augmented(image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return a training image with other colors, and a square cut out of it and of its target, both by chance."""
    if torch.rand(()) < JITTER_SHARE:
        image = v2.ColorJitter(JITTER, JITTER, JITTER, JITTER)(image)
    if torch.rand(()) < CROP_SHARE:
        scale, ratio = [SMALLEST_CROP, 1.0], [1.0, 1.0]
        top, left, height, width = RandomResizedCrop.get_params(image, scale, ratio)
        cut = [each[:, top : top + height, left : left + width][None].float() for each in (image, target)]
        first, second = (F.interpolate(each, image.shape[-2:], mode="nearest")[0] for each in cut)
        return first.to(torch.uint8), second
    return image, target


def predicted(model: RadioFeatures, probe: DptProbe, images: Tensor, size: torch.Size) -> Tensor:
    """Return a probe's output for square images, `(batch, num_outputs, *size)`; the model gets no gradient.

    With patches of 16 px the output has this size already. For others Probe3D resizes depth after its bins, and normals
    bicubically.
    """
    pixels = torch.stack([model.preprocess(image, image.shape[-1]) for image in images]).to(model.device)
    with torch.no_grad():
        maps = model.encode_blocks(pixels)
    return F.interpolate(probe(maps), size, mode="bilinear", align_corners=True)


DEPTH_DPT_PROBE = Task(measure_depth_dpt_probe, "depth")
NORMALS_DPT_PROBE = Task(measure_normals_dpt_probe, "normals")
