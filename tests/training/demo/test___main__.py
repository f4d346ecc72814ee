import importlib
from types import SimpleNamespace

import pytest

from modeling_radio.model_cards.results import STUDENT, Results
from modeling_radio.training.demo import run as demo
from modeling_radio.training.evaluation.settings import TaskSettings


command = importlib.import_module("modeling_radio.training.demo.__main__")


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
        "modeling_radio.training.evaluation.students.build_teachers",
        lambda entries, _: {entry.name: teacher for entry in entries},
    )
    assert command.main(["--output", str(tmp_path / "demo"), *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("radio demo: error: ")
    assert errors.count("\n") == 1
    assert message in errors
    assert not (tmp_path / "demo").exists()


def test_cards_know_whether_the_time_is_that_of_several_seeds(tmp_path, monkeypatch):
    asked, cards = [], {}
    data = SimpleNamespace(
        sources=lambda is_trained_on: asked.append(is_trained_on) or [], remarks=lambda neighbors: [f"k = {neighbors}"]
    )
    evaluation = SimpleNamespace(teachers=[], recipe=None, patch_size=16, size_px=64, data=data)
    evaluation.settings, evaluation.of = TaskSettings(neighbors=7), lambda model: model
    evaluation.measure_backbone = lambda one: []
    evaluation.untrained_student = lambda seed: SimpleNamespace(config=None)

    def run_seed(evaluation, folder, seed, clock):
        folder.mkdir(exist_ok=True)
        (folder / demo.PICTURE).write_bytes(b"drawn")
        return []

    monkeypatch.setattr(demo, "StudentEvaluation", SimpleNamespace(load=lambda recipe: evaluation))
    monkeypatch.setattr(demo, "reachable_teachers", lambda recipe: recipe.teachers)
    monkeypatch.setattr(demo, "teacher_sources", lambda config, recipe: [])
    monkeypatch.setattr(demo, "run_seed", run_seed)
    monkeypatch.setattr(demo, "write_card", lambda folder, found, name: cards.update({folder.parent.name: found}))
    monkeypatch.setattr(demo, "write_closing_page", lambda *arguments, **options: None)
    recipe = command.DemoSettings().load_recipe()
    results = demo.run_demo(recipe, tmp_path, [3], "")
    assert (results.run["seeds"], results.remarks, asked) == ([3], ["k = 7"], [True])
    demo.run_demo(recipe, tmp_path, [0, 1], "")
    assert [cards[name].run["seeds"] for name in ("seed-0", "seed-1")] == [[0, 1], [0, 1]]


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
    assert f"| {STUDENT}" in capsys.readouterr().out
