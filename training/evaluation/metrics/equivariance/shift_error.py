"""Whether features move with the image."""

from torch import Tensor


def shift_error(features: Tensor, shifted: Tensor, shift: tuple[int, int]) -> float:
    """Return how far features of a shifted image are from the shifted features, over what both see.

    With `f` the one map, `g` the other, `(r, c)` the shift and `m` the mean of `f` over the overlap, the mean of
    `|g(y, x) - f(y + r, x + c)|^2` over that of `|f(y + r, x + c) - m|^2`: the share of the variance that a shift
    destroys. 0 for a map that moves with its image, about 2 for two maps that have nothing in common.

    Args:
        features: Of the images, `(num_images, dim, rows, cols)`.
        shifted: Of the same images seen `shift` patches further down and right: position `(y, x)` shows what
            `(y + shift[0], x + shift[1])` of `features` does. Same shape.
        shift: Rows and columns, in patches; negative ones are up and left.

    Returns:
        The error, at least 0. Dimensionless.

    Raises:
        ValueError: If the shapes differ, the shift leaves no overlap, or `features` do not vary in it.

    References:
        Our choice: the normalized error of what the shift-equivariant losses of C-RADIOv4, section 2.3, demand.
        https://arxiv.org/abs/2601.17237
    """
    if features.ndim != 4 or features.shape != shifted.shape:
        raise ValueError(
            "`shifted` must have the shape (num_images, dim, rows, cols) of `features`, got "
            f"{tuple(shifted.shape)} and {tuple(features.shape)}."
        )
    rows, cols = features.shape[2:]
    if abs(shift[0]) >= rows or abs(shift[1]) >= cols:
        raise ValueError(f"`shift` must leave an overlap of maps of {rows} x {cols} patches, got {shift}.")
    expected = _overlap(features, shift).double()
    actual = _overlap(shifted, (-shift[0], -shift[1])).double()
    variance = (expected - expected.mean(dim=(0, 2, 3), keepdim=True)).square().mean()
    if variance == 0:
        raise ValueError("`features` must not all be equal where both maps see the image: their variance is 0.")
    return ((actual - expected).square().mean() / variance).item()


def _overlap(features: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return the part of a map that one moved by `shift` also shows."""
    rows, cols = features.shape[2:]
    return features[:, :, max(shift[0], 0) : rows + min(shift[0], 0), max(shift[1], 0) : cols + min(shift[1], 0)]
