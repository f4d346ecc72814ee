from pathlib import Path

from PIL import Image

from model_cards.results import Measurement
from training.pictures.curves import draw_over_counts, mean_curve, values_by_size


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


def test_the_mean_of_curves_is_that_of_each_step() -> None:
    assert mean_curve([([0, 1], [1.0, 2.0]), ([0, 1], [3.0, 4.0])]) == ([0, 1], [2.0, 3.0])


def test_panels_over_counts_stand_in_rows_of_four(tmp_path: Path) -> None:
    panel = {"a": {1: [0.1, 0.2], 4: [0.4, 0.3]}, "b": {4: [0.4]}}
    heights = []
    for number in (2, 4, 5):
        draw_over_counts({str(index): panel for index in range(number)}, tmp_path / "counts.png", "steps")
        with Image.open(tmp_path / "counts.png") as picture:
            assert picture.width == picture.height * min(number, 4) * 4 / (3 * -(-number // 4))
            heights.append(picture.height)
    assert heights[0] == heights[1] == heights[2] / 2
