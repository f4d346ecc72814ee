"""What is timed is what its name says, and sums of the timings."""

from pathlib import Path

import pytest

from benchmarks import training_options as options
from training.recipe import load_recipe


GROUPS = options.groups(Path("folder"))


@pytest.mark.parametrize("option", options.OPTIONS)
def test_an_option_is_one_change_of_its_plain_step(option: str) -> None:
    (group,) = [group for group in GROUPS.values() if option in group.options]
    plain, changed = (
        load_recipe("demo", changes).to_dict() for changes in (group.plain, [*group.plain, *group.options[option]])
    )
    sections = {section for section in plain if plain[section] != changed[section]}
    assert len(sections) == 1
    assert sections <= {
        "balancing",
        "contrastive",
        "damp",
        "mesa",
        "partitions",
        "spectral",
        "taps",
        "teachers",
    }


def test_an_untrained_upsampler_fits_the_teacher_that_is_timed(tmp_path: Path) -> None:
    from training.teachers.run_modes.featsharp import load_upsampler

    options.save_untrained_upsampler(tmp_path / "upsampler")
    config = load_upsampler(tmp_path / "upsampler").config
    assert (config.input_size_px, config.grid, config.kind) == (64, 4, "efficientnet-lite0")


def test_more_is_the_median_over_rounds_of_the_same_round() -> None:
    turns = [({"wall": 1.0, "cpu": plain}, {"wall": 2.0, "cpu": other}) for plain, other in ((1, 2), (2, 3), (4, 5))]
    plain, option = options.summarize("plain", [("option", turns)], {"plain": 900.0, "option": 1000.4})
    assert plain == {
        "step": "plain",
        "wall, ms": 1000,
        "CPU, ms": 2000,
        "memory, MB": 900,
        "more CPU": "",
        "more memory": "",
    }
    assert (option["CPU, ms"], option["more CPU"], option["more memory"]) == (3000, "+50 %", "+100 MB")


def test_an_option_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.main(["--options=mesaa"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "`options` must be one of" in error
