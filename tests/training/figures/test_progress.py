import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from modeling_radio.model_cards.results import Measurement
from modeling_radio.training.figures.progress import (
    draw_progress,
    figure_over_counts,
    loss_curves,
    mean_curve,
    values_by_size,
    values_by_tokens,
)


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


def test_panels_over_counts_stand_in_rows_of_four():
    panel = {"a $x_$": {1: [0.1, 0.2], 4: [0.4, 0.3]}, "b": {4: [0.4]}}
    for number, shape in ((2, (8, 3)), (5, (16, 6))):
        figure = figure_over_counts({str(index): panel for index in range(number)}, "steps")
        figure.draw_without_rendering()
        assert tuple(figure.get_size_inches()) == shape
        assert values(figure.axes[0].lines[0]) == pytest.approx([0.15, 0.35])
        assert figure.axes[0].get_legend_handles_labels()[1] == ["a $x_$", "b"]


STEPS = [10, 20, 30]


def values(line):
    return np.asarray(line.get_ydata()).tolist()


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


def test_weights_and_losses_of_taps_have_their_teachers_color(panels):
    drawn = panels(
        {
            "features/a": [0.9, 0.8, 0.7],
            "features/b": [0.8, 0.7, 0.6],
            "weight/features/a": [1.0, 1.5, 1.2],
            "weight/summary/b": [1.0, 1.0, 1.0],
            "tap_features/a@5": [1.0, 0.9, 0.8],
            "tap_features@32px/a@11": [3.0, 2.0, 1.0],
            "tap_features@64px/a@11": [1.0, 1.0, 1.0],
            "tap_summary/b@11": [0.5, 0.4, 0.3],
            "weight/taps": [0.25, 0.25, 0.1],
        }
    )
    of_taps, of_weights = "dense loss of taps", "weight of dense losses"
    titles = ["dense loss", of_taps, "summary loss of taps", of_weights, "weight of summary losses"]
    assert list(drawn) == titles
    lines = {title: {str(line.get_label()): line for line in axes.lines} for title, axes in drawn.items()}
    colors = {name: line.get_color() for name, line in lines["dense loss"].items()}
    assert colors["a"] != colors["b"]
    assert {name: line.get_color() for name, line in lines[of_taps].items()} == dict.fromkeys(
        ["a@5", "a@11"], colors["a"]
    )
    assert lines[of_taps]["a@5"].get_linestyle() != lines[of_taps]["a@11"].get_linestyle()
    assert values(lines[of_taps]["a@11"]) == [2.0, 1.5, 1.0]
    assert lines["summary loss of taps"]["b@11"].get_color() == colors["b"]
    assert (values(lines[of_weights]["a"]), lines[of_weights]["a"].get_color()) == ([1.0, 1.5, 1.2], colors["a"])


def test_measurements_are_drawn_by_resolution_and_teacher(panels):
    drawn = panels(
        {
            "features/a": [0.9, 0.8, 0.7],
            "features/b": [0.8, 0.7, 0.6],
            "fixed_pattern/32px": [0.3, 0.2, 0.1],
            "fixed_pattern/64px": [0.5, 0.4, 0.3],
            "student/fixed_pattern/64px": [0.6, 0.5, 0.4],
            "dense_fidelity/a/32px": [0.1, 0.2, 0.3],
            "dense_fidelity/b/32px": [0.2, 0.3, 0.4],
            "dense_fidelity/b/64px": [0.3, 0.4, 0.5],
        }
    )
    pattern, fidelity = drawn["fixed-pattern energy"], drawn["dense fidelity, cosine"]
    of_student, *others = sorted(
        (line for line in pattern.lines if values(line)), key=lambda line: line.get_linewidth()
    )
    assert values(of_student) == [0.6, 0.5, 0.4]
    assert sorted(map(values, others)) == [[0.3, 0.2, 0.1], [0.5, 0.4, 0.3]]
    assert [text.get_text() for text in pattern.get_legend().get_texts()] == ["64 px", "32 px"]
    assert ("lower" in pattern.get_ylabel(), "higher" in fidelity.get_ylabel()) == (True, True)
    a, b = (line.get_color() for line in drawn["dense loss"].lines)
    (legend,) = pattern.figure.legends
    assert {line.get_label(): line.get_color() for line in legend.legend_handles} == {"a": a, "b": b}
    styles = {values(line)[0]: (line.get_color(), line.get_linestyle()) for line in fidelity.lines if values(line)}
    assert styles == {0.1: (a, "--"), 0.2: (b, "--"), 0.3: (b, "-")}


def test_a_run_without_numbers_has_no_figure(panels, tmp_path):
    assert panels({"learning_rate": [1.0, 1.0, 1.0]}) == {}
    assert list(tmp_path.iterdir()) == []
