import torch
from PIL import Image

from modeling_radio.training.figures.columns import adaptor_column, draw_columns, feature_columns
from modeling_radio.training.figures.features import fit_pca_basis, foreground_map, most_salient_positions, pca_colors


def test_columns_of_a_figure_and_its_file(features, tmp_path):
    photographs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    columns = feature_columns(photographs, {"a": features}, {"a": features.clone()}, {"backbone\nx": features * 3})
    titles = ["photograph", "teacher\na", "student's adaptor\na", "backbone\nx", "similar to the ring:\nx"]
    assert [column.title for column in columns] == titles
    assert torch.equal(columns[1].images, columns[2].images), "equal features have equal colors"
    assert columns[0].images.amax() > 0, "the ring"
    brightest = columns[4].images.sum(-1).flatten(1).argmax(dim=1)
    assert brightest.tolist() == [row * 6 + col for row, col in most_salient_positions(foreground_map(features))]
    draw_columns(columns[:3], tmp_path / "f.png", caption="x")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]
    with Image.open(tmp_path / "f.png") as image:
        assert image.height > image.width  # three columns, four rows


def test_an_uncertain_adaptor_is_stretched_and_its_title_says_how_far(features):
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    uncertain, basis = mean + (features - mean) / 4, fit_pca_basis(features)
    column = adaptor_column("a", uncertain, basis)
    assert column.title == "student's adaptor x4.0\na"
    torch.testing.assert_close(column.images, pca_colors(features, basis), atol=1e-4, rtol=0)
    assert pca_colors(uncertain, basis).std() < 0.1, "in the range of the teacher"
