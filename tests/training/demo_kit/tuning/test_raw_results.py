"""Raw results are read as they were written, and what is none is named."""

import pytest

from training.demo_kit.tuning.raw_results import RawResultError, TuningResult, load_result, result_path, save_result


def result(**fields):
    given = {"experiment": "task", "arm": "LoRA, 1e-4", "seed": 3, "student": {}, "settings": {"steps": 2}}
    numbers = {"trainable_parameters": 5, "parameters": 9, "seconds": 1.0, "peak_memory_mb": 2.0}
    metrics = {"metrics": {"accuracy": 0.123456789}, "training_metrics": {}}
    return TuningResult(**{**given, **numbers, **metrics, **fields})


def test_a_result_has_its_name_and_few_digits(tmp_path):
    save_result(tmp_path, result())
    path = tmp_path / "task" / "lora-1e-4.seed-3.json"
    assert path == result_path(tmp_path, "task", "LoRA, 1e-4", 3)
    assert load_result(path).metrics == {"accuracy": 0.12346}


def test_what_is_no_result_is_named(tmp_path):
    save_result(tmp_path, result())
    path = tmp_path / "task" / "lora-1e-4.seed-3.json"
    path.rename(path.with_name("head.seed-3.json"))
    with pytest.raises(RawResultError, match=r"head\.seed-3\.json' is of 'LoRA, 1e-4', seed 3. Give it back its name"):
        load_result(path.with_name("head.seed-3.json"))
    path.write_text('{"arm": "x"}')
    with pytest.raises(RawResultError, match=r"is no raw result of tuning: .* Delete it"):
        load_result(path)
