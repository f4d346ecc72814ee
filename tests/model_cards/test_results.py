import functools
import json
import operator
from pathlib import Path

import pytest

from core.files import write_text
from model_cards import results
from model_cards.results import Measurement, Results, Source, Table, build_tables, format_values


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


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measurements": [{"model": "a"}]}'])
def test_another_file_is_refused_by_name(tmp_path, text):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other.json is no results file"):
        Results.load(path)


def test_an_unknown_field_is_refused(tmp_path):
    RESULTS.save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    content["measurments"] = []
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="measurments"):
        Results.load(tmp_path / "results.json")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("measurements.0.value", "x", "measurements.0.value: Input should be a valid number, got 'x'"),
        ("measurements.0.value", None, "measurements.0.value: Input should be a valid number, got None"),
        ("measurements.0.value", [0.5], r"measurements.0.value: Input should be a valid number, got \[0.5\]"),
        ("measurements.0.value", True, "measurements.0.value: Input should be a valid number, got True"),
        ("measurements.0.value", float("nan"), "measurements.0.value: Input should be a finite number, got nan"),
        ("measurements.0.value", float("inf"), "measurements.0.value: Input should be a finite number, got inf"),
        ("measurements.0.metric", None, "measurements.0.metric: Input should be a valid string, got None"),
        ("measurements.0.dataset", 7, "measurements.0.dataset: Input should be a valid string, got 7"),
        ("measurements.0.task", ["knn"], "measurements.0.task: Input should be a valid string"),
        ("measurements.0.seed", [0], "measurements.0.seed: Input should be a valid integer"),
        ("measurements.0.seed", "x", "measurements.0.seed: Input should be a valid integer, got 'x'"),
        ("measurements.0", 5, r"measurements.0: .*, got 5"),
        ("teachers.0.license", None, "teachers.0.license: Input should be a valid string, got None"),
        ("run", [1], "run: Input should be an object"),
        ("run", "x", "run: Input should be an object, got 'x'"),
        ("remarks", None, "remarks: Input should be a valid array, got None"),
    ],
)
def test_values_of_other_types_are_refused_by_name(place, value, message, tmp_path):
    path = tmp_path / "results.json"
    RESULTS.save(path)
    content = json.loads(path.read_text())
    *outer, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    functools.reduce(operator.getitem, outer, content)[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"results\.json is no results file of .*: {message}") as error:
        Results.load(path)
    assert "\n" not in str(error.value)


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


def measured(*values, **interval):
    return [Measurement("student", "knn", "accuracy", "stamps", value, **interval) for value in values]


def test_several_seeds_become_mean_and_sample_deviation():
    assert format_values(measured(0.1, 0.2, 0.3)) == "0.200 +- 0.100"
    assert format_values(measured(0.12345)) == "0.123"
    assert format_values([]) == ""


def test_a_number_is_shown_with_its_interval():
    assert format_values(measured(0.5, low=0.41, high=0.6)) == "0.500 [0.410, 0.600]"
    assert format_values(measured(0.5, 0.5, low=0.41, high=0.6)) == "0.500 +- 0.000"


def test_the_schema_beside_the_module_is_that_of_the_file():
    """After a change: `json.dumps(Results.json_schema(), indent=2)` and a line feed."""
    stored = (Path(results.__file__).parent / "results.schema.json").read_text()
    assert stored == json.dumps(Results.json_schema(), indent=2) + "\n"


def test_tables_that_would_be_wide_are_divided_by_task():
    many = [Measurement("student", f"task {n % 2}", f"metric {n}", "stamps", 0.5) for n in range(10)]
    assert [len(table.columns) for table in build_tables(many)] == [5, 5]
    assert [len(table.columns) for table in build_tables(many[:8])] == [8]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


def test_table_is_aligned():
    table = Table("knn", ["accuracy"], [("raw pixels", ["0.250"]), ("student", ["0.500 +- 0.010"])])
    assert table.to_markdown().splitlines() == [
        "| knn        | accuracy       |",
        "| ---------- | -------------- |",
        "| raw pixels | 0.250          |",
        "| student    | 0.500 +- 0.010 |",
    ]


def test_names_of_models_stay_in_their_cells():
    (table,) = build_tables([Measurement("a|b\n<i>", "knn", "accuracy", "mine", 0.5)])
    assert table.to_markdown().splitlines()[2] == r"| a\|b &lt;i> | 0.500    |"


def test_a_number_that_is_not_defined_is_a_dash():
    (table,) = build_tables([Measurement("a", "probe", "mIoU", "mine", float("nan"))])
    assert table.rows == [("a", ["-"])]
