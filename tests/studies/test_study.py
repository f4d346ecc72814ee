from pathlib import Path

import pytest
from toy_studies import STUDY, write_study

from modeling_radio.studies import study
from modeling_radio.studies.study import Study, list_studies, open_study
from modeling_radio.training.recipes.recipe import RecipeError


def test_arms_change_the_studys_recipe_and_run_quietly_in_one_thread(opened):
    plain, adaptive = opened.recipe("plain", 3), opened.recipe("adaptive", 3)
    assert plain.seed == adaptive.seed == 3
    assert (plain.schedule.num_steps, plain.balancing.method) == (2, "fixed")
    assert adaptive.replace(balancing=plain.balancing) == plain
    assert adaptive.balancing.method == "adaptive"
    assert opened.raw_results == Path(opened.source).with_suffix(".jsonl")
    assert plain.student.passes_at_once == 1
    assert (plain.logging.trackers, plain.logging.metrics_every_steps) == ([], None)


@pytest.mark.parametrize(
    ("arms", "pairs"),
    [
        ("a b c", "b<a c<a"),
        ("a b<c c", "b<c"),  # an arm that others are compared with is compared with nothing
        ("a b<c c<a", "b<c c<a"),
    ],
)
def test_comparisons(opened, arms, pairs):
    names = [arm.partition("<")[::2] for arm in arms.split()]
    entries = [{"name": name, "against": against or None} for name, against in names]
    asked = opened._replace(study=Study(question="?", primary="knn_sets", arms=entries))
    assert ["<".join(pair) for pair in asked.comparisons()] == pairs.split()
    assert asked.comparisons(["old"])[-1] == ("old", "a")


ADAPTIVE = "balancing.method=adaptive, balancing.start_step=0, balancing.ramp_steps=0"


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("primary: dense_error/worst", "", "`primary`"),
        ("dense_error/worst", "dense_error/nobody", "`primary`"),
        ("arms:", "arm:", "Did you mean 'arms'?"),
        ("name: adaptive", "name: plain", "`arms (names)`"),
        ("name: adaptive", "name: a/b", "`arms (names)`"),
        ("name: adaptive", "name: adaptive, against: plan", "Did you mean 'plain'?"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "`seeds`"),
        ("seeds: [0, 1]", "seeds: []", "`seeds`"),
        ("seeds: [0, 1]", "seeds: [-1]", "`seeds`"),
        ("balancing.method=", "balancing.mehod=", "`arms.adaptive`"),
        (ADAPTIVE, "data.num_images=3", "`data` of arm 'adaptive'"),
        (ADAPTIVE, '"teachers=[{name: semantic, kind: tiny}]"', "`teachers` of arm 'adaptive'"),
        (ADAPTIVE, "seed=5", "`changes`"),
        (ADAPTIVE, '"stages=[{name: a}]"', "`stages` of arm 'adaptive'"),
        (ADAPTIVE, '"partitions.low.sizes_px=[4096]"', "`partitions.low.sizes_px`"),
        ("question: Does it matter?", "[", "is not YAML"),
        ("", "- a\n", "must hold a mapping"),
    ],
)
def test_bad_files_are_one_line(recipe_file, old, new, named):
    with pytest.raises(RecipeError) as error:
        open_study(write_study(recipe_file, STUDY.replace(old, new) if old else new))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_imports_no_code_of_a_recipe_of_others(recipe_file, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "own.yaml").write_text(f"base: {recipe_file}\nloss: {{features: 'own_module:loss'}}")
    source = write_study(str(theirs / "own.yaml"))
    open_study(source)
    (theirs / "config.json").touch()
    with pytest.raises(RecipeError, match=r"`recipe`.*own_module:loss"):
        open_study(source)


def test_a_study_that_does_not_exist(tmp_path):
    for name, named in (("weigthings", "'weigthings'.*'weightings'"), (str(tmp_path / "none.yaml"), r"none\.yaml")):
        with pytest.raises(RecipeError, match=named):
            open_study(name)


@pytest.mark.parametrize("name", list_studies())
def test_our_own_studies_compare_different_recipes_on_enough_images(name):
    opened = open_study(name)
    assert opened.study.num_images >= 1000
    assert len(opened.study.seeds) >= 3
    assert opened.comparisons()
    texts = [repr(recipe.replace(name="any")) for recipe in opened.recipes.values()]
    assert len(set(texts)) == len(texts)


def test_results_of_our_studies_lie_where_an_installed_command_runs(monkeypatch, tmp_path):
    name = list_studies()[0]
    assert open_study(name, tmp_path).raw_results == study.STUDIES_DIR / f"{name}.jsonl"
    monkeypatch.setattr(study, "IS_CLONE", False)
    assert open_study(name, tmp_path).raw_results == tmp_path / f"{name}.jsonl"
    assert open_study(name).raw_results == Path("runs/ablate") / f"{name}.jsonl"
