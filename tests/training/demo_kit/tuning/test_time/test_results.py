"""The file is read as it was written, and what is none is named."""

import pytest

from training.demo_kit.tuning.raw_results import RawResultError
from training.demo_kit.tuning.test_time.results import FittedScore, LookScore, Measured, load, save


MEASURED = Measured(
    "LoRA",
    [LookScore("masks", "plain", 0, 8, {"mean_iou": 0.123456789}, 1024)],
    [FittedScore("labels", "f1", 0, 0.25, 0.5, 0.75)],
    {"command": "x"},
)


def test_a_round_trip_keeps_five_digits(tmp_path):
    assert load(tmp_path) is None
    save(tmp_path, MEASURED)
    found = load(tmp_path)
    assert found.looks[0].metrics == {"mean_iou": 0.12346}
    assert found.fitted == MEASURED.fitted
    assert [path.name for path in tmp_path.rglob("*.json")] == ["results.json"]


def test_what_is_no_result_is_named(tmp_path):
    save(tmp_path, MEASURED)
    path = tmp_path / "test_time" / "results.json"
    path.write_text('{"arm": "LoRA"}')
    with pytest.raises(RawResultError, match=r"results\.json' is no result of the test-time options: .* Delete it"):
        load(tmp_path)
