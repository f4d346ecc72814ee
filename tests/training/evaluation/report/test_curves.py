from model_cards.results import Measurement
from training.evaluation.report.curves import HEIGHT, LEFT, RIGHT, TOP, WIDTH, resolution_charts


def measurement(model, size, value, suffix="", seed=None):
    return Measurement(model, "resolution_consistency", f"{size} to 512 px{suffix}", "mine", value, seed)


def test_points_lie_where_sizes_and_values_say():
    measured = [
        measurement("a", 128, 0.0),
        measurement("a", 256, 1.0),
        measurement("b", 128, 0.4),
        measurement("b", 256, 0.6),
    ]
    (chart,) = resolution_charts(measured)
    first, second = chart.lines
    assert (first.name, first.color, second.name, second.color) == ("a", 0, "b", 1)
    (x_small, y_zero), (x_large, y_one) = first.points
    assert (x_small, x_large, y_one) == (LEFT, WIDTH - RIGHT, TOP)
    assert y_one < second.points[1][1] < second.points[0][1] < y_zero < HEIGHT
    assert [label for _, label in chart.x_ticks] == ["128", "256"]
    assert [label for _, label in chart.y_ticks] == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_seeds_become_a_mean_and_negative_values_have_room():
    measured = [measurement("a", 128, -0.5, ", centered", 0), measurement("a", 128, 0.1, ", centered", 1)]
    (chart,) = resolution_charts(measured)
    assert chart.title == "Centered cosine"
    assert chart.lines[0].values == "128 px -0.200"
    assert all(TOP <= y <= HEIGHT for y, _ in chart.y_ticks)


def test_other_tasks_have_no_chart():
    assert resolution_charts([Measurement("a", "knn", "accuracy", "mine", 0.5)]) == []
