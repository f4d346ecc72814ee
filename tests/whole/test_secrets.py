"""Variables of the environment: what looks like one is text, in settings of any command, and its value goes nowhere."""

from pathlib import Path

import pytest

from modeling_radio.training.distill import main
from modeling_radio.training.recipes.recipe import load_recipe


pytestmark = pytest.mark.usefixtures("one_thread", "tiny_world")

SECRET = "hf_q7Zx0notToBePublished"
SPELLINGS = ["${oc.env:RADIO_TOKEN}", "$RADIO_TOKEN", "${RADIO_TOKEN}", "%RADIO_TOKEN%", "{{RADIO_TOKEN}}"]


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RADIO_TOKEN", SECRET)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_it_stays_text_in_a_file_and_in_a_change(recipe_file: str, spelling: str) -> None:
    Path("mine.yaml").write_text(f"base: {recipe_file}\nviews: {{cache_dir: '{spelling}'}}\nname: 'x{spelling}'\n")
    recipe = load_recipe("mine.yaml", [f"teachers.0.source={spelling}", f"student.config.label='{spelling}'"])
    assert (recipe.views.cache_dir, recipe.teachers[0].source, recipe.name) == (spelling, spelling, f"x{spelling}")
    assert recipe.student.config["label"] == spelling


def test_no_file_or_line_of_a_run_has_its_value(recipe_file: str, capfd: pytest.CaptureFixture[str]) -> None:
    first, second, third = SPELLINGS[:3]
    Path("mine.yaml").write_text(f"base: {recipe_file}\nviews: {{teachers: cached, cache_dir: '{first}'}}\n")
    words = ["--recipe", "mine.yaml", "--output", f"runs/{second}", f"teachers.0.source={third}", f"name=a{second}"]
    words += ["schedule.num_steps=3", "standardization={calibration_steps: 1, estimation_steps: 1}"]
    assert main(words) == 0
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert Path(f"runs/{second}/recipe.yaml") in files
    assert third in Path(f"runs/{second}/recipe.yaml").read_text()
    assert SECRET.encode() not in b"".join(path.read_bytes() + str(path).encode() for path in files)
    printed = "".join(capfd.readouterr())
    assert f"Wrote runs/{second}/final" in printed
    assert SECRET not in printed
