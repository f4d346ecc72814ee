import numpy as np
import pytest

from model_cards.results import Measurement
from training.figures.progress import figure_over_counts, values_by_size, values_by_tokens


def measured(model: str, metric: str, value: float, seed: int = 0, task: str = "resolution_consistency") -> Measurement:
    return Measurement(model, task, metric, "toy photographs", value, seed)


def test_values_are_sorted_by_kind_of_cosine_model_and_size() -> None:
    measurements = [
        measured("one", "64 to 128 px", 0.5, seed=0),
        measured("one", "64 to 128 px", 0.7, seed=1),
        measured("one", "96 to 128 px", 0.9, seed=0),
        measured("two", "64 to 128 px, centered", 0.2),
        measured("one", "accuracy", 1.0, task="knn"),
    ]
    assert values_by_size(measurements) == {
        "cosine": {"one": {64: [0.5, 0.7], 96: [0.9]}},
        "centered cosine": {"two": {64: [0.2]}},
    }


def test_values_by_metric_model_and_number_of_tokens() -> None:
    found = values_by_tokens(
        [
            measured("student", "1 tokens, accuracy", 0.2, task="knn_over_tokens"),
            measured("student", "16 tokens, accuracy", 0.5, task="knn_over_tokens"),
            measured("student", "16 tokens, accuracy", 0.7, task="knn_over_tokens"),
            measured("adaptor a", "2 tokens, centered features", 0.4, task="fidelity_over_tokens"),
            measured("student", "accuracy", 0.9, task="knn"),
        ]
    )
    assert found == {
        "accuracy": {"student": {1: [0.2], 16: [0.5, 0.7]}},
        "centered features": {"adaptor a": {2: [0.4]}},
    }


def test_panels_over_counts_stand_in_rows_of_four() -> None:
    panel = {"a $x_$": {1: [0.1, 0.2], 4: [0.4, 0.3]}, "b": {4: [0.4]}}
    for number, shape in ((2, (8, 3)), (4, (16, 3)), (5, (16, 6))):
        figure = figure_over_counts({str(index): panel for index in range(number)}, "steps")
        figure.draw_without_rendering()
        assert tuple(figure.get_size_inches()) == shape
        mean = figure.axes[0].lines[0]
        assert np.asarray(mean.get_ydata()).tolist() == pytest.approx([0.15, 0.35])
        assert figure.axes[0].get_legend_handles_labels()[1] == ["a $x_$", "b"]
