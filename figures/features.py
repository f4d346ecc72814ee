"""Features and classes as colors, alone and over images.

A Space of the app has this file: it imports nothing else of this repository.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import torch
from torch import Tensor
from torch.nn import functional as F


DPI = 160
"""Resolution of figures."""
PERCENTILE = 2.0
"""Share in percent of the tokens cut off at each end of the color range, so that a few outlier patches do not wash out
the colors. Our choice."""
OVERSAMPLED, POWER_ITERATIONS = 5, 4  # more than the least that Halko et al. advise (section 4.3): it is cheap
LEAST_STRETCH = 1.05
"""From which a title names it; our choice: less is not visible."""
NEIGHBORHOOD = 5
"""Patches on a side over which a map is averaged before its maximum is taken, so that one odd patch is not chosen. Our
choice: a sixth of the side of a map of 32 patches."""
MARGIN = 0.25
"""Share of each side in which no patch is chosen: an object in the middle is seen whole. Our choice."""
HEAT = "inferno"
"""Our choice: its brightness grows evenly, also for the color-blind."""
MARK = (0.0, 1.0, 0.4)
"""RGB of the ring, our choice: `HEAT` does not have it."""
MARK_RADIUS = 0.045
"""Radius of the ring over the image's height; our choice."""
GOLDEN_ANGLE = 0.618033988749895
"""Step on the color circle, so that any number of successive classes have different hues."""
DARK = 0.12
"""Brightness that is left in the dark parts of an image; our choice."""
OPACITY = 0.55
"""Opacity of the color of a class over the image; our choice."""


@dataclass(frozen=True)
class PcaBasis:
    """Three principal directions of a feature space, and the range that colors show.

    Attributes:
        mean: `(dim,)`.
        components: Orthonormal columns, `(dim, 3)`.
        low: Projection drawn as 0, `(3,)`.
        high: Projection drawn as 1, `(3,)`.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    def project(self, features: Tensor) -> Tensor:
        """Return the projections of features `(num_images, dim, rows, cols)`, `(num_images, rows, cols, 3)`."""
        return (features.movedim(1, -1).double() - self.mean) @ self.components

    def with_range_of(self, features: Tensor) -> PcaBasis:
        """Return the same directions with the range of other features, `(num_images, dim, rows, cols)`."""
        limits = torch.tensor([PERCENTILE / 100, 1 - PERCENTILE / 100], dtype=torch.float64)
        low, high = self.project(features).flatten(0, 2).quantile(limits, dim=0)
        return PcaBasis(self.mean, self.components, low, high)

    def stretch(self, features: Tensor) -> str:
        """Return how many times narrower the range of other features is, as " x2.0"; "" if it is not narrower."""
        own = self.with_range_of(features)
        widths = [float((basis.high - basis.low).mean()) for basis in (self, own)]
        times = widths[0] / max(widths[1], 1e-12)
        return f" x{times:.1f}" if times >= LEAST_STRETCH else ""


def fit_pca_basis(features: Tensor, *, foreground: Tensor | None = None, approximate: bool = False) -> PcaBasis:
    """Find the three directions along which dense features vary most.

    Args:
        features: `(num_images, dim, rows, cols)` with `dim >= 3`.
        foreground: Patches whose features choose the directions, bool `(num_images, rows, cols)`; None takes all. The
            range is that of all patches. Of a student's backbone three directions of all patches say which image a
            patch is from and where it lies; three of the foreground say more of what is there (mIoU of 15 nearest
            neighbors .21 instead of .17; one student, 2026-11-25).
        approximate: Use random projections: with thousands of dimensions the exact directions take seconds.

    Returns:
        The basis; the sign of a direction is chosen so that its largest entry is positive.

    References:
        Components of the foreground: figures of DINOv2 (https://arxiv.org/abs/2304.07193, figure 1). Random
        projections: Halko, Martinsson and Tropp (https://arxiv.org/abs/0909.4061), as `torch.pca_lowrank` has them.
    """
    tokens = features.movedim(1, -1).double()
    chosen = tokens.flatten(0, 2) if foreground is None else tokens[foreground]
    if approximate:
        with torch.random.fork_rng(devices=[]):  # the same directions for the same features
            torch.default_generator.manual_seed(0)
            rank = min(3 + OVERSAMPLED, *chosen.shape)
            _, _, vectors = torch.pca_lowrank(chosen.float(), q=rank, niter=POWER_ITERATIONS)
        components = vectors[:, :3].double()
    else:
        _, vectors = torch.linalg.eigh(torch.cov(chosen.T))  # ascending eigenvalues
        components = vectors[:, -3:].flip(1)
    largest = components.gather(0, components.abs().argmax(dim=0, keepdim=True))
    unbounded = PcaBasis(chosen.mean(dim=0), components * largest.sign(), torch.zeros(3), torch.ones(3))
    return unbounded.with_range_of(features)


def pca_colors(features: Tensor, basis: PcaBasis | None = None) -> Tensor:
    """Return dense features as colors.

    Args:
        features: `(num_images, dim, rows, cols)`.
        basis: Directions and range; None fits those of the features.

    Returns:
        RGB in [0, 1], `(num_images, rows, cols, 3)`.
    """
    basis = fit_pca_basis(features) if basis is None else basis
    span = (basis.high - basis.low).clamp(min=1e-12)
    return ((basis.project(features) - basis.low) / span).clamp(0, 1).float()


def foreground_map(features: Tensor) -> Tensor:
    """Return how much each patch belongs to an object: positive within objects, negative around them.

    It is the first principal component over all patches of all images. Its sign makes the border of the images more
    negative than the rest, since photographed objects rarely lie at the border.

    Args:
        features: `(num_images, dim, rows, cols)`.

    Returns:
        `(num_images, rows, cols)`, of mean zero.

    References:
        The cut at zero is that of DINOv2's figures (https://arxiv.org/abs/2304.07193, section 7.4 and figure 1), where
        the sign was chosen by eye; that the border is background is the prior of Wei et al., "Geodesic Saliency Using
        Background Priors", 2012.
    """
    tokens = features.movedim(1, -1).double()
    centered = tokens - tokens.mean(dim=(0, 1, 2))
    _, vectors = torch.linalg.eigh(torch.cov(centered.flatten(0, 2).T))  # ascending eigenvalues
    first = centered @ vectors[:, -1]
    border = torch.ones_like(first[0], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return (first if first[:, border].mean() <= 0 else -first).float()


def finer_maps(
    encode: Callable[[Tensor], Mapping[str, Tensor]], images: Tensor, *, patch_size: int, shifts: int
) -> dict[str, Tensor]:
    """Return dense features on a grid `shifts` times as fine as that of one pass.

    The windows of the images that are a patch smaller are encoded at `shifts` x `shifts` offsets within a patch, and
    their maps are interleaved: each position has the features of the patch that is centered on it.

    Args:
        encode: Takes windows, `(num_images, channels, height, width)`; returns maps by name, `(num_images, dim, rows,
            cols)` each.
        images: `(num_images, channels, height + patch_size, width + patch_size)`.
        patch_size: Side of a patch in pixels.
        shifts: Positions for each patch and direction.

    Returns:
        By name, `(num_images, dim, shifts * rows, shifts * cols)`.
    """
    height, width = (side - patch_size for side in images.shape[-2:])
    # Offset of the window that centers a patch on position number `shift` within a patch.
    starts = [(2 * shift + 1) * patch_size // (2 * shifts) for shift in range(shifts)]
    rows: list[dict[str, Tensor]] = []
    for top in starts:
        columns = [encode(images[..., top : top + height, left : left + width]) for left in starts]
        rows.append({name: _interleaved([each[name] for each in columns], dim=3) for name in columns[0]})
    return {name: _interleaved([each[name] for each in rows], dim=2) for name in rows[0]}


def _interleaved(maps: Sequence[Tensor], dim: int) -> Tensor:
    """Interleave maps along a dimension: their first positions, then their second ones."""
    return torch.stack(list(maps), dim=dim + 1).flatten(dim, dim + 1)


def clearest(maps: Iterable[Tensor]) -> Tensor:
    """Return the dense features whose first principal component has the largest share of their variance.

    Args:
        maps: At least one, each `(num_images, dim, rows, cols)`.
    """

    def share(features: Tensor) -> float:
        variances = torch.linalg.eigvalsh(torch.cov(features.movedim(1, -1).flatten(0, 2).double().T))
        return float(variances[-1] / variances.sum())

    return max(maps, key=share)


def most_salient_positions(foreground: Tensor) -> list[tuple[int, int]]:
    """Return row and column of the most salient patch in the middle of each image.

    Args:
        foreground: `(num_images, rows, cols)` (see `foreground_map`).
    """
    padding = NEIGHBORHOOD // 2
    smooth = F.avg_pool2d(foreground[:, None], NEIGHBORHOOD, 1, padding, count_include_pad=False)[:, 0]
    rows, cols = foreground.shape[1:]
    top, left = int(rows * MARGIN), int(cols * MARGIN)
    middle = smooth[:, top : rows - top, left : cols - left]
    positions = [divmod(int(position), middle.shape[2]) for position in middle.flatten(1).argmax(dim=1)]
    return [(top + row, left + col) for row, col in positions]


def similarity_maps(features: Tensor, positions: Sequence[tuple[int, int]]) -> Tensor:
    """Return the cosines of all patches with one of the same image, about the mean over all images.

    Args:
        features: `(num_images, dim, rows, cols)`.
        positions: Row and column, for each image.

    Returns:
        `(num_images, rows, cols)`, 1 at the patches themselves.
    """
    centered = F.normalize(features - features.mean(dim=(0, 2, 3), keepdim=True), dim=1)
    marked = torch.stack([each[:, row, col] for each, (row, col) in zip(centered, positions, strict=True)])
    return torch.einsum("ndhw,nd->nhw", centered, marked)


def similarity_colors(similarity: Tensor) -> Tensor:
    """Return cosines `(num_images, rows, cols)` as RGB in [0, 1], `(num_images, rows, cols, 3)`: black is 0 or less."""
    rgba = matplotlib.colormaps[HEAT](similarity.clamp(0, 1).numpy())
    return torch.from_numpy(rgba[..., :3]).float()


def marked(images: Tensor, positions: Sequence[tuple[int, int]], grid: Sequence[int]) -> Tensor:
    """Return RGB images in [0, 1] with a ring around a patch of each.

    Args:
        images: `(num_images, height, width, 3)`.
        positions: Row and column in the grid, for each image.
        grid: Number of rows and columns.
    """
    height, width = images.shape[1:3]
    radius, thickness = MARK_RADIUS * height, max(1.0, MARK_RADIUS * height / 4)
    ys, xs = torch.arange(height)[:, None] + 0.5, torch.arange(width)[None] + 0.5
    result = images.clone()
    for image, (row, col) in zip(result, positions, strict=True):
        distances = torch.hypot(ys - (row + 0.5) * height / grid[0], xs - (col + 0.5) * width / grid[1])
        image[(distances - radius).abs() < thickness * 1.6] = 0.0  # a dark edge, visible on anything
        image[(distances - radius).abs() < thickness] = torch.tensor(MARK)
    return result


def class_color(index: int) -> tuple[int, int, int]:
    """Return the color of a class, bytes of RGB."""
    red, green, blue = colorsys.hsv_to_rgb(index * GOLDEN_ANGLE % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def hex_color(index: int) -> str:
    """Return the color of a class as HTML writes it."""
    return "#{:02x}{:02x}{:02x}".format(*class_color(index))


def only_where(images: Tensor, is_shown: Tensor) -> Tensor:
    """Return images that are dark where a map says so.

    Args:
        images: RGB in [0, 1], `(num_images, height, width, 3)`.
        is_shown: Bool, `(num_images, rows, cols)`.
    """
    shown = F.interpolate(is_shown[:, None].float(), images.shape[1:3], mode="nearest")[:, 0, ..., None]
    return images * (DARK + (1 - DARK) * shown)


def background_of(class_names: Mapping[int, str]) -> set[int]:
    """Return the indices of the classes called "background", which drawings leave bare."""
    return {index for index, name in class_names.items() if name.lower() == "background"}


def overlaid(image: Tensor, mask: Tensor, bare: Collection[int] = ()) -> Tensor:
    """Return an image under the colors of its classes.

    Args:
        image: uint8 `(3, height, width)`.
        mask: Index of the class of each pixel, `(height, width)`.
        bare: Indices without a color.
    """
    colors, is_bare = torch.zeros_like(image), torch.ones_like(mask, dtype=torch.bool)
    for index in set(mask.unique().tolist()) - set(bare):
        colors[:, mask == index] = torch.tensor(class_color(index), dtype=torch.uint8)[:, None]
        is_bare &= mask != index
    mixed = (image * (1 - OPACITY) + colors * OPACITY).round().to(torch.uint8)
    return torch.where(is_bare, image, mixed)


def to_pixels(colors: Tensor) -> Tensor:
    """Return RGB in [0, 1], `(..., rows, cols, 3)`, as uint8 `(..., 3, rows, cols)`."""
    return (colors.movedim(-1, -3) * 255).round().to(torch.uint8)


def to_colors(pixels: Tensor) -> Tensor:
    """Return uint8 RGB, `(..., 3, rows, cols)`, as RGB in [0, 1], `(..., rows, cols, 3)`."""
    return pixels.movedim(-3, -1).float() / 255
