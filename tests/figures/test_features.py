"""Features and classes as colors."""

import torch

from modeling_radio.figures.features import (
    class_color,
    clearest,
    fit_pca_basis,
    foreground_map,
    most_salient_positions,
    overlaid,
    pca_colors,
    similarity_colors,
    similarity_maps,
)


def test_basis_finds_the_directions_in_order_of_variance(features):
    components = fit_pca_basis(features).components
    assert components.argmax(dim=0).tolist() == [5, 2, 0]
    torch.testing.assert_close(components.T @ components, torch.eye(3, dtype=torch.float64))


def test_random_projections_find_nearly_the_same_basis(features):
    before = torch.random.get_rng_state()
    near = fit_pca_basis(features, approximate=True)
    assert torch.equal(torch.random.get_rng_state(), before)
    exact = fit_pca_basis(features)
    assert not torch.equal(near.components, exact.components)
    torch.testing.assert_close(near.components, exact.components, rtol=0, atol=1e-4)
    torch.testing.assert_close(pca_colors(features, near), pca_colors(features, exact), rtol=0, atol=1e-3)


def test_colors_fill_the_range_and_ignore_outliers(features):
    features[0, 5, 0, 0] = 1e4
    colors = pca_colors(features)
    assert torch.equal(colors, pca_colors(features, fit_pca_basis(features)))
    assert colors.shape == (4, 6, 6, 3)
    assert (colors.min(), colors.max()) == (0, 1)
    assert colors[..., 0].std() > 0.15


def test_components_of_the_foreground_are_not_those_of_all(features):
    foreground = torch.zeros(4, 6, 6, dtype=torch.bool)
    foreground[:, :3] = True
    features[:, 5, :3] = 0.0  # the largest variance lies in the background only
    basis = fit_pca_basis(features, foreground=foreground)
    assert basis.components.argmax(dim=0).tolist()[:2] == [2, 0]
    assert fit_pca_basis(features).components.argmax(dim=0)[0] == 5
    assert pca_colors(features, basis)[:, 3:].std() > 0.1, "the background is drawn too"


def with_squares(sign=1.0):
    """Noise around a square of another feature, at another place of each image."""
    features = 0.03 * torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(0))
    features[0, 3, 3:7, 4:8] += 2.0 * sign
    features[1, 3, 5:9, 6:10] += 2.0 * sign
    return features


def test_the_foreground_is_positive_whatever_the_sign_of_its_features():
    for sign in (1.0, -1.0):
        foreground = foreground_map(with_squares(sign)) > 0
        assert foreground[0, 3:7, 4:8].all()
        assert foreground[1, 5:9, 6:10].all()
        assert foreground.sum() == 32


def test_the_middle_of_the_object_is_chosen_but_not_at_the_border():
    foreground = foreground_map(with_squares())
    first, second = most_salient_positions(foreground)
    assert first in {(row, col) for row in (4, 5, 6) for col in (5, 6, 7)}
    assert second in {(row, col) for row in (6, 7, 8) for col in (7, 8)}
    foreground[0, 0, 0] = 1e3
    assert most_salient_positions(foreground)[0] == first


def test_the_clearest_features_are_those_of_one_direction():
    noise = torch.randn(2, 5, 12, 12, generator=torch.Generator().manual_seed(1))
    assert torch.equal(clearest([noise, with_squares(), noise * 9]), with_squares())


def test_places_with_the_feature_of_the_marked_one_are_alike_and_bright():
    features = torch.zeros(2, 3, 4, 4)
    features[:, 0] = 1.0
    features[0, :, 1:3, 1:3] = torch.tensor([0.0, 1.0, 0.0])[:, None, None]
    features[1, :, 0] = torch.tensor([0.0, 0.0, 1.0])[:, None]
    features += 5.0  # common to all
    maps = similarity_maps(features, [(1, 1), (0, 3)])
    torch.testing.assert_close(maps[0, 1:3, 1:3], torch.ones(2, 2))
    torch.testing.assert_close(maps[1, 0], torch.ones(4))
    assert max(maps[0, 0].max(), maps[1, 1:].max()) < 0
    colors = similarity_colors(torch.tensor([[[-1.0, 0.0, 0.4, 1.0]]]))
    assert torch.equal(colors[0, 0, 0], colors[0, 0, 1])
    assert (colors[0, 0, 1:].sum(-1).diff() > 0.3).all()


def test_masks_are_mixed_into_the_image_but_where_they_are_bare():
    image = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    mask = torch.tensor([[0, 1], [255, 0]])
    mixed = overlaid(image, mask, {255})
    assert mixed[:, 1, 0].tolist() == [100, 100, 100]
    assert mixed[:, 0, 0].tolist() == [round(100 * 0.45 + value * 0.55) for value in class_color(0)]
    assert not torch.equal(mixed[:, 0, 0], mixed[:, 0, 1])
