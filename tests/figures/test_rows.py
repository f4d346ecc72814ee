import torch
from matplotlib.figure import Figure
from PIL import Image

from modeling_radio.figures.features import fit_pca_basis, foreground_map, most_salient_positions, pca_colors
from modeling_radio.figures.rows import FigureRow, adaptor_row, draw_rows, feature_rows


def test_rows_of_a_figure_and_its_file(features, tmp_path):
    photographs = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    rows = feature_rows(photographs, {"a": features}, {"a": features.clone()}, features * 3)
    titles = ["photograph", "teacher\na", "student's adaptor\na", "student's backbone"]
    assert [row.title for row in rows] == [*titles, "similar to the ring"]
    assert torch.equal(rows[1].images, rows[2].images), "equal features have equal colors"
    assert rows[0].images.amax() > 0, "the ring"
    brightest = rows[-1].images.sum(-1).flatten(1).argmax(dim=1)
    assert brightest.tolist() == [row * 6 + col for row, col in most_salient_positions(foreground_map(features))]
    draw_rows(rows[:3], tmp_path / "f.png", caption="x")
    assert [path.name for path in tmp_path.iterdir()] == ["f.png"]
    with Image.open(tmp_path / "f.png") as image:
        assert image.height < image.width  # three rows of four


def test_labels_lie_beside_the_images_and_can_be_read_on_a_card(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure) or save(figure, path))
    images = torch.zeros(5, 2, 2, 3)
    titles = ["photograph", "student's adaptor x10.0\nefficientnet-lite0", "teacher\n" + "a-very-long-name-" * 4]
    draw_rows([FigureRow(title, images) for title in titles], tmp_path / "f.png", caption="x")
    (figure,) = figures
    figure.canvas.draw()
    first_image = min(axes.get_window_extent().x0 for axes in figure.axes)
    for label in figure.texts[:-1]:
        box = label.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= first_image
        assert label.get_fontsize() / 72 / figure.get_figwidth() * 700 > 10  # px at a card's width of 700 px


def test_an_uncertain_adaptor_is_stretched_and_its_title_says_how_far(features):
    mean = features.mean(dim=(0, 2, 3), keepdim=True)
    uncertain, basis = mean + (features - mean) / 4, fit_pca_basis(features)
    row = adaptor_row("a", uncertain, basis)
    assert row.title == "student's adaptor x4.0\na"
    torch.testing.assert_close(row.images, pca_colors(features, basis), atol=1e-4, rtol=0)
    assert pca_colors(uncertain, basis).std() < 0.1, "in the range of the teacher"
