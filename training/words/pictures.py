"""Scenes by words: the image, the truth, and what each model says of its patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from foundation.files import write_file


CELL_INCHES = 1.6
OPACITY = 0.6
"""Of the classes on the image; our choice."""
COLORS = colormaps["tab10"].colors  # pyrefly: ignore[missing-attribute]


def draw_scenes(
    images: Tensor, rows: Mapping[str, Tensor], class_names: Sequence[str], path: Path, *, caption: str = ""
) -> None:
    """Draw a column for each scene and write a PNG; a reader never sees half of it.

    Args:
        images: uint8 RGB, `(num_scenes, 3, height, width)`.
        rows: Class maps by title, `(num_scenes, height, width)`, indices into `class_names`; the first is no color.
        class_names: At most eleven.
        path: The PNG to write.
        caption: A line below.
    """
    titles = ["image", *rows]
    figure = Figure(
        figsize=(CELL_INCHES * len(images), CELL_INCHES * len(titles) + 0.6),
        dpi=110,
        facecolor="white",
        layout="constrained",
    )
    grid = figure.subplots(len(titles), len(images), squeeze=False)
    for column, image in enumerate(images.movedim(1, -1).float() / 255):
        for ax, title in zip(grid[:, column], titles, strict=True):
            shown = image if title == "image" else _overlaid(image, rows[title][column])
            ax.imshow(shown.numpy())
            ax.set(xticks=[], yticks=[])
            if column == 0:
                ax.set_ylabel(title, fontsize=7)
    patches = [Patch(color=color, label=name) for color, name in zip(COLORS, class_names[1:], strict=False)]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=7, frameon=False)
    figure.suptitle(caption, fontsize=7)
    write_file(path, figure.savefig)


def _overlaid(image: Tensor, classes: Tensor) -> Tensor:
    """Return an image `(height, width, 3)` in [0, 1] with the colors of its classes; class 0 is left as it is."""
    palette = torch.tensor([(0.0, 0.0, 0.0), *COLORS])
    is_class = (classes > 0)[..., None]
    return torch.where(is_class, (1 - OPACITY) * image + OPACITY * palette[classes], image)
