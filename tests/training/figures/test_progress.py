from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from training.figures.progress import Curve, draw_progress, loss_curves, mean_curve


STEPS = [10, 20, 30]


def panels_of(figure: Figure) -> dict[str, Axes]:
    return {axes.get_title(): axes for axes in figure.axes if axes.get_title()}


def drawn_in(axes: Axes) -> list[Line2D]:
    """The curves, without those that only stand in the legend."""
    return [line for line in axes.lines if len(np.asarray(line.get_ydata()))]


def test_a_loss_is_the_mean_over_resolutions_of_what_each_had_last() -> None:
    series: dict[str, Curve] = {
        "features/a": (STEPS, [9.0, 9.0, 9.0]),
        "features@32px/a": (STEPS, [4.0, 3.0, 2.0]),
        "features@64px/a": ([10, 30], [2.0, 1.0]),  # not drawn in the second interval
        "features/b": (STEPS, [1.0, 1.0, 1.0]),
        "mesa@32px": ([20], [0.5]),
    }
    assert loss_curves(series, "features") == {"a": (STEPS, [3.0, 2.25, 1.5]), "b": (STEPS, [1.0, 1.0, 1.0])}
    assert loss_curves(series, "mesa") == {"": ([20], [0.5])}
    assert loss_curves(series, "summary") == {}


def test_an_interval_without_a_mean_is_left_out() -> None:
    series: dict[str, Curve] = {
        "features@32px/a": (STEPS, [4.0, float("nan"), 2.0]),
        "summary/a": ([10], [float("inf")]),
    }
    assert loss_curves(series, "features") == {"a": ([10, 30], [4.0, 2.0])}
    assert loss_curves(series, "summary") == {}


def test_the_mean_of_curves_is_that_of_each_step() -> None:
    assert mean_curve([([0, 1], [1.0, 2.0]), ([0, 1], [3.0, 4.0])]) == ([0, 1], [2.0, 3.0])


def test_losses_of_all_teachers_share_one_scale(tmp_path: Path, drawn: list[Figure]) -> None:
    series: dict[str, Curve] = {
        "features/a": (STEPS, [80.0, 0.8, 0.7]),
        "summary/a": (STEPS, [0.4, 0.3, 0.2]),
        "mesa": (STEPS, [0.02, 0.01, 0.01]),
        "learning_rate": (STEPS, [1.0, 1.0, 1.0]),
    }
    draw_progress(series, tmp_path / "progress.png")
    panels = panels_of(drawn[0])
    assert list(panels) == ["dense loss", "summary loss", "MESA loss"]
    limits = panels["dense loss"].get_ylim()
    assert limits == panels["summary loss"].get_ylim() != panels["MESA loss"].get_ylim()
    assert limits[0] < 0.2 < 0.8 < limits[1] < 80
    assert panels["dense loss"].get_yscale() == "log"


def test_weights_of_teachers_are_drawn_over_time(tmp_path: Path, drawn: list[Figure]) -> None:
    series: dict[str, Curve] = {
        "features/a": (STEPS, [0.9, 0.8, 0.7]),
        "weight/features/a": (STEPS, [1.0, 1.5, 1.2]),
        "weight/features/b": (STEPS, [1.0, 0.5, 0.8]),
        "weight/summary/b": (STEPS, [1.0, 1.0, 1.0]),
    }
    draw_progress(series, tmp_path / "progress.png")
    panels = panels_of(drawn[0])
    assert list(panels) == ["dense loss", "weight of dense losses", "weight of summary losses"]
    lines = {str(line.get_label()): line for line in panels["weight of dense losses"].lines}
    assert np.asarray(lines["a"].get_ydata()).tolist() == [1.0, 1.5, 1.2]
    assert np.asarray(lines["b"].get_ydata()).tolist() == [1.0, 0.5, 0.8]
    assert lines["a"].get_color() == panels["dense loss"].lines[0].get_color() != lines["b"].get_color()


def test_losses_of_taps_have_their_teachers_color_and_a_style_for_each_block(
    tmp_path: Path, drawn: list[Figure]
) -> None:
    series: dict[str, Curve] = {
        "features/a": (STEPS, [0.9, 0.8, 0.7]),
        "features/b": (STEPS, [0.8, 0.7, 0.6]),
        "tap_features/a@5": (STEPS, [1.0, 0.9, 0.8]),
        "tap_features@32px/a@11": (STEPS, [3.0, 2.0, 1.0]),
        "tap_features@64px/a@11": (STEPS, [1.0, 1.0, 1.0]),
        "tap_summary/b@11": (STEPS, [0.5, 0.4, 0.3]),
        "weight/taps": (STEPS, [0.25, 0.25, 0.1]),
    }
    draw_progress(series, tmp_path / "progress.png")
    panels = panels_of(drawn[0])
    assert list(panels) == ["dense loss", "dense loss of taps", "summary loss of taps"]
    colors = {str(line.get_label()): line.get_color() for line in panels["dense loss"].lines}
    lines = {str(line.get_label()): line for line in panels["dense loss of taps"].lines}
    assert {name: line.get_color() for name, line in lines.items()} == {"a@5": colors["a"], "a@11": colors["a"]}
    assert lines["a@5"].get_linestyle() != lines["a@11"].get_linestyle()
    assert np.asarray(lines["a@11"].get_ydata()).tolist() == [2.0, 1.5, 1.0]
    assert [line.get_color() for line in panels["summary loss of taps"].lines] == [colors["b"]]


def test_measurements_are_drawn_by_resolution_and_teacher(tmp_path: Path, drawn: list[Figure]) -> None:
    series: dict[str, Curve] = {
        "fixed_pattern/32px": (STEPS, [0.3, 0.2, 0.1]),
        "fixed_pattern/64px": (STEPS, [0.5, 0.4, 0.3]),
        "dense_fidelity/a/32px": (STEPS, [0.1, 0.2, 0.3]),
        "dense_fidelity/b/32px": (STEPS, [0.2, 0.3, 0.4]),
        "student/fixed_pattern/64px": (STEPS, [0.6, 0.5, 0.4]),
    }
    draw_progress(series, tmp_path / "progress.png")
    panels = panels_of(drawn[0])
    assert list(panels) == ["fixed-pattern energy", "dense fidelity, cosine"]
    of_student, *others = sorted(drawn_in(panels["fixed-pattern energy"]), key=lambda line: line.get_linewidth())
    assert np.asarray(of_student.get_ydata()).tolist() == [0.6, 0.5, 0.4]
    assert sorted(np.asarray(line.get_ydata()).tolist() for line in others) == [[0.3, 0.2, 0.1], [0.5, 0.4, 0.3]]
    legend = panels["fixed-pattern energy"].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["64 px", "32 px"]


def test_a_teacher_has_one_color_and_a_size_one_style(tmp_path: Path, drawn: list[Figure]) -> None:
    series: dict[str, Curve] = {
        "features/a": (STEPS, [0.9, 0.8, 0.7]),
        "features/b": (STEPS, [0.8, 0.7, 0.6]),
        "summary/b": (STEPS, [0.5, 0.4, 0.3]),
        "dense_fidelity/a/32px": (STEPS, [0.1, 0.2, 0.3]),
        "dense_fidelity/b/32px": (STEPS, [0.2, 0.3, 0.4]),
        "dense_fidelity/b/64px": (STEPS, [0.3, 0.4, 0.5]),
    }
    draw_progress(series, tmp_path / "progress.png")
    panels = panels_of(drawn[0])
    colors = {str(line.get_label()): line.get_color() for line in panels["dense loss"].lines}
    assert [line.get_color() for line in panels["summary loss"].lines] == [colors["b"]] != [colors["a"]]
    found = {
        np.asarray(line.get_ydata()).tolist()[0]: (line.get_color(), line.get_linestyle())
        for line in drawn_in(panels["dense fidelity, cosine"])
    }
    assert found == {0.1: (colors["a"], "--"), 0.2: (colors["b"], "--"), 0.3: (colors["b"], "-")}
    assert [path.name for path in tmp_path.iterdir()] == ["progress.png"]
    with Image.open(tmp_path / "progress.png") as picture:
        assert min(picture.size) > 300


def test_a_run_without_numbers_has_no_picture(tmp_path: Path) -> None:
    draw_progress({"learning_rate": (STEPS, [1.0, 1.0, 1.0])}, tmp_path / "progress.png")
    assert list(tmp_path.iterdir()) == []
