"""The command asks the models of each seed, and writes the numbers and the page."""

from training.demo_kit.test_time import main
from training.demo_kit.tuning.experiments import EXPERIMENTS
from training.demo_kit.tuning.test_time import looks
from training.demo_kit.tuning.test_time.results import FittedScore, LookScore, load


def test_numbers_and_page_are_written(tmp_path, monkeypatch, capsys):
    def measure(grid, seed, num_images):
        yield LookScore("masks", "plain", seed, num_images, {"mean_iou": 0.5}, 1024)
        yield FittedScore("labels", "f1", seed, 0.1, 0.2, 0.3)

    monkeypatch.setattr(looks, "measure", measure)
    places = ["--results", str(tmp_path / "raw"), "--report", str(tmp_path / "page.md")]
    assert main([*places, "--seeds", "0,2", "--num-images", "8"]) == 0
    measured = load(tmp_path / "raw")
    assert [(score.seed, score.num_images) for score in measured.looks] == [(0, 8), (2, 8)]
    assert [score.seed for score in measured.fitted] == [0, 2]
    assert measured.run["command"] == "python -m training.demo_kit.test_time"
    assert "seeds 0, 2, on the same 8 held-out images" in (tmp_path / "page.md").read_text()
    assert "Wrote" in capsys.readouterr().out


def test_without_models_the_command_says_which_are_missing(tmp_path, capsys):
    places = ["--results", str(tmp_path / "raw"), "--report", str(tmp_path / "page.md"), "--output", str(tmp_path)]
    assert main(places) == 1
    assert "image-classification --arms LoRA --seeds 0` first" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_every_way_to_look_is_of_a_task_and_starts_with_what_needs_no_option():
    for subject in looks.SUBJECTS.values():
        assert subject.experiment in EXPERIMENTS
        assert next(iter(subject.looks.values())).options is None
