"""Train FeatSharp for a frozen teacher: finer features, from tiles of the image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from modeling_radio.checks_radio import check_choice
from modeling_radio.core.checked_tensors import (
    load_optimizer_tensors,
    load_tensors,
    optimizer_tensors,
    save_tensors,
)
from modeling_radio.core.files import check_output, remove_partial, sole_run, write_file, write_text
from modeling_radio.core.interruption import StopRequest, TrainingDivergedError
from modeling_radio.core.ranks import device_of_process
from modeling_radio.core.seeds import make_generator
from modeling_radio.core.settings import differences
from modeling_radio.core.tables import markdown
from modeling_radio.data.image_table import Images, Split
from modeling_radio.data.made_images import open_made_images
from modeling_radio.data.settings import DataRecipe, is_made
from modeling_radio.data.training_images import build_images, build_training_images
from modeling_radio.figures.features import fit_pca_basis, pca_colors
from modeling_radio.figures.rows import FigureRow, draw_rows, photograph_row
from modeling_radio.training.recipes.recipe import Recipe, RecipeError, decisive_part
from modeling_radio.training.targets.feature_cache import size_words
from modeling_radio.training.teachers.base import Teacher
from modeling_radio.training.teachers.featsharp import (
    MIN_SCALE,
    FeatSharp,
    UpsampledTeacher,
    UpsamplerConfig,
    add_detail,
    cut_tiles,
    save_upsampler,
    stitch_tiles,
)
from modeling_radio.training.teachers.outputs import resample_features, resize_images
from modeling_radio.training.teachers.registry import place_teacher, teacher_of_recipe, upsampled_teacher
from modeling_radio.training.upsampling.settings import NUM_VIEWS, UpsamplerSettings


SAMPLES = 4  # our choice: points of a fine map per side of a coarse patch
MIN_SHARE = 0.5  # our choice: a view shows at least half of each side, so at twice the size nothing is enlarged
WARMUP_STEPS = 100  # with rising learning rate; FeatSharp's
MAX_GRAD_NORM = 5.0  # FeatSharp's
WIDTH = 256  # of the block
SAVE_EVERY = 100  # our choice: steps between two saved states
MEASURED_IMAGES, PICTURED_IMAGES = 32, 4  # our choice: held-out images
KEPT_DTYPE = torch.bfloat16
STATE_FILE = "training.safetensors"
WEIGHTS, OPTIMIZER = "weights/", "optimizer/"  # begin the names of a state's tensors
STATISTICS_IMAGES = 64  # our choice: some 10,000 tokens suffice for one mean and one scale
FREE_SETTINGS = {
    *("recipe", "changes"),  # the resulting recipe decides
    *("output", "overwrite", "memory_gb", "device"),
}
"""Settings that may differ when a run is resumed."""


# Views of an image, and of a map of its features


class SquareView(NamedTuple):
    """A square part of a square image.

    Attributes:
        top: First row over the image's side.
        left: First column over the image's side.
        side: Its side over the image's.
        is_mirrored: Whether it is flipped from left to right.
    """

    top: float
    left: float
    side: float
    is_mirrored: bool


WHOLE = SquareView(0.0, 0.0, 1.0, False)


def draw_view(size_px: int, seed: int, *labels: int | str) -> SquareView:
    """Return a random view with edges between pixels."""
    generator = make_generator(seed, "view", *labels)
    share, row, col, flip = torch.rand(4, generator=generator).tolist()
    side = round(size_px * (MIN_SHARE + (1 - MIN_SHARE) * share))
    top, left = (round((size_px - side) * offset) for offset in (row, col))
    return SquareView(top / size_px, left / size_px, side / size_px, flip < 0.5)


def view_of_image(pixel_values: Tensor, view: SquareView, size_px: int) -> Tensor:
    """Return a view of images `(batch, 3, side, side)`, resized to `size_px` squared, antialiased."""
    height = pixel_values.shape[2]
    top, left, side = (round(height * share) for share in view[:3])
    crop = pixel_values[:, :, top : top + side, left : left + side]
    return resize_images(crop.flip(3) if view.is_mirrored else crop, (size_px, size_px))


def view_of_map(features: Tensor, views: Sequence[SquareView], side: int) -> Tensor:
    """Sample maps within views, bilinearly.

    Args:
        features: One map for each view, `(views, channels, rows, cols)`.
        views: Parts of the image.
        side: Points along a side.

    Returns:
        `(views, channels, side, side)`.
    """
    # Positions of affine_grid go from -1 to 1 over the map; a row gives the map's x or y for a point of the view.
    rows = []
    for view in views:
        x_scale = -view.side if view.is_mirrored else view.side
        x_row = [x_scale, 0.0, 2 * view.left + view.side - 1]
        rows.append([x_row, [0.0, view.side, 2 * view.top + view.side - 1]])
    size = [len(views), features.shape[1], side, side]
    points = F.affine_grid(features.new_tensor(rows), size, align_corners=False)
    return F.grid_sample(features, points, padding_mode="border", align_corners=False)


class ViewReader(nn.Module):
    """Predicts the teacher's features of a view from the fine map: the samples of each patch, weighted by attention.

    It is used in training only. When new, it takes the samples' mean.

    Args:
        feature_dim: Channels of the map.
    """

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(SAMPLES**2))
        self.content = nn.Conv2d(feature_dim, 1, 1, bias=False)  # a bias would cancel in the softmax
        nn.init.zeros_(self.content.weight)

    def forward(self, features: Tensor, views: Sequence[SquareView], grid: int) -> Tensor:
        """Return maps of views, `(views, channels, grid, grid)`; see `view_of_map`."""
        samples = view_of_map(features, views, SAMPLES * grid)
        logits = F.pixel_unshuffle(self.content(samples), SAMPLES) + self.place.view(-1, 1, 1)
        weights = F.pixel_shuffle(logits.softmax(1), SAMPLES)
        return F.avg_pool2d(samples * weights, SAMPLES) * SAMPLES**2


# Images, and the frozen teacher's features


def open_images(data: DataRecipe, size: int, num_images: int, split: Split) -> Images:
    """Return a recipe's images as squares; those that are made with detail everywhere, such as the demo's photographs.

    Raises:
        ValueError: If the recipe has no images, or no held-out ones for that split.
    """
    if is_made(data.source):
        return open_made_images(data.source).detailed_images(size=size, num_images=num_images, split=split)
    if split == "held_out":
        return build_images(data.source, size=size, split=split)
    return build_training_images(data.replace(image_size_px=size), is_square=True)


class UpsamplerBatch(NamedTuple):
    """A batch of the trainer, on its device.

    Attributes:
        images: Pixels at `factor` times the teacher's input, normalized for it, `(batch, 3, side, side)`.
        whole: The teacher's features of the images at its input size, `(batch, feature_dim, grid, grid)`.
        tiles: Its stitched features of tiles, `(batch, feature_dim, factor * grid, factor * grid)`.
        views: Views of each image, one list for each number of a view.
        targets: The teacher's features of these views, `(len(views), batch, feature_dim, grid, grid)`.
    """

    images: Tensor
    whole: Tensor
    tiles: Tensor
    views: list[list[SquareView]]
    targets: Tensor


class FixedTeacherFeatures:
    """A fixed-size teacher's features, in half precision, on its device.

    They are kept in main memory while there is room; others are computed at each use, with the same result.

    Args:
        teacher: In the run mode "fixed".
        images: Squares of `factor` times its input size.
        factor: Tiles along a side.
        seed: Decides the views, and in training the weights and the order of the images.
        memory_gb: Memory for kept features.
    """

    def __init__(
        self,
        teacher: Teacher,
        images: Images,
        factor: int,
        seed: int,
        memory_gb: float = math.inf,
    ) -> None:
        assert teacher.run.input_size_px is not None
        self.teacher, self.images, self.factor, self.seed = teacher, images, factor, seed
        self.size = teacher.run.input_size_px
        self._kept: dict[tuple[int, int | str], Tensor] = {}
        self._room = 1e9 * memory_gb

    def num_bytes(self, num_images: int, num_views: int) -> int:
        """Return the bytes of all features of so many images: of each as a whole, its views and its tiles."""
        num_patches = (self.size // self.teacher.patch_size) ** 2
        num_maps = 1 + num_views + self.factor**2
        return num_images * num_maps * num_patches * self.teacher.feature_dim * KEPT_DTYPE.itemsize

    def pixels(self, index: int) -> Tensor:
        """Return image `index` on the teacher's device, RGB in [0, 1], `(1, 3, side, side)`."""
        return self.images[index][None].to(self.teacher.mean.device).float() / 255

    def run(self, pixel_values: Tensor) -> Tensor:
        """Return the teacher's features of images, on the grid that their size gives."""
        return self.teacher([[pixel_values]])[0].features

    def view(self, index: int, number: int) -> SquareView:
        """Return view `number` of an image; the first is the whole."""
        return draw_view(self.factor * self.size, self.seed, index, number) if number else WHOLE

    def of_view(self, index: int, number: int) -> Tensor:
        """Return the features of a view, `(1, feature_dim, grid, grid)`."""
        return self._kept_or(
            (index, number), lambda: self.run(view_of_image(self.pixels(index), self.view(index, number), self.size))
        )

    def of_tiles(self, index: int) -> Tensor:
        """Return the stitched features of an image's tiles, `(1, feature_dim, factor * grid, factor * grid)`."""

        def compute() -> Tensor:
            tiles = self.run(cut_tiles(self.pixels(index), self.factor, self.factor))
            return stitch_tiles(tiles, self.factor, self.factor)

        return self._kept_or((index, "tiles"), compute)

    def _kept_or(self, key: tuple[int, int | str], compute: Callable[[], Tensor]) -> Tensor:
        if key in self._kept:
            return self._kept[key].to(self.teacher.mean.device).float()
        features = compute().to(KEPT_DTYPE)
        if features.nbytes <= self._room:
            self._room -= features.nbytes
            self._kept[key] = features.cpu()
        return features.float()

    def example(self, indices: Sequence[int], numbers: Sequence[int]) -> UpsamplerBatch:
        """Return some images, each as a whole and with some of its views."""
        numbers = [0, *numbers]
        pixels = torch.cat([self.pixels(index) for index in indices])
        targets = [torch.cat([self.of_view(index, number) for index in indices]) for number in numbers]
        return UpsamplerBatch(
            (pixels - self.teacher.mean) / self.teacher.std,
            targets[0],
            torch.cat([self.of_tiles(index) for index in indices]),
            [[self.view(index, number) for index in indices] for number in numbers],
            torch.stack(targets),
        )

    def larger(self, index: int) -> Tensor:
        """Return the teacher's features of an image at full size in one pass, on the grid of its tiles."""
        return self.run(resize_images(self.pixels(index), (self.factor * self.size,) * 2))


# The loop


class UpsamplerTrainer(nn.Module):
    """An upsampler in training.

    Args:
        settings: Settings of the training.
        teacher: Teacher whose features are upsampled.
        teacher_features: Its features.
        data: The recipe's section on the images.
    """

    def __init__(
        self,
        settings: UpsamplerSettings,
        teacher: UpsampledTeacher,
        teacher_features: FixedTeacherFeatures,
        data: DataRecipe,
    ) -> None:
        super().__init__()
        self.settings, self.teacher_features = settings, teacher_features
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(make_generator(teacher_features.seed, "weights").initial_seed())
            config = UpsamplerConfig(
                **teacher._asdict(), width=WIDTH, factor=settings.factor, num_steps=settings.num_steps
            )
            self.upsampler = FeatSharp(config)
            self.reader = ViewReader(teacher.feature_dim)
        self.to(teacher_features.teacher.mean.device)
        self.optimizer = torch.optim.NAdam(self.parameters(), lr=settings.learning_rate)
        self.step = 0
        own = {name: value for name, value in settings.to_dict().items() if name not in FREE_SETTINGS}
        self._decisive: dict[str, Any] = {
            **own,
            "seed": teacher_features.seed,
            "teacher": {"name": settings.teacher, **teacher_features.teacher.run.to_dict(), **teacher._asdict()},
            **decisive_part({"data": data.to_dict()}),
            "images": teacher_features.images.fingerprint(),
        }

    def fit_statistics(self) -> None:
        """Learn the features' mean and scale from the first images."""
        count = min(STATISTICS_IMAGES, self.num_images)
        features = (
            torch.cat([self.teacher_features.of_view(index, 0) for index in range(count)]).movedim(1, -1).flatten(0, 2)
        )
        variance, mean = torch.var_mean(features, 0)
        self.upsampler.mean.copy_(mean)
        self.upsampler.scale.copy_(variance.mean().sqrt().clamp(min=MIN_SCALE))

    @property
    def num_images(self) -> int:
        """Number of training images."""
        return min(self.settings.num_images, len(self.teacher_features.images))

    def loss(self, example: UpsamplerBatch) -> Tensor:
        """Return the mean squared error of the views; predicting the mean has 1."""
        network = self.upsampler
        fine = network.sharpen(network.standardize(example.whole), network.standardize(example.tiles), example.images)
        errors = []
        for views, target in zip(example.views, example.targets, strict=True):
            # The teacher's pattern of positions is the same wherever the view lies; only content moves with the image.
            predicted = self.reader(fine, views, target.shape[-1]) + network.centered_pattern()
            errors.append(F.mse_loss(predicted, network.standardize(target)))
        return torch.stack(errors).mean()

    def train_step(self) -> float:
        """Take one step, a pure function of the state and its number; return its loss.

        Raises:
            TrainingDivergedError: If the loss or its gradient is not finite; the weights do not change.
        """
        settings = self.settings
        generator = make_generator(self.teacher_features.seed, "step", self.step)
        indices = torch.randint(self.num_images, (settings.batch_size,), generator=generator).tolist()
        numbers = (1 + torch.randperm(NUM_VIEWS, generator=generator)[: settings.views]).tolist()
        loss = self.loss(self.teacher_features.example(indices, numbers))
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters(), MAX_GRAD_NORM)
        for name, value in (("loss", loss), ("gradient", norm)):
            if not value.isfinite():
                raise TrainingDivergedError(
                    f"The {name} of step {self.step} is not finite. Lower `learning_rate`, {settings.learning_rate}."
                )
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self.step + 1) / (WARMUP_STEPS + 1))
            share = warm * 0.5 * (1 + math.cos(math.pi * self.step / settings.num_steps))
            group["lr"] = settings.learning_rate * share
        self.optimizer.step()
        self.step += 1
        return loss.item()

    def run(self, folder: Path) -> list[float]:
        """Train to the end, from where an earlier run with the same settings stopped; return the losses.

        Raises:
            Interrupted: If the process was asked to stop; the state is saved.
            ValueError: If the folder has the state of a run with other settings.
        """
        state, losses = folder / STATE_FILE, list[float]()
        if not self.resume(state):
            self.fit_statistics()
        total = self.settings.num_steps
        with StopRequest() as stop, tqdm(total=total, initial=self.step, desc="upsampler", unit="step") as bar:
            while self.step < total:
                losses.append(self.train_step())
                bar.set_postfix(loss=f"{losses[-1]:.4f}", refresh=False)
                bar.update()
                if stop.is_set or self.step % SAVE_EVERY == 0 or self.step == total:
                    self.save(state)
                if stop.is_set and self.step < total:
                    raise stop.interrupted(f"stopped after step {self.step}; the same command goes on")
        return losses

    def save(self, path: Path) -> None:
        """Write the state atomically."""
        tensors = {f"{WEIGHTS}{name}": tensor for name, tensor in self.state_dict().items()}
        tensors |= {f"{OPTIMIZER}{name}": tensor for name, tensor in optimizer_tensors(self.optimizer).items()}
        facts = {"step": self.step, "settings": self._decisive}
        write_file(path, lambda temporary: save_tensors(tensors, temporary, facts))

    def resume(self, path: Path) -> bool:
        """Load the state of an earlier run; return False where there is none.

        Raises:
            DamagedFileError: If the file is damaged.
            ValueError: If that run had other settings.
        """
        if not path.exists():
            return False
        tensors, facts = load_tensors(path)
        changed = differences(facts["settings"], json.loads(json.dumps(self._decisive)))
        if changed:
            raise ValueError(
                f"{str(path)!r} is of a run with other settings ({'; '.join(changed)}). Go on with the same ones, name "
                "another output, or delete that file."
            )
        weights, moments = (
            {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
            for part in (WEIGHTS, OPTIMIZER)
        )
        self.load_state_dict(weights)
        load_optimizer_tensors(self.optimizer, moments)
        self.step = facts["step"]
        return True


# Measurements on held-out images

# "tiles alone" is no way to run a teacher: it shows the benefit of its view of the whole image.
METHODS: dict[str, Callable[[FeatSharp, UpsamplerBatch], Tensor]] = {
    "bilinear": lambda _, example: resample_features(example.whole, *example.tiles.shape[2:]),
    "tiles alone": lambda _, example: example.tiles,
    "tiles": lambda _, example: add_detail(example.whole, example.tiles),
    "FeatSharp": lambda upsampler, example: upsampler(example.whole, example.tiles, example.images),
}
MEASURES = {
    "to_larger": "error to a larger run",
    "coarse": "of its coarse part",
    "detail": "of its detail",
    "views": "error of views",
}


@torch.no_grad()
def measure(
    upsampler: FeatSharp, teacher_features: FixedTeacherFeatures, num_images: int, num_views: int
) -> dict[str, list[dict]]:
    """Return squared errors of every method on each image.

    Args:
        upsampler: The trained network.
        teacher_features: The teacher's features of held-out images.
        num_images: Number of images.
        num_views: Views of each.

    Returns:
        One mapping for each method and image: squared errors by name of `MEASURES`, and `of_NAME`, their divisor
        after the sum over images, for which predicting the mean has 1. Where the teacher runs at one size only, `views`
        alone.
    """
    found: dict[str, list[dict]] = {name: [] for name in METHODS}
    center, count = upsampler.mean.view(-1, 1, 1), min(num_images, len(teacher_features.images))
    for index in tqdm(range(count), desc="measuring", unit="image", leave=False):
        example = teacher_features.example([index], range(1, num_views + 1))
        larger = teacher_features.larger(index) if teacher_features.teacher.runs_at_any_size else None
        for name, method in METHODS.items():
            fine = method(upsampler, example)
            side = SAMPLES * example.targets.shape[-1]
            seen = [F.avg_pool2d(view_of_map(fine, views, side), SAMPLES) for views in example.views[1:]]
            errors = _sums("views", torch.stack(seen), example.targets[1:], center)
            if larger is not None:
                errors |= _sums("to_larger", fine, larger, center)
                coarse, wanted = (F.avg_pool2d(each, teacher_features.factor) for each in (fine, larger))
                errors |= _sums("coarse", coarse, wanted, center)
                errors |= _sums(
                    "detail", _detail(fine, teacher_features.factor), _detail(larger, teacher_features.factor), 0.0
                )
            found[name].append(errors)
    return found


def _detail(features: Tensor, factor: int) -> Tensor:
    """Return the part of a map that is finer than the coarse grid."""
    return features - F.interpolate(F.avg_pool2d(features, factor), scale_factor=factor, mode="bilinear")


def _sums(name: str, predicted: Tensor, target: Tensor, center: Tensor | float) -> dict[str, float]:
    return {
        name: float((predicted - target).double().square().sum()),
        f"of_{name}": float((target - center).double().square().sum()),
    }


def summarize(found: Mapping[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Return each method's errors over all images, and the number on which FeatSharp is better (`worse_on_NAME`)."""
    summary: dict[str, dict[str, float]] = {}
    for method, images in found.items():
        summary[method] = {}
        for name in (name for name in MEASURES if name in images[0]):
            total = sum(image[f"of_{name}"] for image in images)
            summary[method][name] = sum(image[name] for image in images) / total
            pairs = zip(images, found["FeatSharp"], strict=True)
            summary[method][f"worse_on_{name}"] = sum(image[name] > best[name] for image, best in pairs)
    return summary


def table_of(summary: Mapping[str, Mapping[str, float]], num_images: int) -> str:
    """Return the summary as Markdown."""
    names = [name for name in MEASURES if name in next(iter(summary.values()))]

    def cell(method: str, name: str) -> str:
        value = f"{summary[method][name]:.3f}"
        return value if method == "FeatSharp" else f"{value} ({summary[method][f'worse_on_{name}']:.0f})"

    rows = [[method, *(cell(method, name) for name in names)] for method in summary]
    note = f"1 is the error of the mean; in parentheses on how many of {num_images} images FeatSharp is better."
    return f"{markdown(['', *(MEASURES[name] for name in names)], rows, aligned=True)}\n\n{note}"


@torch.no_grad()
def draw(
    upsampler: FeatSharp, teacher_features: FixedTeacherFeatures, num_images: int, path: Path, caption: str
) -> None:
    """Draw images with the teacher's raw features, each method's, and the teacher's at a larger size, in one basis."""
    indices = range(min(num_images, len(teacher_features.images)))
    examples = [teacher_features.example([index], []) for index in indices]
    maps = {"teacher\nraw": torch.cat([example.whole for example in examples])}
    for name, method in METHODS.items():
        maps[name] = torch.cat([method(upsampler, example) for example in examples])
    if teacher_features.teacher.runs_at_any_size:
        maps["teacher at a\nlarger size"] = torch.cat([teacher_features.larger(index) for index in indices])
    basis = fit_pca_basis(maps["tiles"].cpu())
    rows = [photograph_row(torch.stack([teacher_features.images[index] for index in indices]))]
    rows += [
        FigureRow(title, pca_colors(features.cpu(), basis), index == 0)
        for index, (title, features) in enumerate(maps.items())
    ]
    draw_rows(rows, path, caption=caption)


# One run of the command


def train_upsampler(settings: UpsamplerSettings, recipe: Recipe) -> str:
    """Train, save and measure an upsampler; return a report to print.

    Raises:
        UserError: If another run is using the output.
        ValueError: If the recipe has no such teacher, or the output exists or holds files that no such run wrote.
        Interrupted: If the process was asked to stop.
    """
    folder = settings.folder()
    with sole_run(folder, "radio upsampler"):
        return _train(settings, recipe, folder)


def _train(settings: UpsamplerSettings, recipe: Recipe, folder: Path) -> str:
    remove_partial(folder)
    state = folder / STATE_FILE  # exists until the run has ended
    check_output(folder / "upsampler", overwrite=settings.overwrite or state.exists())
    entries = {entry.name: entry for entry in recipe.teachers}
    check_choice("teacher", settings.teacher, entries, error=RecipeError)
    entry = entries[settings.teacher].replace(run_mode="fixed", upsample="bilinear", upsampler=None)
    device = device_of_process(settings.device)
    teacher = place_teacher(teacher_of_recipe(entry), entry, device)
    size = teacher.run.input_size_px
    assert size is not None
    images = open_images(recipe.data, settings.factor * size, settings.num_images, "train")
    memory = settings.memory_gb
    teacher_features = FixedTeacherFeatures(teacher, images, settings.factor, recipe.seed, memory)
    form = upsampled_teacher(teacher, entry.kind, entry.source, entry.options)
    trainer = UpsamplerTrainer(settings, form, teacher_features, recipe.data)
    print(_forecast(settings, teacher_features, trainer.num_images), flush=True)
    trainer.run(folder)
    save_upsampler(trainer.upsampler, folder / "upsampler")
    section = f"teachers.{entry.name}"
    report = f"Use it: {section}.run_mode=fixed {section}.upsample=featsharp {section}.upsampler={folder / 'upsampler'}"
    held_out = _held_out_images(recipe, settings.factor * size)
    if held_out is not None:
        measured = FixedTeacherFeatures(teacher, held_out, settings.factor, recipe.seed, memory)
        report = f"{_measure(settings, trainer.upsampler, measured)}\n\n{report}"
    state.unlink(missing_ok=True)
    return report


def _forecast(settings: UpsamplerSettings, teacher_features: FixedTeacherFeatures, num_images: int) -> str:
    """Return a line about the memory of the teacher's features, and the consequence where it is too little."""
    needed = teacher_features.num_bytes(num_images, NUM_VIEWS)
    said = f"The features of {settings.teacher!r} to {num_images:,} images take {size_words(needed)}"
    share = 1e9 * settings.memory_gb / needed
    if share >= 1:
        return f"{said} of memory."
    return (
        f"{said}: `memory_gb`, {settings.memory_gb:g}, keeps {share:.0%} of them, and the others are computed at each "
        "use. Raise it where there is more memory, or lower `num_images`."
    )


def _held_out_images(recipe: Recipe, size: int) -> Images | None:
    try:
        return open_images(recipe.data, size, MEASURED_IMAGES, "held_out")
    except ValueError as error:  # data that holds nothing out
        print(f"Nothing is measured: {error}", flush=True)
        return None


def _measure(settings: UpsamplerSettings, upsampler: FeatSharp, teacher_features: FixedTeacherFeatures) -> str:
    folder = settings.folder()
    upsampler.eval()
    found = measure(upsampler, teacher_features, MEASURED_IMAGES, NUM_VIEWS)
    summary = summarize(found)
    count = len(found["FeatSharp"])
    content = {"settings": settings.to_dict(), "num_images": count, "summary": summary, "images": found}
    write_text(folder / "measurements.json", json.dumps(content, indent=2) + "\n")
    sizes = f"{settings.teacher} at {teacher_features.size} px, {settings.factor} times as fine"
    caption = f"{sizes}; principal components of the map of tiles as colors"
    draw(upsampler, teacher_features, PICTURED_IMAGES, folder / "features.png", caption)
    return table_of(summary, count)
