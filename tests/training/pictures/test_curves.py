from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from model_cards.results import Measurement
from training.pictures.curves import draw_curves, draw_resolution_consistency


def measured(model: str, metric: str, value: float, seed: int = 0, task: str = "resolution_consistency") -> Measurement:
    return Measurement(model, task, metric, "toy photographs", value, seed)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written."""
    figures: list[Figure] = []
    save = Figure.savefig

    def note(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", note)
    return figures


def test_a_line_per_model_through_the_mean_of_its_seeds(tmp_path: Path, drawn: list[Figure]) -> None:
    measurements = [
        measured("one", "64 to 128 px", 0.5, seed=0),
        measured("one", "64 to 128 px", 0.7, seed=1),
        measured("one", "96 to 128 px", 0.9, seed=0),
        measured("two", "64 to 128 px", 0.2),
        measured("one", "accuracy", 1.0, task="knn"),
    ]
    draw_resolution_consistency(measurements, 128, tmp_path / "plot.png")
    (axes,) = drawn[0].axes
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in axes.lines}
    assert lines == {"one": [[64, pytest.approx(0.6)], [96, 0.9]], "two": [[64, 0.2]]}
    assert np.asarray(axes.collections[0].get_offsets()).tolist() == [[64, 0.5], [64, 0.7], [96, 0.9]]
    assert axes.get_ylabel() == "cosine with the features at 128 px"
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width > picture.height


def test_centered_cosines_have_a_panel_of_their_own(tmp_path: Path, drawn: list[Figure]) -> None:
    measurements = [measured("one", "64 to 128 px", 0.9), measured("one", "64 to 128 px, centered", 0.3)]
    draw_resolution_consistency(measurements, 128, tmp_path / "plot.png")
    plain, centered = drawn[0].axes
    assert np.asarray(plain.lines[0].get_ydata()).tolist() == [0.9]
    assert np.asarray(centered.lines[0].get_ydata()).tolist() == [0.3]
    assert centered.get_ylabel() == "centered cosine with the features at 128 px"


def test_nothing_to_plot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have some of the task 'resolution_consistency', got none"):
        draw_resolution_consistency([measured("one", "accuracy", 1.0, task="knn")], 128, tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []


def test_curves_are_written_whole(tmp_path: Path) -> None:
    draw_curves({"loss": {"a": ([0, 1], [2.0, 1.0])}}, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]
