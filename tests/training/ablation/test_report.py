import re
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from PIL import Image
from toy_studies import save_toy_results, toy_result

from training.studies.raw_results import StudyResults, add_run, load_results
from training.studies.report import Compared, _shown, build_report, build_table, compare, draw_figure
from training.studies.study import Comparison, Difference, OpenedStudy, holm


ERRORS = {("plain", 0): 0.5, ("plain", 1): 0.6, ("dropping", 0): 0.4, ("dropping", 1): 0.49}


def results_of(opened: OpenedStudy, errors: dict[tuple[str, int], float]) -> StudyResults:
    save_toy_results(opened, errors)
    results = load_results(opened)
    assert results is not None
    return results


def row(table: str, name: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_table_has_means_and_paired_differences(opened: OpenedStudy) -> None:
    table = build_table(opened, results_of(opened, ERRORS), [0, 1])
    assert row(table, "") == ["plain", "dropping (against plain)"]
    assert row(table, "seeds") == ["0, 1", "0, 1"]
    plain, dropping = row(table, r"**dense_error/worst** (primary)")
    assert plain == "0.5514 +- 0.0501"
    mean, difference = dropping.split("<br>")
    assert mean == "0.4461 +- 0.0451"
    assert re.fullmatch(r"(\*\*)?-0\.1053 \[-0\.\d{4}, [-+]0\.\d{4}\](\*\*)?, p = [\d.e-]+", difference)
    assert row(table, "knn_sets") == ["0.5000 +- 0.0000", "0.5000 +- 0.0000"]  # nothing varies: no interval


def test_only_seeds_that_both_have_are_compared(opened: OpenedStudy) -> None:
    results = results_of(opened, {**ERRORS, ("plain", 2): 9.0})
    (found,) = compare(opened, results, "dense_error/worst", [0, 1, 2])
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(-0.105 * 4.01 / 4, abs=1e-4)
    assert found.adjusted == pytest.approx(found.difference.p_value)  # a single comparison
    (other,) = compare(opened, results, "fixed_pattern", [0, 1, 2])
    assert other.adjusted is None


def test_a_single_seed_has_no_interval(opened: OpenedStudy) -> None:
    results = results_of(opened, {("plain", 0): 0.5, ("dropping", 0): 0.4})
    table = build_table(opened, results, [0, 1])
    assert row(table, r"**dense_error/worst** (primary)") == ["0.5012", "0.4010"]
    assert "**Not finished: 2 of 4 runs.**" in build_report(opened, results)


def test_a_report_has_all_that_one_must_know(opened: OpenedStudy) -> None:
    text = build_report(opened, results_of(opened, ERRORS))
    for part in (
        "Does it matter?",
        "schedule.num_steps=2 schedule.warmup_steps=1`, 2 steps.",
        "8 images of 3 source pictures (as much evidence as 2 of equal share) at 32 px (consistency: 32, 48 px)",
        "Primary measure: `dense_error/worst`, lower is better.",
    ):
        assert part in text
    assert "Not finished" not in text
    assert "Once more" not in text


def test_other_seeds_have_a_table_of_their_own(opened: OpenedStudy) -> None:
    more = {("plain", 5): 0.5, ("plain", 6): 0.5, ("dropping", 5): 0.55, ("dropping", 6): 0.551}
    text = build_report(opened, results_of(opened, {**ERRORS, **more}))
    first, second = text.split("Once more, with seeds 5, 6:")
    assert row(first, "seeds") == ["0, 1", "0, 1"]
    assert row(second, "seeds") == ["5, 6", "5, 6"]
    assert "+0.0506" in row(second, r"**dense_error/worst** (primary)")[1]


def test_a_run_that_failed_is_told_and_left_out(opened: OpenedStudy) -> None:
    save_toy_results(opened, {run: error for run, error in ERRORS.items() if run != ("dropping", 1)})
    failed = replace(toy_result(opened, "dropping", 1, 0.0), sums={}, numbers={}, failure="Not finite (step 7).")
    add_run(opened.raw_results, failed)
    results = load_results(opened)
    assert results is not None
    assert row(build_table(opened, results, [0, 1]), "seeds") == ["0, 1", "0, 1 failed"]
    text = build_report(opened, results)
    assert "- dropping, seed 1: Not finite (step 7)." in text
    assert "Not finished" not in text
    assert compare(opened, results, "dense_error/worst", [0, 1])[0].difference is None


def test_comparisons_that_are_still_to_come_count_for_holm(opened: OpenedStudy) -> None:
    third = opened.study.arms[1].replace(name="third")
    study = opened.study.replace(arms=[*opened.study.arms, third])
    more = opened._replace(study=study, recipes={**opened.recipes, "third": opened.recipes["dropping"]})
    found, missing = compare(more, results_of(more, ERRORS), "dense_error/worst", [0, 1])
    assert found.difference is not None
    assert found.adjusted == pytest.approx(min(1, 2 * found.difference.p_value))
    assert (missing.difference, missing.adjusted) == (None, 1)


@pytest.mark.parametrize(("p_value", "shown"), [(1e-6, "p < .001"), (0.001, "p = 0.001"), (0.0448, "p = 0.045")])
def test_small_p_values_are_shown_as_below(p_value: float, shown: str) -> None:
    compared = Compared(Comparison("arm", "base"), Difference(0.1, 0.05, 0.15, p_value), p_value)
    assert _shown(compared) == f"**+0.1000 [+0.0500, +0.1500]**, {shown}"


def test_a_study_that_was_not_run_says_so(opened: OpenedStudy) -> None:
    assert build_report(opened, None) == "Does it matter?\n\nNot run yet. Primary measure: `dense_error/worst`."


GONE = {("old", 0): 0.7, ("old", 1): 0.81}


def test_arms_whose_options_are_gone_stay_in_tables_and_in_holms_correction(opened: OpenedStudy) -> None:
    alone = compare(opened, results_of(opened, ERRORS), "dense_error/worst", [0, 1])[0]
    results = results_of(opened, {**ERRORS, **GONE})
    assert row(build_table(opened, results, [0, 1]), "")[-1] == "old (gone, against plain)"
    dropping, old = compare(opened, results, "dense_error/worst", [0, 1])
    assert old.difference is not None
    assert old.difference.mean == pytest.approx(0.205 * 4.01 / 4, abs=1e-3)
    assert dropping.difference == alone.difference
    assert dropping.difference is not None
    adjusted = holm([dropping.difference.p_value, old.difference.p_value])
    assert [dropping.adjusted, old.adjusted] == pytest.approx(adjusted)
    assert "Not finished" not in build_report(opened, results)


def test_the_figure_has_a_panel_for_the_primary_measure_first(
    opened: OpenedStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles, labels, drawn = [], [], []
    monkeypatch.setattr(Axes, "set_title", lambda self, text, **how: titles.append(text))
    monkeypatch.setattr(Axes, "scatter", lambda self, x, y, **how: drawn.append(list(x)))
    monkeypatch.setattr(Axes, "set_yticks", lambda self, ticks, names: labels.append(names))
    draw_figure(opened, results_of(opened, {**ERRORS, **GONE}), tmp_path / "study.webp")
    assert titles == [
        "dense_error/worst (lower is better)",
        "fixed_pattern (lower is better)",
        "consistency (higher is better)",
    ]
    assert labels[0] == ["dropping - plain", "old - plain"]
    assert drawn[0] == pytest.approx([-0.1, -0.11], rel=0.01)
    with Image.open(tmp_path / "study.webp") as picture:
        assert picture.format == "WEBP"


def test_nothing_is_drawn_without_a_pair(opened: OpenedStudy, tmp_path: Path) -> None:
    draw_figure(opened, results_of(opened, {("plain", 0): 0.5, ("dropping", 1): 0.4}), tmp_path / "study.webp")
    assert not (tmp_path / "study.webp").exists()
