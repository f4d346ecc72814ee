import importlib
from types import SimpleNamespace

import pytest

from modeling_radio.demo import run as demo
from modeling_radio.metrics.results import STUDENT, Results


command = importlib.import_module("modeling_radio.demo.__main__")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "dmo"], "Did you mean 'demo'?"),
        (["schedule.num_step=3"], "Did you mean 'num_steps'?"),
        (["student.config.hiden_size=3"], "Did you mean 'hidden_size'?"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "reachable_teachers", lambda recipe: recipe.teachers)
    teacher = SimpleNamespace(summary_dim=4, feature_dim=4)
    monkeypatch.setattr(
        "modeling_radio.evaluation.students.build_teachers",
        lambda entries, _: {entry.name: teacher for entry in entries},
    )
    assert command.main(["--output", str(tmp_path / "demo"), *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("radio demo: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.packages
def test_the_whole_demo_in_small(tmp_path, capsys):
    output = tmp_path / "demo"
    cache = f"views.cache_dir={tmp_path / 'cache'}"
    small = ["data.num_images=64", "standardization.calibration_steps=1", "logging.every_steps=1", cache]
    assert command.main(["--output", str(output), "--seeds", "0,1", "--steps", "3", *small]) == 0
    results = Results.load(output / "results.json")
    assert {found.seed for found in results.measurements if found.model == STUDENT} == {0, 1}
    for seed in (0, 1):
        folder = output / f"seed-{seed}"
        assert {"features.png", "history.jsonl", "recipe.yaml"} <= {path.name for path in folder.iterdir()}
        assert (folder / "pictures" / "progress.png").is_file()
        assert "One training seed." in (folder / "final" / "README.md").read_text(encoding="utf-8")
    assert (output / "index.html").is_file()
    assert STUDENT in capsys.readouterr().out
