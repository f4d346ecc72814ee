"""What an upsampler is worth on held-out images: beside the teacher at a larger size, and in agreement of views."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from foundation.tables import markdown
from training.pictures.features import Column, draw_columns, fit_pca_basis, pca_colors, photograph_column
from training.teachers.answers import resample_features
from training.teachers.run_modes.featsharp import FeatSharp
from training.teachers.run_modes.tile_upsampling import add_detail
from training.upsampling.answers import Answers, Example
from training.upsampling.views import SAMPLES, view_of_map


# "tiles alone" is no way to run a teacher: it says what its view of the whole image adds.
METHODS: dict[str, Callable[[FeatSharp, Example], Tensor]] = {
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
def measure(upsampler: FeatSharp, answers: Answers, num_images: int, num_views: int) -> dict[str, list[dict]]:
    """Return errors of every method on each image; all are squared and over the variance, 1 for who answers the mean.

    Args:
        upsampler: What is measured.
        answers: The teacher's, on held-out images.
        num_images: How many images.
        num_views: Views of each.

    Returns:
        For each method one mapping for each image: squared errors by name of `MEASURES`, and `of_NAME`, what they are
        divided by after the sum over images. Where the teacher runs at one size only, `views` alone.
    """
    found: dict[str, list[dict]] = {name: [] for name in METHODS}
    center, count = upsampler.mean.view(-1, 1, 1), min(num_images, len(answers.images))
    for index in tqdm(range(count), desc="measuring", unit="image", leave=False):
        example = answers.example([index], range(1, num_views + 1))
        larger = answers.larger(index) if answers.teacher.runs_at_any_size else None
        for name, method in METHODS.items():
            fine = method(upsampler, example)
            errors = _errors_of_views(fine, example, center)
            if larger is not None:
                errors |= _sums("to_larger", fine, larger, center)
                coarse, wanted = (F.avg_pool2d(each, answers.factor) for each in (fine, larger))
                errors |= _sums("coarse", coarse, wanted, center)
                errors |= _sums("detail", _detail(fine, answers.factor), _detail(larger, answers.factor), 0.0)
            found[name].append(errors)
    return found


def _errors_of_views(fine: Tensor, example: Example, center: Tensor) -> dict[str, float]:
    """Return the errors of the mean over each cell of a view, the whole image left out."""
    grid = example.targets.shape[-1]
    seen = [F.avg_pool2d(view_of_map(fine, views, SAMPLES * grid), SAMPLES) for views in example.views[1:]]
    return _sums("views", torch.stack(seen), example.targets[1:], center)


def _detail(features: Tensor, factor: int) -> Tensor:
    """Return what a map has beyond the coarse grid."""
    return features - F.interpolate(F.avg_pool2d(features, factor), scale_factor=factor, mode="bilinear")


def _sums(name: str, answer: Tensor, target: Tensor, center: Tensor | float) -> dict[str, float]:
    return {
        name: float((answer - target).double().square().sum()),
        f"of_{name}": float((target - center).double().square().sum()),
    }


def summarize(found: Mapping[str, list[dict]]) -> dict[str, dict[str, float]]:
    """Return each method's errors over all images, and on how many images FeatSharp is better (`worse_on_NAME`)."""
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
def draw(upsampler: FeatSharp, answers: Answers, num_images: int, path: Path, caption: str) -> None:
    """Draw images with the teacher's raw features, each method's, and the teacher's at a larger size, in one basis."""
    indices = range(min(num_images, len(answers.images)))
    examples = [answers.example([index], []) for index in indices]
    maps = {"teacher\nraw": torch.cat([example.whole for example in examples])}
    for name, method in METHODS.items():
        maps[name] = torch.cat([method(upsampler, example) for example in examples])
    if answers.teacher.runs_at_any_size:
        maps["teacher at a\nlarger size"] = torch.cat([answers.larger(index) for index in indices])
    basis = fit_pca_basis(maps["tiles"].cpu())
    columns = [photograph_column(torch.stack([answers.images[index] for index in indices]))]
    columns += [
        Column(title, pca_colors(features.cpu(), basis), index == 0)
        for index, (title, features) in enumerate(maps.items())
    ]
    draw_columns(columns, path, caption=caption)
