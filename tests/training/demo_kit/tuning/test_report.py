"""The page is what the raw results say."""

from dataclasses import replace

from training.demo_kit.tuning.raw_results import TuningResult, save_result
from training.demo_kit.tuning.report import build_report


def save(folder, task, arm, seed, accuracy):
    result = TuningResult(
        task, arm, seed, {}, {}, {"f1": 0.5, "accuracy": accuracy}, {"accuracy": 0.95}, 50, 1000, 3.2, 512.4
    )
    save_result(folder, result)
    return result


def row_of(report, name):
    (line,) = [line for line in report.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_has_means_deviations_and_the_difference_to_the_head(tmp_path, shades):
    for seed, accuracy in ((0, 0.5), (1, 0.7)):
        save(tmp_path, shades, "head", seed, accuracy)
    for seed, accuracy in ((0, 0.6), (1, 0.9), (2, 0.9)):
        save(tmp_path, shades, "LoRA", seed, accuracy)
    report = build_report(tmp_path)
    costs, scores = ["50", "5.0%", "3", "512", ""], ["0.600 +- 0.141", "0.950 +- 0.000", "0.500 +- 0.000"]
    assert row_of(report, "head") == ["head", "0, 1", *costs, *scores]
    assert row_of(report, "LoRA")[:2] == ["LoRA", "0, 1, 2"]
    assert row_of(report, "LoRA")[6:8] == ["+0.150 +- 0.050", "0.800 +- 0.173"]
    assert row_of(report, "DoRA") == ["DoRA", "adapters with magnitudes"]  # not run yet
    assert "**Conclusions.** Not drawn yet." in report


def test_conclusions_are_by_hand(tmp_path, shades):
    (tmp_path / shades).mkdir()
    (tmp_path / shades / "conclusions.md").write_text("LoRA wins.\n")
    assert "**Conclusions.** LoRA wins." in build_report(tmp_path)


def test_other_metrics_of_a_task_are_shown_where_they_are_known(tmp_path, shades):
    first = save(tmp_path, shades, "head", 0, 0.5)
    save_result(tmp_path, replace(first, arm="LoRA", metrics={"accuracy": 0.6}, training_metrics={}))
    assert row_of(build_report(tmp_path), "LoRA")[7:] == ["0.600", "-", "-"]
