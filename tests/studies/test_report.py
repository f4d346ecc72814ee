import re
from dataclasses import replace

import pytest
import torch
from scipy import stats
from toy_studies import save_toy_results, toy_result

from modeling_radio.studies.raw_results import add_run, draw_sources, effective_sources
from modeling_radio.studies.report import (
    build_report,
    build_table,
    compare,
    draw_figure,
    holm,
    paired_difference,
)


def test_of_seeds_alone_it_is_the_paired_t_test():
    first, second = [1.0, 1.3, 0.8, 1.1], [0.7, 0.9, 0.8, 0.6]
    found = paired_difference([a - b for a, b in zip(first, second, strict=True)], None, 1)
    expected = stats.ttest_rel(first, second)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high, found.p_value) == pytest.approx((low, high, expected.pvalue))
    assert paired_difference([0.3], None, 5) is None
    assert paired_difference([0.1, 0.1], None, 5) is None, "a tie of two seeds proves nothing"


@pytest.mark.parametrize("count_all", [False, True])
def test_intervals_keep_their_level_where_few_pictures_have_most_images(count_all):
    """As in our held-out images: 14 photographs with 42 images each, and 242 pictures with one or two."""
    sizes = torch.tensor([42.0] * 14 + [1.8] * 242, dtype=torch.float64)
    draws, generator, misses, runs = draw_sources(len(sizes)), torch.Generator().manual_seed(1), 0, 1000
    shares, total = draws * sizes, draws @ sizes
    count = len(sizes) if count_all else effective_sources(sizes.tolist())
    for _ in range(runs):
        seeds, sources = (torch.randn(*shape, generator=generator).double() for shape in ((5, 1), (1, len(sizes))))
        noise = torch.randn(5, len(sizes), generator=generator).double() / sizes.sqrt()
        scores = 0.1 * seeds + sources + 0.3 * noise
        values, resampled = scores @ sizes / sizes.sum(), (shares @ scores.T / total[:, None]).T
        misses += paired_difference(values.tolist(), resampled, count).p_value < 0.01
    assert (misses / runs > 0.013) == count_all  # of pictures alone, one in a hundred is promised


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


ERRORS = {("plain", 0): 0.5, ("plain", 1): 0.6, ("adaptive", 0): 0.4, ("adaptive", 1): 0.49}
GONE = {("old", 0): 0.7, ("old", 1): 0.81}
PRIMARY = r"**dense_error/worst** (primary)"


@pytest.fixture
def results_of(load):
    def results_of(opened, errors):
        save_toy_results(opened, errors)
        return load(opened)

    return results_of


def row(table, name):
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_table_has_means_and_paired_differences(opened, results_of):
    table = build_table(opened, results_of(opened, ERRORS), [0, 1])
    assert row(table, "") == ["plain", "adaptive (against plain)"]
    assert row(table, "seeds") == ["0, 1", "0, 1"]
    plain, adaptive = row(table, PRIMARY)
    assert plain == "0.5514 +- 0.0501"
    mean, difference = adaptive.split("<br>")
    assert mean == "0.4461 +- 0.0451"
    assert re.fullmatch(r"(\*\*)?-0\.1053 \[-0\.\d{4}, [-+]0\.\d{4}\](\*\*)?, p = [\d.e-]+", difference)
    assert row(table, "knn_sets") == ["0.5000 +- 0.0000", "0.5000 +- 0.0000"]  # nothing varies: no interval


def test_only_seeds_that_both_have_are_compared(opened, results_of):
    results = results_of(opened, {**ERRORS, ("plain", 2): 9.0})
    (found,) = compare(opened, results, "dense_error/worst", [0, 1, 2])
    assert found.difference.mean == pytest.approx(-0.105 * 4.01 / 4, abs=1e-4)
    assert found.adjusted == pytest.approx(found.difference.p_value)  # a single comparison
    (other,) = compare(opened, results, "fixed_pattern", [0, 1, 2])
    assert other.adjusted is None


def test_a_single_seed_has_no_interval_and_no_figure(opened, results_of, tmp_path):
    results = results_of(opened, {("plain", 0): 0.5, ("adaptive", 0): 0.4, ("plain", 1): 0.5})
    assert row(build_table(opened, results, [0]), PRIMARY) == ["0.5012", "0.4010"]
    assert "**Not finished: 3 of 4 runs.**" in build_report(opened, results)
    draw_figure(opened._replace(study=opened.study.replace(seeds=[1])), results, tmp_path / "study.webp")
    assert not (tmp_path / "study.webp").exists()


def test_a_report_names_what_was_measured_and_other_seeds(opened, results_of):
    assert "Not run yet" in build_report(opened, None)
    text = build_report(opened, results_of(opened, ERRORS))
    images = "8 images of 3 source pictures (as much evidence as 2 of equal share) at 32 px (consistency: 32, 48 px)"
    for part in ("Does it matter?", "`, 2 steps.", images, "Primary measure: `dense_error/worst`, lower is better."):
        assert part in text
    assert "Not finished" not in text
    assert "Once more" not in text
    more = {("plain", 5): 0.5, ("plain", 6): 0.5, ("adaptive", 5): 0.55, ("adaptive", 6): 0.551}
    first, second = build_report(opened, results_of(opened, more)).split("Once more, with seeds 5, 6:")
    assert (row(first, "seeds"), row(second, "seeds")) == (["0, 1", "0, 1"], ["5, 6", "5, 6"])
    assert "+0.0506" in row(second, PRIMARY)[1]


def test_a_run_that_failed_is_named_and_left_out(opened, load):
    save_toy_results(opened, {run: error for run, error in ERRORS.items() if run != ("adaptive", 1)})
    failed = replace(toy_result(opened, "adaptive", 1, 0.0), sums={}, numbers={}, failure="Not finite (step 7).")
    add_run(opened.raw_results, failed)
    results = load(opened)
    assert row(build_table(opened, results, [0, 1]), "seeds") == ["0, 1", "0, 1 failed"]
    text = build_report(opened, results)
    assert "- adaptive, seed 1: Not finite (step 7)." in text
    assert "Not finished" not in text
    assert compare(opened, results, "dense_error/worst", [0, 1])[0].difference is None


def test_comparisons_that_are_still_to_come_count_for_holm(opened, results_of):
    third = opened.study.arms[1].replace(name="third")
    study = opened.study.replace(arms=[*opened.study.arms, third])
    more = opened._replace(study=study, recipes={**opened.recipes, "third": opened.recipes["adaptive"]})
    found, missing = compare(more, results_of(more, ERRORS), "dense_error/worst", [0, 1])
    assert found.adjusted == pytest.approx(min(1, 2 * found.difference.p_value))
    assert (missing.difference, missing.adjusted) == (None, 1)


def test_arms_whose_options_are_gone_stay_in_tables_and_in_holms_correction(opened, results_of):
    alone = compare(opened, results_of(opened, ERRORS), "dense_error/worst", [0, 1])[0]
    results = results_of(opened, {**ERRORS, **GONE})
    assert row(build_table(opened, results, [0, 1]), "")[-1] == "old (gone, against plain)"
    adaptive, old = compare(opened, results, "dense_error/worst", [0, 1])
    assert old.difference.mean == pytest.approx(0.205 * 4.01 / 4, abs=1e-3)
    assert adaptive.difference == alone.difference
    adjusted = holm([adaptive.difference.p_value, old.difference.p_value])
    assert [adaptive.adjusted, old.adjusted] == pytest.approx(adjusted)
    assert "Not finished" not in build_report(opened, results)
