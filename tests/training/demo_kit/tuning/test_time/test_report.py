"""The section is what the file says."""

from training.demo_kit.tuning.report import build_report
from training.demo_kit.tuning.test_time.report import build_section, fitted_table, look_table
from training.demo_kit.tuning.test_time.results import FittedScore, LookScore, Measured, save


LOOKS = [
    LookScore("boxes", look, seed, 4, {"map": value, "map_small": value / 2}, pixels)
    for look, pixels, values in (("shrunk", 100, (0.1, 0.3)), ("tiles", 1000, (0.4, 0.8)))
    for seed, value in enumerate(values)
]
FITTED = [FittedScore("labels", "f1", seed, 0.2, 0.3 + seed / 10, 0.6) for seed in (0, 1)]


def cells(table, row):
    return [cell.strip() for cell in table.splitlines()[2 + row].strip("|").split("|")]


def test_rows_have_differences_to_the_first_of_their_images():
    table = look_table([*LOOKS, LookScore("masks", "plain", 0, 8, {"mean_iou": 0.5}, 50)])
    assert cells(table, 0) == ["boxes: map", "shrunk", "0.200 +- 0.141", "", "0.100 +- 0.071", "1"]
    assert cells(table, 1) == ["boxes: map", "tiles", "0.600 +- 0.283", "+0.400 +- 0.100", "0.300 +- 0.141", "10"]
    assert cells(table, 2) == ["masks: mean_iou", "plain", "0.500", "", "", "1"]


def test_what_is_fitted_is_compared_on_the_other_half():
    expected = ["labels: f1", "0.200 +- 0.000", "0.350 +- 0.071", "+0.150 +- 0.050", "0.600 +- 0.000"]
    assert cells(fitted_table(FITTED), 0) == expected


def test_the_page_has_the_section_with_conclusions_by_hand(tmp_path, shades):
    assert build_report(tmp_path).endswith("## Test-time options\n\nNot measured yet.\n")
    save(tmp_path, Measured("LoRA", LOOKS, FITTED, {}))
    assert "**Conclusions.** Not drawn yet." in build_section(tmp_path, "conclusions.md")
    (tmp_path / "test_time" / "conclusions.md").write_text("Tiles win.\n")
    report = build_report(tmp_path)
    assert report.endswith("**Conclusions.** Tiles win.\n")
    assert "models of LoRA, seeds 0, 1, on the same" in report
    assert look_table(LOOKS) in report
    assert fitted_table(FITTED) in report
    assert report.count("\n## ") == 2  # the folder is no task of its own
