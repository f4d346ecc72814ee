"""Pictures of features side by side: what stands in which column, and the file."""

import pytest
import torch
from PIL import Image

from training.figures.features import (
    adaptor_column,
    draw_columns,
    feature_columns,
    fit_pca_basis,
    foreground_map,
    most_salient_places,
    pca_colors,
)


@pytest.fixture
def features() -> torch.Tensor:
    """Three strong directions in channels 5, 2 and 0 (in that order), weak noise elsewhere."""
    features = 0.01 * torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for channel, scale in [(5, 9.0), (2, 3.0), (0, 1.0)]:
        features[:, channel] += scale * torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(channel))
    return features


def test_columns_of_a_picture(features):
    photographs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    columns = feature_columns(photographs, {"a": features}, {"a": features.clone()}, {"backbone\nx": features * 3})
    assert [column.title for column in columns] == [
        "photograph",
        "teacher\na",
        "student's adaptor\na",
        "backbone\nx",
        "alike the ring:\nx",
    ]
    assert torch.equal(columns[1].images, columns[2].images), "equal features have equal colors"
    assert columns[0].images.amax() > 0, "the ring"
    brightest = columns[4].images.sum(-1).flatten(1).argmax(dim=1)
    ring = [row * 6 + col for row, col in most_salient_places(foreground_map(features))]
    assert brightest.tolist() == ring


def test_an_unsure_adaptor_is_not_uniform_and_says_how_far_it_was_stretched(features):
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    unsure = mean + (features - mean) / 4
    basis = fit_pca_basis(features)
    column = adaptor_column("a", unsure, basis)
    assert column.title == "student's adaptor x4.0\na"
    torch.testing.assert_close(column.images, pca_colors(features, basis), atol=1e-4, rtol=0)
    assert pca_colors(unsure, basis).std() < 0.1, "in the range of the teacher"


def test_pictures_are_written_whole(features, tmp_path):
    photographs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    draw_columns(feature_columns(photographs, {"a": features}, {"a": features}, {}), tmp_path / "f.png", caption="x")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.height > picture.width  # three columns, four rows
