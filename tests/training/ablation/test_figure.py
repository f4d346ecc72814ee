import pytest
from toy_studies import save_toy_results

from training.ablation import figure
from training.ablation.figure import draw_study
from training.ablation.report import load_results
from training.ablation.study import OpenedStudy
from training.pictures.differences import Line


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, list[Line]]]:
    """The panels that are drawn."""
    panels: list[dict[str, list[Line]]] = []
    monkeypatch.setattr(figure, "draw_differences", lambda given, path: panels.append(given))
    return panels


def test_the_primary_measure_comes_first(opened: OpenedStudy, drawn: list[dict[str, list[Line]]]) -> None:
    errors = {("plain", 0): 0.5, ("plain", 1): 0.6, ("dropping", 0): 0.4, ("dropping", 1): 0.49}
    save_toy_results(opened, errors)
    results = load_results(opened)
    assert results is not None
    draw_study(opened, results)
    (panels,) = drawn
    assert list(panels) == [
        "dense_error/worst (lower is better)",
        "fixed_pattern (lower is better)",
        "consistency (higher is better)",
    ]
    (line,) = panels["dense_error/worst (lower is better)"]
    assert line.label == "dropping - plain"
    assert line.dots == pytest.approx([-0.1, -0.11], rel=0.01)
    assert line.interval is not None
    assert line.interval[1] < line.interval[0] < line.interval[2]


def test_nothing_is_drawn_without_a_pair(opened: OpenedStudy, drawn: list[dict[str, list[Line]]]) -> None:
    save_toy_results(opened, {("plain", 0): 0.5, ("dropping", 1): 0.4})
    results = load_results(opened)
    assert results is not None
    draw_study(opened, results)
    assert drawn == []
