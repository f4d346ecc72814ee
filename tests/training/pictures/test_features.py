import pytest
import torch
from PIL import Image

from training.pictures.features import draw_columns, feature_columns, fit_pca_basis, pca_colors


@pytest.fixture
def features() -> torch.Tensor:
    """Three strong directions in channels 5, 2 and 0 (in that order), weak noise elsewhere."""
    features = 0.01 * torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    for channel, scale in [(5, 9.0), (2, 3.0), (0, 1.0)]:
        features[:, channel] += scale * torch.randn(4, 6, 6, generator=torch.Generator().manual_seed(channel))
    return features


def test_basis_finds_the_directions_in_order_of_variance(features):
    components = fit_pca_basis(features).components
    assert components.argmax(dim=0).tolist() == [5, 2, 0]
    torch.testing.assert_close(components.T @ components, torch.eye(3, dtype=torch.float64))


def test_colors_fill_the_range_and_ignore_outliers(features):
    features[0, 5, 0, 0] = 1e4
    colors = pca_colors(features, fit_pca_basis(features))
    assert colors.shape == (4, 6, 6, 3)
    assert colors.min() == 0
    assert colors.max() == 1
    assert colors[..., 0].std() > 0.15


def test_equal_features_get_equal_colors_in_the_teachers_basis(features):
    photographs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    columns = feature_columns(photographs, {"a": features}, {"a": features.clone()}, {"backbone": features * 3})
    assert [column.title for column in columns] == [
        "photograph",
        "teacher\na",
        "student's adaptor\na",
        "backbone",
    ]
    assert torch.equal(columns[1].images, columns[2].images)
    scaled = feature_columns(photographs, {"a": features}, {"a": features * 3}, {})
    assert not torch.equal(scaled[1].images, scaled[2].images)


def test_pictures_are_written_whole(features, tmp_path):
    photographs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    draw_columns(feature_columns(photographs, {"a": features}, {"a": features}, {}), tmp_path / "f.png", caption="x")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.height > picture.width  # three columns, four rows
