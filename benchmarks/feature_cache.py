"""Measures what each format of the feature cache loses, and what it takes on the disk and in time.

    python -m benchmarks.feature_cache [--recipe demo] [--num-images 256] [section.field=value]

The recipe's teachers answer its first images once. Each format then stores these answers as a shard of a cache and
reads them back, as a run does. Beside the answers in float32, by teacher: `error`, the norm of the difference over that
of the features' deviations from their mean, whose square is 1 - R2; `cosine`, the mean over tokens. Disk is of dense
features alone, per image; times are of storing and of reading, all teachers together. Prints a table and writes it with
date, machine and versions to `benchmarks/results/`.
"""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Subset

from benchmarks.measuring.results import report
from foundation.command_line import Command
from foundation.machine.timing import ProgressBar
from training.distillation.inputs import load_teachers
from training.recipe import Recipe, RecipeCommand
from training.student.build import student_patch_size
from training.targets.cache.feature_cache import IMAGES_PER_FORWARD, TeacherAnswers
from training.targets.cache.formats import FORMATS, Entries, FeatureFormat
from training.targets.cache.shards import IMAGES_PER_SHARD
from training.views.images import build_training_images


class FullPrecision(FeatureFormat):
    """What the formats are compared with: the answers as they are."""

    def encode(self, features: Tensor) -> Entries:
        return {"features": features}

    def decode(self, entries: Mapping[str, Tensor], row: int) -> Tensor:
        return entries["features"][row]


def answer(recipe: Recipe, num_images: int) -> dict[str, Tensor]:
    """Return the dense features of each teacher, `(num_images, rows, cols, C)` in float32."""
    device = torch.device("cpu")
    teachers, images = load_teachers(recipe, device), build_training_images(recipe.data, is_square=True)
    answers = TeacherAnswers(teachers, recipe.data.image_size_px // student_patch_size(recipe), device, FullPrecision())
    loader = DataLoader(Subset(images, range(num_images)), batch_size=IMAGES_PER_FORWARD)
    parts = [answers(batch) for batch in ProgressBar(loader, desc="teachers")]
    return {name: torch.cat([part[f"{name}.features"] for part in parts]) for name in teachers}


def formats() -> dict[str, FeatureFormat]:
    """Return the formats by the name of their row."""
    return {"float32": FullPrecision(), **FORMATS}


def measure(features: Mapping[str, Tensor], feature_format: FeatureFormat, folder: Path) -> dict[str, object]:
    """Return a row: what a format makes of the features of some images, and what that takes."""
    num_images = len(next(iter(features.values())))
    began = time.perf_counter()
    for name, maps in features.items():
        parts = [feature_format.encode(part) for part in maps.split(IMAGES_PER_FORWARD)]
        whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        save_file(whole, folder / f"{name}.safetensors")
    stored = time.perf_counter()
    kept = {name: _read(folder / f"{name}.safetensors", feature_format, num_images) for name in features}
    read = time.perf_counter()
    row: dict[str, object] = {
        "disk, kB per image": round(sum(path.stat().st_size for path in folder.iterdir()) / num_images / 1000, 1),
        "storing, ms per image": round(1000 * (stored - began) / num_images, 2),
        "reading, ms per image": round(1000 * (read - stored) / num_images, 2),
    }
    for name, maps in features.items():
        row[f"{name}: error"] = f"{relative_error(kept[name], maps):.2g}"
        row[f"{name}: cosine"] = f"{F.cosine_similarity(kept[name], maps, dim=-1).mean():.6f}"
    return row


def relative_error(kept: Tensor, features: Tensor) -> float:
    """Return the norm of the difference, of that of the features' deviations from their mean over all tokens."""
    deviations = features - features.mean((0, 1, 2))
    return ((kept - features).double().norm() / deviations.double().norm()).item()


def _read(path: Path, feature_format: FeatureFormat, num_images: int) -> Tensor:
    entries = load_file(path)
    return torch.stack([feature_format.decode(entries, row).float() for row in range(num_images)])


class FeatureCacheBenchmark(RecipeCommand):
    """What shall be measured.

    Attributes:
        num_images: Images that the teachers answer; a shard has 512.
    """

    num_images: int = Field(256, gt=0, le=IMAGES_PER_SHARD)


COMMAND = Command("benchmarks.feature_cache", __doc__.partition("\n")[0], FeatureCacheBenchmark, changes=Recipe)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return COMMAND.run(_measure_and_report, arguments)


def _measure_and_report(settings: FeatureCacheBenchmark) -> None:
    recipe = settings.load_recipe()
    features = answer(recipe, settings.num_images)
    rows = []
    for name, feature_format in formats().items():
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"format": name, **measure(features, feature_format, Path(folder))})
    report("feature_cache", recipe.name, rows)


if __name__ == "__main__":
    sys.exit(main())
