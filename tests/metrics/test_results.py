"""The file of results, and its tables."""

import functools
import json
import operator
from pathlib import Path

import pytest

from modeling_radio.metrics import results
from modeling_radio.metrics.results import Measurement, Results, Source, Table, build_tables, format_values


RESULTS = Results(
    measurements=[
        Measurement("raw pixels", "knn", "accuracy", "stamps", 0.25),
        Measurement("student", "knn", "accuracy", "stamps", 0.5, seed=0),
        Measurement("student", "knn", "accuracy", "stamps", 0.75, seed=1),
        Measurement("student", "segmentation_probe", "mIoU", "scenes", 0.3),
    ],
    teachers=[Source("a", "teacher", "MIT", "a package")],
    datasets=[Source("stamps", "test", "GPL-2.0-or-later", "another package", "99 images")],
    run={"seconds": {"train": 1.5}},
    remarks=["small"],
)


def test_results_survive_the_file(tmp_path):
    RESULTS.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == RESULTS
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_tables_have_models_as_rows_and_leave_gaps_empty():
    (table,) = build_tables(
        [
            Measurement("raw pixels", "knn", "accuracy", "stamps", 0.25),
            Measurement("student", "knn", "accuracy", "stamps", 0.5, seed=0),
            Measurement("student", "knn", "accuracy", "stamps", 0.75, seed=1),
            Measurement("student", "knn", "recall", "stamps", 0.3),
        ]
    )
    assert (table.title, table.columns) == ("knn", ["accuracy", "recall"])
    assert table.rows == [("raw pixels", ["0.250", ""]), ("student", ["0.625 +- 0.177", "0.300"])]


def test_tasks_measured_on_other_models_get_a_table_of_their_own():
    tables = build_tables(
        [
            *(Measurement(model, "knn", "accuracy", "a", 0.5) for model in ("pixels", "student")),
            Measurement("adaptor", "fidelity", "features", "b", 0.6),
            *(Measurement(model, "probe", "mIoU", "c", 0.7) for model in ("student", "pixels")),
        ]
    )
    assert [table.columns for table in tables] == [["knn accuracy", "probe mIoU"], ["features"]]
    assert [table.title for table in tables] == ["", "fidelity"]
    assert [model for model, _ in tables[0].rows] == ["pixels", "student"]


def test_the_schema_beside_the_module_is_that_of_the_file():
    """After a change: `json.dumps(Results.json_schema(), indent=2)` and a line feed."""
    stored = (Path(results.__file__).parent / "results.schema.json").read_text()
    assert stored == json.dumps(Results.json_schema(), indent=2) + "\n"


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("measurements.0.value", "x"),
        ("measurements.0.value", True),
        ("measurements.0.value", float("nan")),
        ("measurements.0.value", float("inf")),
        ("measurements.0.metric", None),
        ("measurements.0.seed", "0"),
        ("measurements.0", 5),
        ("teachers.0.license", None),
        ("run", [1]),
        ("remarks", None),
        ("measurments", []),
    ],
)
def test_values_of_other_types_and_unknown_fields_are_refused_by_name(place, value, tmp_path):
    path = tmp_path / "results.json"
    RESULTS.save(path)
    content = json.loads(path.read_text())
    *outer, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    functools.reduce(operator.getitem, outer, content)[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"results\.json .*: {place}: ") as error:
        Results.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_another_file_is_refused_by_name(tmp_path, text):
    if text is not None:
        (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json"):
        Results.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("values", "interval", "text"),
    [
        ([0.1, 0.2, 0.3], {}, "0.200 +- 0.100"),
        ([0.12345], {}, "0.123"),
        ([], {}, ""),
        ([0.5], {"low": 0.41, "high": 0.6}, "0.500 [0.410, 0.600]"),
        ([0.5, 0.5], {"low": 0.41, "high": 0.6}, "0.500 +- 0.000"),
        ([float("nan")], {}, "-"),
    ],
)
def test_numbers_in_words(values, interval, text):
    assert format_values([Measurement("a", "knn", "accuracy", "b", value, **interval) for value in values]) == text


def test_a_table_is_aligned_and_names_stay_in_their_cells():
    table = Table("knn", ["accuracy"], [("a|b\n<i>", ["0.250"]), ("student", ["0.500 +- 0.010"])])
    assert table.to_markdown().splitlines() == [
        "| knn         | accuracy       |",
        "| ----------- | -------------- |",
        r"| a\|b &lt;i> | 0.250          |",
        "| student     | 0.500 +- 0.010 |",
    ]


def test_wide_tables_fit_a_terminal():
    cells = [f"0.{number}00 [0.100, 0.900]" for number in range(5)]
    table = Table("", [f"task{number} accuracy, mean features" for number in range(5)], [("teacher " * 4, cells)])
    text = table.to_text()
    assert max(map(len, text.splitlines())) <= 80
    assert all(text.count(f"0.{number}00\n") or text.count(f"0.{number}00 ") for number in range(5))
    assert text.count("[0.100, 0.900]") == 5
