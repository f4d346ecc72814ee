"""Pictures of answers: their size, their colors, and what they show where."""

import numpy as np
import pytest
import torch

from training.app import drawing
from training.app.drawing import cells_picture, fit_basis, heat_picture, hex_color, marked_picture, pca_picture, shown
from training.pictures.features import fit_pca_basis, pca_colors


def test_photographs_are_shown_small_enough():
    assert shown(torch.zeros(3, 1000, 2000, dtype=torch.uint8)).shape == (3, 384, 768)
    assert shown(torch.zeros(3, 10, 20, dtype=torch.uint8)).shape == (3, 10, 20)
    assert shown(torch.zeros(3, 1, 2000, dtype=torch.uint8)).shape == (3, 1, 768)


def test_cells_stay_sharp():
    colors = torch.tensor([[[1.0, 0, 0], [0, 0, 1]]])
    pixels = np.asarray(cells_picture(colors, (4, 10)))
    assert pixels.shape == (4, 10, 3)
    assert (pixels[:, :5] == [255, 0, 0]).all()
    assert (pixels[:, 5:] == [0, 0, 255]).all()


def test_features_are_drawn_in_their_own_directions_or_in_given_ones():
    features, others = torch.randn(2, 1, 8, 4, 6)
    expected = pca_colors(features, fit_pca_basis(features))[0]
    own = np.asarray(pca_picture(features, (4, 6)))
    np.testing.assert_array_equal(own, (expected * 255).round().byte().numpy())
    assert not np.array_equal(own, np.asarray(pca_picture(features, (4, 6), fit_basis(others))))


def test_wide_features_are_projected_at_random(monkeypatch):
    features = torch.randn(1, 8, 4, 6)
    monkeypatch.setattr(drawing, "EXACT_WIDTH", 7)
    assert torch.equal(fit_basis(features).components, fit_pca_basis(features, approximate=True).components)


def test_too_narrow_features_are_refused():
    with pytest.raises(ValueError, match="at least 3 dimensions to be drawn, got 2"):
        fit_basis(torch.randn(1, 2, 4, 6))


def test_heat_grows_from_black_to_yellow():
    pixels = np.asarray(heat_picture(torch.tensor([[0.0, 0.5, 1.0]]), (1, 3)))[0].astype(int)
    assert pixels[0].sum() < 10
    assert pixels[0].sum() < pixels[1].sum() < pixels[2].sum()


def test_a_ring_is_around_its_place():
    pixels = np.asarray(marked_picture(torch.full((3, 100, 100), 128, dtype=torch.uint8), (0, 4), (5, 5))).astype(int)
    changed = (pixels != 128).any(axis=2)
    rows, cols = changed.nonzero()
    assert rows.max() < 20
    assert cols.min() > 80


def test_colors_are_written_as_on_pages():
    assert hex_color(0) == "#f23d3d"
