import re
from dataclasses import replace

import pytest
from toy_studies import save_toy_results

from training.ablation.raw_results import RunResult, StudyResults, load_raw, save_raw
from training.ablation.report import build_report, build_section, build_table, compare, load_results
from training.ablation.study import OpenedStudy


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
    assert row(table, "knn") == ["0.5000 +- 0.0000", "0.5000 +- 0.0000"]  # nothing varies: no interval


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
    assert "**Not finished: 2 of 4 runs.**" in build_section(opened, results)


def test_a_section_has_all_that_one_must_know(opened: OpenedStudy) -> None:
    results = results_of(opened, ERRORS)
    (opened.folder / "conclusions.md").write_text("It did not help.\n")
    text = build_section(opened, results)
    for part in (
        "Does it matter?",
        "2 steps of 4 images",
        "(11 images)",
        "`semantic`, `segmenter`",
        "8 images of 3 source pictures (as much evidence as 2 of equal share) at 32 px",
        "Primary measure: `dense_error/worst`, lower is better.",
        "**Conclusions.** It did not help.",
    ):
        assert part in text
    assert "Not finished" not in text
    assert "Once more" not in text


def test_other_seeds_are_set_beside_the_first_ones(opened: OpenedStudy) -> None:
    errors = {("plain", 0): 0.5, ("plain", 1): 0.5002, ("dropping", 0): 0.4, ("dropping", 1): 0.4001}
    more = {("plain", 5): 0.5, ("plain", 6): 0.5, ("dropping", 5): 0.55, ("dropping", 6): 0.551}
    text = build_section(opened, results_of(opened, {**errors, **more}))
    assert "Once more, with seeds 5, 6:" in text
    assert "- `dense_error/worst`, dropping: -0.1003, then +0.0506: other sign" in text


def test_other_seeds_of_which_there_is_one_prove_nothing(opened: OpenedStudy) -> None:
    errors = {("plain", 0): 0.5, ("plain", 1): 0.5002, ("dropping", 0): 0.4, ("dropping", 1): 0.4001}
    text = build_section(opened, results_of(opened, {**errors, ("plain", 5): 0.5, ("dropping", 5): 0.55}))
    assert "- `dense_error/worst`, dropping: -0.1003, not repeated with two seeds yet" in text
    none = {("plain", 0): 0.5, ("plain", 1): 0.6, ("dropping", 0): 0.6, ("dropping", 1): 0.5}
    again = {(arm, seed + 5): error for (arm, seed), error in none.items()}
    (opened.folder / "held_out.json").unlink()
    assert "- nothing excluded zero" in build_section(opened, results_of(opened, {**none, **again}))


def test_a_run_that_failed_is_told_and_left_out(opened: OpenedStudy) -> None:
    results_of(opened, ERRORS)
    path = opened.folder / "dropping.seed-1.json"
    save_raw(path, replace(load_raw(path, RunResult), sums={}, numbers={}, failure="Not finite (step 7)."))
    results = load_results(opened)
    assert results is not None
    assert row(build_table(opened, results, [0, 1]), "seeds") == ["0, 1", "0, 1 failed"]
    text = build_section(opened, results)
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


def test_a_report_has_a_section_for_each_study(opened: OpenedStudy) -> None:
    text = build_report([("first", build_section(opened, None)), ("second", "said")])
    assert "## first\n\nDoes it matter?\n\nNot run yet. Primary measure: `dense_error/worst`." in text
    assert "## second\n\nsaid" in text
    assert "python -m training.ablate first second --no-train" in text


def test_without_results_there_is_nothing_to_load(opened: OpenedStudy) -> None:
    assert load_results(opened) is None
