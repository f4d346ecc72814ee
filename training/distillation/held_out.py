"""Held-out images while a run trains: measurements and figures of the moving average."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional as F

from modeling_radio import RadioConfig, RadioModel
from modeling_radio.core.seeds import make_generator
from modeling_radio.data.settings import IMAGE_SOURCES, is_made
from modeling_radio.data.sources import is_image_folder
from modeling_radio.data.training_images import build_images
from modeling_radio.figures.features import PcaBasis, fit_pca_basis
from modeling_radio.figures.rows import FigureRow, adaptor_row, draw_rows, photograph_row, teacher_row
from modeling_radio.metrics.feature_model import Features
from modeling_radio.metrics.representation import effective_rank
from modeling_radio.training.losses.fidelity import (
    adaptor_fidelity,
    feature_consistency,
    fixed_pattern_energy,
    shift_error,
)
from modeling_radio.training.recipes.recipe import PartitionRecipe, Recipe, RecipeError
from modeling_radio.training.student.foreign import global_window
from modeling_radio.training.student.sharding import reshard
from modeling_radio.training.targets.phi_s import FeatureStandardizer
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.outputs import resample_features


def held_out_source(recipe: Recipe) -> str | None:
    """Return where a recipe's held-out images come from, None for data that has none.

    A folder that is streamed, or has images of other channels, has none: all of its images are trained on.

    Raises:
        RecipeError: If the recipe names something else than images that are made or a folder, or one that is streamed.
    """
    data, given = recipe.data, recipe.logging.picture_source
    if data.num_channels is not None:
        return None
    source = data.source if given is None else given
    if data.streaming and any(_is_within(source, each.source) for each in (data, *data.mixed_in)):
        if given is None:
            return None
        raise RecipeError(
            f"`logging.picture_source` must be images that are not trained on, got {given!r}, which is "
            "streamed as a whole. Give another folder."
        )
    if is_made(source) or is_image_folder(source):
        return source
    if given is not None:
        raise RecipeError(
            f"`logging.picture_source` must be one of {sorted(IMAGE_SOURCES)}, an import path or a folder of images, "
            f"got {source!r}."
        )
    return None


def _is_within(source: str, streamed: str) -> bool:
    inner, outer = (Path(each).expanduser().resolve() for each in (source, streamed))
    return source == streamed or (outer.is_dir() and inner.is_relative_to(outer))


def describe_missing_images(recipe: Recipe) -> str:
    """Return a line for the log of a run whose figures or measurements have no images; empty for others."""
    if recipe.logging.metrics_every_steps is None or held_out_source(recipe) is not None:
        return ""
    remedy = ": set `logging.picture_source` to a folder of images" if recipe.data.num_channels is None else ""
    return f"No held-out images in `data.source` {recipe.data.source!r}, so no figures and no measurements{remedy}."


def steps_between_figures(recipe: Recipe) -> int | None:
    """Return the steps between two figures of held-out images; None where none are drawn."""
    every_steps = recipe.logging.metrics_every_steps
    return None if every_steps is None else MEASUREMENTS_PER_FIGURE * every_steps


def held_out_images(recipe: Recipe, size: int, max_images: int) -> Tensor | None:
    """Return held-out images of a recipe, spread evenly over them, or None if its data has none.

    Args:
        recipe: The recipe.
        size: Their side in pixels.
        max_images: Largest number of images.

    Returns:
        uint8 RGB, `(num_images, 3, size, size)`.

    Raises:
        RecipeError: If `logging.picture_source` is no source, or one without images.
    """
    source = held_out_source(recipe)
    if source is None:
        return None
    try:
        images = build_images(source, size=size, split="held_out")
    except ValueError as error:
        if recipe.logging.picture_source is None:  # a folder of one image
            return None
        way_out = "Give another folder, or `logging.metrics_every_steps=null`."
        raise RecipeError(f"`logging.picture_source`: {error} {way_out}") from error
    number = min(max_images, len(images))
    return torch.stack([images[index * len(images) // number] for index in range(number)])


SHIFT_DIVISOR = 4
"""The grid over this is the displacement of the other view, the same share at every resolution. Our choice."""
MARGIN = 1 + 1 / SHIFT_DIVISOR
"""Side of the whole image over that of the view."""


@dataclass(frozen=True)
class ViewPair:
    """A size at which images are seen.

    Attributes:
        size_px: Side of the student's images.
        shift: Displacement of the second view, down and right, in patches.
        patch_size: The student's, in pixels.
    """

    size_px: int
    shift: int
    patch_size: int

    @classmethod
    def of_size(cls, size_px: int, patch_size: int) -> ViewPair:
        """Return the view of a size, displaced as far as `SHIFT_DIVISOR` says, at least a patch."""
        return cls(size_px, max(1, size_px // patch_size // SHIFT_DIVISOR), patch_size)

    @property
    def patches(self) -> int:
        """Side of the student's grid."""
        return self.size_px // self.patch_size

    @property
    def offset_px(self) -> int:
        """Displacement of the second view in pixels."""
        return self.shift * self.patch_size

    def of_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two views of `(batch, 3, side, side)` uint8 images, `(batch, 3, size_px, size_px)` in [0, 1].

        Both are cut of one resized image, so that the second is exactly the first one moved.
        """
        offset, size = self.offset_px, self.size_px
        resized = _resized(images, self.whole_px)
        return resized[..., :size, :size], resized[..., offset : offset + size, offset : offset + size]

    def of_teacher(self, images: Tensor, teacher: Teacher) -> Tensor:
        """Return what the first view shows at the student's size, or at the teacher's own where that is larger."""
        size = self._size_px_for(teacher)
        return _resized(images, self.whole_px_for(teacher))[..., :size, :size]

    @property
    def whole_px(self) -> int:
        """Side of the whole image, of which a view shows a corner, at the student's size."""
        return max(round(MARGIN * self.size_px), self.size_px + self.offset_px)

    def whole_px_for(self, teacher: Teacher) -> int:
        """Return the side of the whole image at the size at which a teacher sees the view."""
        return round(self.whole_px * self._size_px_for(teacher) / self.size_px)

    def _size_px_for(self, teacher: Teacher) -> int:
        own_size = teacher.run.input_size_px
        if not teacher.mode.has_own_size or own_size is None:
            return self.size_px
        rounded_up = -(-own_size // teacher.grid_stride) * teacher.grid_stride
        return max(self.size_px, rounded_up)


def _resized(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images.float() / 255, (side, side), mode="bicubic", antialias=True).clamp(0, 1)


NUM_IMAGES = 32
"""Our choice: chance alone leaves 1/32 of the variance as a fixed pattern, at the price of a fraction of a step."""
NUM_TOKENS = 4096
"""Tokens of all images at which an adaptor is compared with its teacher, whose whole outputs at high resolution would
fill the memory. Our choice; all tokens up to 176 px."""
NUM_RANK_TOKENS = 2048
"""Number of features whose effective rank is measured: the time for it grows with their number. Our choice."""
MIN_PATCHES = 2
"""Side of the smallest grid in which a view can be displaced."""
MAX_TOKENS_PER_PASS = 8192
"""Our choice: what a small GPU has memory for; less than the batches of any recipe for one."""


class StudentFeatures(NamedTuple):
    """Outputs of a network for a view, on the CPU.

    Attributes:
        features: Features of the backbone, `(num_images, dim, rows, cols)`.
        shifted: Those of the displaced view.
        adaptors: By teacher and in its space: summaries, and features at the positions that are compared, one for each
            "image", `(num_tokens, dim, 1, 1)`.
    """

    features: Tensor
    shifted: Tensor
    adaptors: dict[str, Features]


class HeldOutMetrics:
    """Measures a network on held-out images; nothing draws from torch's generator, and no state changes.

    The teachers run once, here. Of a pass at each size:

    - `fixed_pattern/SIZE`, `shift_error/SIZE`, `effective_rank/SIZE`: of the backbone's dense features
    - `consistency/SIZE`, `consistency_centered/SIZE`: with those of the largest size
    - `dense_fidelity/TEACHER/SIZE`, `summary_fidelity/TEACHER/SIZE` and the same with `_centered`: of the adaptors

    SIZE is as in "128px". What is not defined, because features are all equal, is not a number.

    Args:
        images: uint8 RGB, `(num_images, 3, side, side)`.
        views: The sizes.
        teachers: Teachers that are compared with, by size and name.
        accelerator: Its main process computes the numbers; others only run the network along.
    """

    def __init__(
        self,
        images: Tensor,
        views: Sequence[ViewPair],
        teachers: Mapping[int, Mapping[str, Teacher]],
        accelerator: Accelerator,
    ) -> None:
        self.images, self.accelerator = images, accelerator
        self.views = sorted(views, key=lambda view: view.size_px, reverse=True)  # the largest is the reference
        self._positions = {view.size_px: _choose_positions(len(images), view) for view in self.views}
        self._references: dict[int, dict[str, Features]] = {view.size_px: {} for view in self.views}
        if accelerator.is_main_process:
            for view in self.views:
                known = teachers[view.size_px].items()
                self._references[view.size_px] = {name: self._reference(view, teacher) for name, teacher in known}

    @classmethod
    def of_run(
        cls, recipe: Recipe, config: RadioConfig, teachers: Mapping[str, Teacher], accelerator: Accelerator
    ) -> HeldOutMetrics | None:
        """Return the measurements of a recipe, None where it asks for none or its data has no held-out images.

        Args:
            recipe: The recipe.
            config: The student's.
            teachers: By name, all of them in the main process.
            accelerator: As in the constructor.

        Raises:
            RecipeError: If `logging.metrics_sizes_px` or `logging.picture_source` cannot be used.
        """
        if recipe.logging.metrics_every_steps is None:
            return None
        views = [ViewPair.of_size(size, config.patch_size) for size in _sizes_px(recipe, config)]
        shown = {view.size_px: _teachers_at(view.size_px, recipe, teachers) for view in views}
        if not views:
            return None
        own_sides = [view.whole_px_for(teacher) for view in views for teacher in shown[view.size_px].values()]
        side = max([*own_sides, *(view.whole_px for view in views)])
        images = held_out_images(recipe, side, NUM_IMAGES)
        return None if images is None else cls(images, views, shown, accelerator)

    @torch.no_grad()
    def measure(
        self, networks: Mapping[str, RadioModel], standardizers: Mapping[str, FeatureStandardizer]
    ) -> dict[str, float]:
        """Return the measurements by name; all ranks must take part, only the main process gets any.

        Args:
            networks: By what begins the names of their measurements. They are left as they were.
            standardizers: By teacher; the adaptors' outputs are in standardized spaces until they are exported.
        """
        values: dict[str, float] = {}
        for prefix, network in networks.items():
            was_training = network.training
            network.eval()
            with self.accelerator.autocast():
                measured = self._measure(network, standardizers)
            network.train(was_training)
            reshard(network)
            values |= {f"{prefix}{name}": value for name, value in measured.items()}
        return values

    def _measure(self, network: RadioModel, standardizers: Mapping[str, FeatureStandardizer]) -> dict[str, float]:
        values: dict[str, float] = {}
        largest: Tensor | None = None
        for view in self.views:
            found = self._student_features(view, network, standardizers)
            if found is None:
                continue
            size = f"{view.size_px}px"
            values |= {f"{name}/{size}": value for name, value in _backbone_metrics(found, view).items()}
            if largest is None:
                largest = found.features
            else:
                plain, centered = feature_consistency(found.features, largest)
                values |= {f"consistency/{size}": plain, f"consistency_centered/{size}": centered}
            for name, reference in self._references[view.size_px].items():
                values |= _fidelity(found.adaptors[name], reference, f"{name}/{size}")
        return values

    def _student_features(
        self, view: ViewPair, network: RadioModel, standardizers: Mapping[str, FeatureStandardizer]
    ) -> StudentFeatures | None:
        """Run the network over all images; None in a process that does not compute."""
        names = list(standardizers)
        firsts: list[Tensor] = []
        seconds: list[Tensor] = []
        adaptors: dict[str, list[Features]] = {name: [] for name in self._references[view.size_px]}
        for images, positions in self._parts(view):
            first, second = view.of_images(images)
            first_features, found = _run(network, first, names)
            second_features, _ = _run(network, second, [])
            if not self.accelerator.is_main_process:
                continue
            firsts.append(first_features.float().cpu())
            seconds.append(second_features.float().cpu())
            for name, parts in adaptors.items():
                summary, features = found[name]
                chosen = standardizers[name].invert(_at_positions(features, view, positions))
                parts.append(Features(None if summary is None else summary.float().cpu(), chosen.cpu()))
        if not self.accelerator.is_main_process:
            return None
        return StudentFeatures(
            torch.cat(firsts), torch.cat(seconds), {name: _joined(parts) for name, parts in adaptors.items()}
        )

    def _reference(self, view: ViewPair, teacher: Teacher) -> Features:
        parts = []
        for images, positions in self._parts(view):
            summary, features = teacher.extract_features(view.of_teacher(images, teacher))
            parts.append(
                Features(None if summary is None else summary.cpu(), _at_positions(features, view, positions).cpu())
            )
        return _joined(parts)

    def _parts(self, view: ViewPair) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images of one pass after the other, and their places."""
        num_images = max(1, MAX_TOKENS_PER_PASS // view.patches**2)
        positions = self._positions[view.size_px].split(num_images)
        for images, own in zip(self.images.split(num_images), positions, strict=True):
            yield images.to(self.accelerator.device), own.to(self.accelerator.device)


def _run(network: RadioModel, pixel_values: Tensor, names: list[str]) -> tuple[Tensor, dict[str, Features]]:
    """Return the backbone's dense features and the outputs of these adaptors."""
    window = global_window(network.config)
    output = network(pixel_values, window_size=window, feature_format="NCHW", adaptor_names=names, return_dict=True)
    return output.features, {
        name: Features(output.adaptors[name].summary, output.adaptors[name].features) for name in names
    }


def _choose_positions(num_images: int, view: ViewPair) -> Tensor:
    """Return fixed positions of each image's grid, counted row by row, `(num_images, num_positions)`."""
    num_positions = min(-(-NUM_TOKENS // num_images), view.patches**2)
    generator = make_generator(0, "places", view.size_px)
    orders = [torch.randperm(view.patches**2, generator=generator)[:num_positions] for _ in range(num_images)]
    return torch.stack(orders)


def _at_positions(features: Tensor, view: ViewPair, positions: Tensor) -> Tensor:
    """Return float32 features `(tokens, dim, 1, 1)` at positions of the student's grid, to which maps are resampled."""
    maps = resample_features(features.float(), view.patches, view.patches).flatten(2)  # (batch, dim, patches)
    chosen = maps.gather(2, positions.unsqueeze(1).expand(-1, maps.shape[1], -1))
    return chosen.transpose(1, 2).flatten(0, 1)[:, :, None, None]


def _joined(parts: Sequence[Features]) -> Features:
    summaries = [part.summary for part in parts if part.summary is not None]
    return Features(torch.cat(summaries) if summaries else None, torch.cat([part.features for part in parts]))


def _backbone_metrics(found: StudentFeatures, view: ViewPair) -> dict[str, float]:
    """Return what is measured of the backbone's features at one size; NaN where they are all equal, or not finite."""
    features, shift = found.features, view.shift
    tokens = features.movedim(1, -1).flatten(0, 2)  # (batch, dim, rows, cols) -> (tokens, dim)
    sample = tokens[torch.linspace(0, len(tokens) - 1, min(len(tokens), NUM_RANK_TOKENS)).long()]
    is_defined = all(_varies(each) for each in (features[..., shift:, shift:], found.shifted, sample[:, :, None]))
    if not is_defined:
        return dict.fromkeys(("fixed_pattern", "shift_error", "effective_rank"), math.nan)
    return {
        "fixed_pattern": fixed_pattern_energy(features),
        "shift_error": shift_error(features, found.shifted, (shift, shift)),
        "effective_rank": effective_rank(sample),
    }


def _varies(features: Tensor) -> bool:
    """Return whether features, channels in dimension 1, are finite and not all equal."""
    channels = features.movedim(1, 0).flatten(1)
    return bool(channels.isfinite().all() and (channels.amax(1) > channels.amin(1)).any())


def _fidelity(adaptor: Features, reference: Features, suffix: str) -> dict[str, float]:
    fidelity = adaptor_fidelity(adaptor, reference)
    named = {
        "dense_fidelity": fidelity.features,
        "dense_fidelity_centered": fidelity.centered_features,
        "summary_fidelity": fidelity.summary,
        "summary_fidelity_centered": fidelity.centered_summary,
    }
    return {f"{name}/{suffix}": value for name, value in named.items() if value is not None}


def _sizes_px(recipe: Recipe, config: RadioConfig) -> list[int]:
    """Return the sizes to measure at: those asked for, or the smallest, middle and largest that are trained."""
    sizes = recipe.logging.metrics_sizes_px
    smallest = MIN_PATCHES * config.patch_size
    if sizes is None:
        trained = sorted({size for partition in recipe.partitions for size in partition.sizes_px if size >= smallest})
        return sorted({trained[0], trained[len(trained) // 2], trained[-1]}) if trained else []
    if min(sizes) < smallest:
        raise RecipeError(f"`logging.metrics_sizes_px` must be sizes of at least {smallest} px, got {sizes}.")
    for size in sizes:
        _check_size(lambda size: config.check_resolution(size, size), size)
    return sorted(set(sizes))


def _teachers_at(size: int, recipe: Recipe, teachers: Mapping[str, Teacher]) -> dict[str, Teacher]:
    """Return the teachers of the partitions that are trained at a size; without such a partition all teachers."""
    partitions = [partition for partition in recipe.partitions if size in partition.sizes_px]
    names = {name for partition in partitions for name in partition.teachers or teachers} or set(teachers)
    shown = {name: teacher for name, teacher in teachers.items() if name in names}
    for teacher in shown.values():
        _check_size(lambda size, teacher=teacher: teacher.check_size(size, size), size)
    return shown


def _check_size(check: Callable[[int], None], size: int) -> None:
    try:
        check(size)
    except ValueError as error:
        raise RecipeError(f"`logging.metrics_sizes_px` cannot have {size} px: {error}") from error


NUM_FIGURE_IMAGES = 4  # our choice: as many as can be compared at a glance
MEASUREMENTS_PER_FIGURE = 5  # our choice: files of figures take more room than numbers
CAPTION = (
    "Step {step}. Dense features as colors: three principal components of the teacher's. An adaptor is good if its "
    "shapes are those of its teacher. It has its own range of colors; x2 means half as wide."
)


class HeldOutFigures:
    """Draws the student's adaptors beside their teachers, along the same directions.

    The teachers run once, here; a figure needs one pass of the student. Nothing draws random numbers.

    Args:
        images: uint8 RGB, `(num_images, 3, height, width)`.
        teachers: By name; all that are drawn in the main process, which draws alone.
        device: Where teachers and student are.
        folder: Where `step-N.png` is written.
    """

    def __init__(self, images: Tensor, teachers: Mapping[str, Teacher], device: torch.device, folder: Path) -> None:
        self.pixel_values = images.to(device).float() / 255
        self.folder = folder
        self._photographs = photograph_row(images)
        self._teachers: dict[str, tuple[FigureRow, PcaBasis]] = {}
        for name, teacher in teachers.items():
            features = teacher.extract_features(self.pixel_values).features.cpu()
            basis = fit_pca_basis(features)
            self._teachers[name] = (teacher_row(name, features, basis), basis)

    @classmethod
    def of_run(
        cls, recipe: Recipe, teachers: Mapping[str, Teacher], device: torch.device, folder: Path
    ) -> HeldOutFigures | None:
        """Return the figures of a recipe, None where it has none: too few steps, or no held-out images to show.

        Raises:
            RecipeError: If `logging.picture_source` cannot be used.
        """
        every_steps = steps_between_figures(recipe)
        if every_steps is None or every_steps > recipe.schedule.num_steps:
            return None
        partition = _widest_partition(recipe)
        size = _size_px(recipe, partition)
        images = held_out_images(recipe, size, NUM_FIGURE_IMAGES)
        if images is None:
            return None
        shown = {name: teachers[name] for name in partition.teachers or teachers if name in teachers}
        return cls(images, shown, device, folder)

    def draw(self, step: int, adaptors: Mapping[str, Tensor]) -> Path:
        """Write the figure of a step and return its path.

        Args:
            step: Steps done so far.
            adaptors: By teacher name, their dense features of `pixel_values` in the teacher's own space,
                `(num_images, dim, rows, cols)`.

        Raises:
            WriteError: If it cannot be written.
        """
        rows = [self._photographs]
        for name, (row, basis) in self._teachers.items():
            rows += [row, adaptor_row(name, adaptors[name].float().cpu(), basis)]
        path = self.folder / f"step-{step}.png"
        draw_rows(rows, path, caption=CAPTION.format(step=step))
        return path


def _widest_partition(recipe: Recipe) -> PartitionRecipe:
    """Return the partition that most teachers see, the first of several."""
    return max(recipe.partitions, key=lambda partition: len(partition.teachers or recipe.teachers))


def _size_px(recipe: Recipe, partition: PartitionRecipe) -> int:
    """Return the largest size at which both the student and the teachers see images."""
    size = max(partition.sizes_px)
    return size if recipe.views.teachers == "online" else min(size, recipe.data.image_size_px)
