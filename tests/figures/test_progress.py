import pytest
from matplotlib.figure import Figure
from PIL import Image

from modeling_radio.figures.progress import (
    draw_progress,
    loss_curves,
    mean_curve,
    values_by_size,
    values_by_tokens,
)
from modeling_radio.metrics.results import Measurement


def measured(model, task, metric, value, seed=0):
    return Measurement(model, task, metric, "toy photographs", value, seed)


def test_values_by_size_and_by_number_of_tokens():
    measurements = [
        measured("one", "resolution_consistency", "64 to 128 px", 0.5),
        measured("one", "resolution_consistency", "64 to 128 px", 0.7, seed=1),
        measured("one", "resolution_consistency", "96 to 128 px", 0.9),
        measured("two", "resolution_consistency", "64 to 128 px, centered", 0.2),
        measured("one", "knn", "accuracy", 1.0),
        measured("one", "knn_over_tokens", "1 tokens, accuracy", 0.2),
        measured("one", "knn_over_tokens", "16 tokens, accuracy", 0.5),
        measured("one", "knn_over_tokens", "16 tokens, accuracy", 0.7),
        measured("adaptor a", "fidelity_over_tokens", "2 tokens, centered features", 0.4),
    ]
    assert values_by_size(measurements) == {
        "cosine": {"one": {64: [0.5, 0.7], 96: [0.9]}},
        "centered cosine": {"two": {64: [0.2]}},
    }
    assert values_by_tokens(measurements) == {
        "accuracy": {"one": {1: [0.2], 16: [0.5, 0.7]}},
        "centered features": {"adaptor a": {2: [0.4]}},
    }


STEPS = [10, 20, 30]


@pytest.fixture
def panels(tmp_path, monkeypatch):
    """Return a function that draws series, and returns the panels by title."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure) or save(figure, path))

    def draw(series):
        draw_progress({name: (STEPS, curve) for name, curve in series.items()}, tmp_path / "progress.png")
        if not figures:
            return {}
        drawn, (width, height) = figures[0].get_tightbbox(), figures[0].get_size_inches()
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= 0, "nothing is cut"
        return {axes.get_title(): axes for axes in figures[0].axes if axes.get_title()}

    return draw


def test_a_loss_is_the_mean_over_resolutions_without_intervals_that_have_none():
    series = {
        "features/a": (STEPS, [9.0, 9.0, 9.0]),
        "features@32px/a": (STEPS, [4.0, 3.0, 2.0]),
        "features@64px/a": ([10, 30], [2.0, 1.0]),  # not drawn in the second interval
        "features/b": (STEPS, [1.0, float("nan"), 2.0]),
        "mesa@32px": ([20], [0.5]),
        "contrastive": ([10], [float("inf")]),
    }
    assert loss_curves(series, "features") == {"a": (STEPS, [3.0, 2.25, 1.5]), "b": ([10, 30], [1.0, 2.0])}
    assert loss_curves(series, "mesa") == {"": ([20], [0.5])}
    assert loss_curves(series, "summary") == loss_curves(series, "contrastive") == {}
    assert mean_curve([([0, 1], [1.0, 2.0]), ([0, 1], [3.0, 4.0])]) == ([0, 1], [2.0, 3.0])


def test_losses_of_all_teachers_share_one_scale(panels, tmp_path):
    drawn = panels(
        {
            "features/a": [80.0, 0.8, 0.7],
            "summary/a": [0.4, 0.3, 0.2],
            "mesa": [0.02, 0.01, 0.01],
            "learning_rate": [1.0, 1.0, 1.0],
        }
    )
    assert list(drawn) == ["dense loss", "summary loss", "MESA loss"]
    limits = drawn["dense loss"].get_ylim()
    assert limits == drawn["summary loss"].get_ylim() != drawn["MESA loss"].get_ylim()
    assert limits[0] < 0.2 < 0.8 < limits[1] < 80
    assert drawn["dense loss"].get_yscale() == "log"
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
    with Image.open(tmp_path / "progress.png") as image:
        assert min(image.size) > 200


def test_a_run_without_numbers_has_no_figure(panels, tmp_path):
    assert panels({"learning_rate": [1.0, 1.0, 1.0]}) == {}
    assert list(tmp_path.iterdir()) == []
