"""The table of a paper: what is there is measured, what is missing is named."""

import re

import pytest

from modeling_radio.core.settings import SettingsError
from modeling_radio.evaluation import run
from modeling_radio.evaluation.evaluate import main
from modeling_radio.evaluation.published import published_tables
from modeling_radio.evaluation.settings import PRESETS, TABLES, EvaluationSettings
from modeling_radio.evaluation.tasks.registry import TASKS
from modeling_radio.metrics.results import STUDENT, Measurement, Results


@pytest.fixture
def small_presets(monkeypatch) -> None:
    """Make the presets of the table fit a tiny model, without changing what they read."""
    for name in ("voc", "spair"):
        monkeypatch.setitem(PRESETS, name, PRESETS[name] | {"size": 32} | ({"probe_steps": 2} if name == "voc" else {}))
    monkeypatch.setitem(PRESETS, "voc", PRESETS["voc"] | {"window_px": 32})


def arguments(text_folder, tmp_path, *more: str) -> list[str]:
    words = [
        str(text_folder),
        "--table",
        "c-radio_v4",
        "--data-root",
        str(tmp_path),
        "--cache",
        str(tmp_path / "cache"),
    ]
    return [*words, "--no-report", *more]


def test_rows_name_presets_and_tasks():
    assert set(TABLES) == set(published_tables())
    for table in published_tables().values():
        for row in table.rows:
            assert row.preset in PRESETS
            assert row.task in TASKS
            assert len(row.values) > 1


def test_sets_that_are_there_stand_beside_the_paper(
    text_folder, build_public_set, spair_folder, small_presets, tmp_path, capsys
):
    (build_public_set("voc") / "SegmentationClass" / "b.png").unlink()  # half present
    assert main(arguments(text_folder, spair_folder.parent, "--output", str(tmp_path / "out" / "table.json"))) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| SPair-71k, PCK@0\.10 +\| \d+\.\d\d +\| 60\.01 +\| 60\.57 ", printed)
    assert re.search(r"\| VOC, linear probe +\| - +\| 87\.22 ", printed)
    assert "- VOC, linear probe: `data` must have all files of Pascal VOC 2012" in printed
    assert re.search(
        r"- NAVI, 3D recall: \S+navi_v1 is missing; NAVI comes from https://github.com/google/navi", printed
    )
    assert re.search(r"- SA-Co/Gold, cgF1 of SAM3 on RADIO: \S+SACo-Gold is missing", printed)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.spair.json"]


def test_model_and_sets_are_opened_once(text_folder, tmp_path, monkeypatch, capsys):
    opened, measured = [], []

    def measure(settings, model):
        measured.append((settings.preset, settings.size, settings.tasks))
        if settings.preset == "imagenet-1k" and "zero_shot" in settings.tasks:
            raise ValueError("`zero_shot` needs a text tower")
        names = {"knn": "accuracy", "depth_dpt_probe": "delta1", "normals_dpt_probe": "within 11.25 degrees"}
        values = [
            Measurement(STUDENT, task, names.get(task, "mIoU"), "set", 0.5, None, None, None) for task in settings.tasks
        ]
        return Results(values, [], [], {}, []), []

    original = run.RadioFeatures.open
    spied = lambda *given, **more: opened.append(given) or original(*given, **more)  # noqa: E731
    monkeypatch.setattr(run.RadioFeatures, "open", spied)
    monkeypatch.setattr(run, "run_evaluations", measure)
    for name in ("imagenet-1k", "ADEChallengeData2016", "nyu"):
        (tmp_path / name).mkdir()
    assert main(arguments(text_folder, tmp_path)) == 0
    assert len(opened) == 1
    assert measured == [
        ("imagenet-1k", None, ["zero_shot", "knn"]),
        ("imagenet-1k", None, ["zero_shot"]),
        ("imagenet-1k", None, ["knn"]),
        ("ade20k", 512, ["segmentation_probe"]),
        ("ade20k", 1024, ["segmentation_probe"]),
        ("ade20k", 1536, ["segmentation_probe"]),
        ("nyu", 480, ["depth_dpt_probe", "normals_dpt_probe"]),
    ]
    printed = capsys.readouterr().out
    assert re.search(r"\| ImageNet-1k, zero-shot +\| - +\|", printed)
    assert re.search(r"\| ImageNet-1k, kNN +\| 50\.00 \|", printed)


def test_nothing_to_measure_is_one_line(text_folder, tmp_path, capsys):
    assert main(arguments(text_folder, tmp_path)) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("radio evaluate: error: `data_root`")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("data_root", {"data_root": "sets"}),
        ("data_root", {"table": "c-radio_v4"}),
        ("table", {"table": "c-radio_v4", "data_root": "sets", "size": 64}),
        ("table", {"table": "c-radio_v4", "data_root": "sets", "preset": "voc"}),
    ],
)
def test_a_table_has_its_own_settings(field, options):
    with pytest.raises(SettingsError, match=f"`{field}`"):
        EvaluationSettings(checkpoint="x", **options)
