import pytest
from toy_studies import save_toy_results

from training.ablation import lengths
from training.ablation.lengths import draw_study_lengths
from training.ablation.report import load_results
from training.ablation.study import OpenedStudy


def test_arms_that_name_their_steps_are_a_curve(opened: OpenedStudy, monkeypatch) -> None:
    drawn: list[dict] = []
    monkeypatch.setattr(lengths, "draw_over_counts", lambda panels, path, counted: drawn.append(panels))
    errors = {("plain", 0): 0.5, ("plain", 1): 0.6, ("dropping", 0): 0.4}
    save_toy_results(opened, errors)
    results = load_results(opened)
    draw_study_lengths(opened, results)
    assert drawn == []  # no arm says how long it is

    def renamed(lengths_by_arm: dict[str, int]) -> OpenedStudy:
        recipe = opened.recipes["plain"]
        schedule = recipe.schedule
        return opened._replace(
            recipes={
                arm: recipe.replace(schedule=schedule.replace(num_steps=steps, warmup_steps=1))
                for arm, steps in lengths_by_arm.items()
            }
        )

    for (arm, seed), run in list(results.runs.items()):
        results.runs[{"plain": "plain_10", "dropping": "plain_40"}[arm], seed] = run
    draw_study_lengths(renamed({"plain_10": 10, "plain_40": 41, "plain_80": 80}), results)
    assert drawn == []  # a name that is not the number of steps, and an arm without runs
    draw_study_lengths(renamed({"plain_10": 10, "plain_40": 40, "plain_80": 80}), results)
    (panels,) = drawn
    curve = panels[f"{opened.study.primary} (lower is better)"]["plain"]
    assert {steps: len(values) for steps, values in curve.items()} == {10: 2, 40: 1}
    assert [*curve[10], *curve[40]] == pytest.approx([0.5, 0.6, 0.4], rel=1e-2)
