"""How much of a feature map depends on the place in the grid alone, whatever the image."""

from torch import Tensor


def fixed_pattern_energy(features: Tensor) -> float:
    """Return the share of the features' variance that is a pattern fixed to the grid.

    With `f(n, p)` the feature of image `n` at position `p` and `m` the mean over both,
    `sum_p |mean_n f(n, p) - m|^2 / P` over `sum_np |f(n, p) - m|^2 / (N P)`: the variance over positions of the mean
    feature over that of all features. 0 where no position differs from another on average, 1 where the image does not
    matter. `N` images that share nothing still leave about `1 / N`, which is why many, of many kinds, are needed.

    Args:
        features: `(num_images, dim, rows, cols)`, float, of at least one image that is not constant.

    Returns:
        The share, in [0, 1].

    Raises:
        ValueError: If it is no such map, or all features are equal.

    References:
        Our choice of a number for the fixed patterns that teachers have and students learn, which the shift-equivariant
        losses of C-RADIOv4, section 2.3, are against. https://arxiv.org/abs/2601.17237
    """
    if features.ndim != 4 or not features.numel():
        raise ValueError(
            "`features` must have the shape (num_images, dim, rows, cols), none of them 0, got "
            f"{tuple(features.shape)}."
        )
    values = features.double()
    centered = values - values.mean(dim=(0, 2, 3), keepdim=True)
    whole = centered.square().sum(1).mean()
    if whole == 0:
        raise ValueError("`features` must not all be equal: their variance is 0.")
    return (centered.mean(0).square().sum(0).mean() / whole).item()
