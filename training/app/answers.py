"""What the app answers for any backbone: features as colors, what is alike a place, and what windows cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

from training.app.drawing import Picture, fit_basis, heat_picture, marked_picture, pca_picture, shown
from training.app.opening import Opened
from training.app.passes import (
    BACKBONE,
    NO_WINDOWS,
    Pass,
    Passes,
    make_pixels,
    read_window,
    time_backbone,
)
from training.app.photographs import read_photograph
from training.pictures.similarity import similarity_maps


TIMED_RUNS = 3
"""Of each window after one that is not counted; our choice, of which the median is told."""
Report = Callable[[float, str], object]
"""Is told how much of the work is done, in [0, 1], and what comes next."""


class Explorer:
    """Answers the questions of the app's pages about one model; paths of photographs in, pictures and texts out."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.passes = Passes(opened)

    def features(
        self, image: str | None, resolution: int, windows: str, report: Report = lambda *_: None
    ) -> tuple[list[Picture], str]:
        """Return the principal components of the features in every space, and what was done.

        Args:
            image: File of a photograph.
            resolution: Its shorter side for the network, in pixels.
            windows: As `read_window` takes them.
            report: Is told of progress.

        Raises:
            ValueError: On what cannot be; the message names it.
        """
        photograph, found = self._look(image, resolution, windows, report)
        size, pictures = shown(photograph).shape[-2:], []
        for number, (name, features) in enumerate(found.maps.items()):
            report(0.5 + 0.5 * number / len(found.maps), f"colors of {name}")
            pictures.append((pca_picture(features, size), f"{name}, {features.shape[1]} dimensions"))
        return pictures, self._told(found)

    def alike(
        self,
        image: str | None,
        across: float,
        down: float,
        resolution: int,
        windows: str,
        report: Report = lambda *_: None,
    ) -> tuple[list[Picture], str]:
        """Return how alike all places of a photograph are to one of them in every space, and what was done.

        Args:
            image: File of a photograph.
            across: The place, in percent of the width.
            down: The place, in percent of the height.
            resolution: As of `features`.
            windows: As of `features`.
            report: Is told of progress.

        Raises:
            ValueError: On what cannot be; the message names it.
        """
        for name, share in (("across", across), ("down", down)):
            if not 0 <= share <= 100:
                raise ValueError(f"`{name}` must be a percentage in [0, 100], got {share}.")
        photograph, found = self._look(image, resolution, windows, report)
        rows, cols = found.grid
        place = min(int(down / 100 * rows), rows - 1), min(int(across / 100 * cols), cols - 1)
        small = shown(photograph)
        pictures = [(marked_picture(small, place, found.grid), "the place")]
        for name, features in found.maps.items():
            heat = similarity_maps(features, [_on_grid(place, found.grid, features.shape[-2:])])[0]
            pictures.append((heat_picture(heat, small.shape[-2:]), f"{name}"))
        told = f"Patch {place[1] + 1} of {cols} across, {place[0] + 1} of {rows} down. Yellow is alike, black is not."
        return pictures, f"{told} {self._told(found)}"

    def compare_windows(
        self, image: str | None, resolution: int, windows: Sequence[str], report: Report = lambda *_: None
    ) -> tuple[list[list[str | float]], list[Picture], str]:
        """Return a row for each window, the features with each as colors, and what that says.

        A row has the window, milliseconds of the backbone, how many times faster that is than without windows, and the
        mean cosine of the features with those without windows. Without windows comes first, asked for or not.

        Args:
            image: File of a photograph.
            resolution: As of `features`.
            windows: As `read_window` takes them.
            report: Is told of progress.

        Raises:
            ValueError: On what cannot be; the message names it.
        """
        photograph = read_photograph(image, self.opened.processor)
        pixels = make_pixels(self.opened, photograph, resolution)
        names = list(dict.fromkeys([NO_WINDOWS, *map(str, windows)]))
        size, rows, pictures = shown(photograph).shape[-2:], [], []
        whole, basis, slowest = None, None, 0.0
        for number, name in enumerate(names):
            report(number / len(names), f"windows: {name}")
            features, milliseconds = self._timed(pixels, name)
            if whole is None:
                whole, basis, slowest = features, fit_basis(features), milliseconds
            cosine = float(F.cosine_similarity(features, whole, dim=1).mean())
            rows.append([name, round(milliseconds, 1), round(slowest / milliseconds, 2), round(cosine, 4)])
            pictures.append((pca_picture(features, size, basis), f"windows: {name}, {milliseconds:.1f} ms"))
        height, width = pixels.shape[-2:]
        where = f"{width} x {height} px on {self.opened.model.device}, {self.opened.dtype}"
        return rows, pictures, f"{where}; median of {TIMED_RUNS} passes. {self._windows_act()}".strip()

    def _timed(self, pixels: Tensor, name: str) -> tuple[Tensor, float]:
        window = read_window(name)
        maps, _ = time_backbone(self.opened, pixels, window)
        return maps[BACKBONE], statistics.median(
            time_backbone(self.opened, pixels, window)[1] for _ in range(TIMED_RUNS)
        )

    def _windows_act(self) -> str:
        """Say that windows change nothing, where no block has any."""
        config = self.opened.backbone.config
        if config.has_windowed_blocks:
            return ""
        return (
            f"All {config.num_hidden_layers} blocks of this model attend globally, so that windows change nothing: "
            "start the app with --num-global and half of the blocks or fewer."
        )

    def _look(self, image: str | None, resolution: int, windows: str, report: Report) -> tuple[Tensor, Pass]:
        report(0.0, "reading the photograph")
        photograph = read_photograph(image, self.opened.processor)
        report(0.1, "running the network")
        return photograph, self.passes.run(photograph, resolution, read_window(windows))

    def _told(self, found: Pass) -> str:
        (rows, cols), (height, width) = found.grid, found.size
        with_adaptors = f" with {len(found.maps) - 1} adaptors" if len(found.maps) > 1 else ""
        return (
            f"{width} x {height} px, {cols} x {rows} patches, {found.milliseconds:.0f} ms{with_adaptors} on "
            f"{self.opened.model.device}, {self.opened.dtype}."
        )


def _on_grid(place: tuple[int, int], grid: Sequence[int], other: Sequence[int]) -> tuple[int, int]:
    """Return the place on another grid of the same image: dense heads may have finer ones."""
    row, col = (int((each + 0.5) * there / here) for each, here, there in zip(place, grid, other, strict=True))
    return row, col
