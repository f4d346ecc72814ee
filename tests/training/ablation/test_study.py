from pathlib import Path

import pytest
from toy_studies import STUDY, write_study

from training.recipe import RecipeError
from training.studies.study import (
    Comparison,
    OpenedStudy,
    Study,
    better_direction,
    check_measure,
    list_studies,
    open_study,
)


def test_arms_change_the_studys_recipe(opened: OpenedStudy) -> None:
    plain, dropping = opened.recipe("plain", 3), opened.recipe("dropping", 3)
    assert plain.seed == dropping.seed == 3
    assert (plain.schedule.num_steps, plain.balancing.method) == (2, "fixed")
    assert dropping.replace(balancing=plain.balancing) == plain
    assert dropping.balancing.method == "teacher_dropping"
    assert opened.raw_results == Path(opened.source).with_suffix(".jsonl")


def test_runs_have_one_thread_and_are_not_watched(opened: OpenedStudy) -> None:
    recipe = opened.recipe("plain", 0)
    assert recipe.student.passes_at_once == 1
    assert (recipe.logging.trackers, recipe.logging.metrics_every_steps) == ([], None)


def arms(*texts: str) -> Study:
    names = [text.partition("<")[::2] for text in texts]
    entries = [{"name": name, "against": against or None} for name, against in names]
    return Study(question="?", primary="knn_sets", arms=entries)


@pytest.mark.parametrize(
    ("study", "pairs"),
    [
        (arms("a", "b", "c"), ["b<a", "c<a"]),
        (arms("a", "b<c", "c"), ["b<c"]),  # who others are compared with is compared with nothing
        (arms("a", "b<c", "c<a"), ["b<c", "c<a"]),
    ],
)
def test_what_is_compared(opened: OpenedStudy, study: Study, pairs: list[str]) -> None:
    expected = [Comparison(*pair.split("<")) for pair in pairs]
    assert opened._replace(study=study).comparisons() == expected


DROPPING = "balancing.method=teacher_dropping, balancing.start_step=0, balancing.ramp_steps=0"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("primary: dense_error/worst", "", "`primary` has no value"),
        ("dense_error/worst", "dense_eror/worst", "`primary` must be one of"),
        ("dense_error/worst", "dense_error/nobody", "`primary` must be one of"),
        ("arms:", "arm:", "Unknown key 'arm' (Study). Did you mean 'arms'?"),
        ("name: dropping", "name: plain", "`arms (names)` must be all different"),
        ("name: dropping", "name: a/b", "`arms (names)` must be all different, of letters"),
        ("name: dropping", "name: dropping, against: plan", "Did you mean 'plain'?"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "`seeds` must be numbers that are all different, got [0, 0]"),
        ("seeds: [0, 1]", "seeds: []", "`seeds` must be"),
        ("seeds: [0, 1]", "seeds: [-1]", "`seeds` must be numbers of at least 0, got [-1]"),
        ("balancing.method=", "balancing.mehod=", "`arms.dropping`: Recipe"),
        (DROPPING, "data.num_images=3", "`data` of arm 'dropping' must be that of all"),
        (
            DROPPING,
            '"teachers=[{name: semantic, kind: tiny}]"',
            "`teachers` of arm 'dropping' must be ['semantic', 'segmenter']",
        ),
        (DROPPING, "seed=5", "`arms.dropping`: `changes` must leave out `seed`"),
        (DROPPING, '"stages=[{name: a}]"', "`stages` of arm 'dropping' must be empty"),
        (
            DROPPING,
            '"partitions.low.sizes_px=[4096]"',
            "`arms.dropping`: `partitions.low.sizes_px` must be such that no image has a side of more than",
        ),
        ("question: Does it matter?", "[", "is not YAML"),
        ("", "- a\n", "must hold a mapping"),
    ],
)
def test_bad_files_are_one_clear_line(recipe_file: str, old: str, new: str, message: str) -> None:
    text = STUDY.replace(old, new) if old else new
    with pytest.raises(RecipeError) as error:
        open_study(write_study(recipe_file, text))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Unknown study 'weigthings'\. Did you mean 'weightings'\?"):
        open_study("weigthings")
    with pytest.raises(RecipeError, match="does not exist"):
        open_study(str(tmp_path / "none.yaml"))


TWO_ARMS = ("full_step", "student_as_teacher", "taps_same_time", "warm_start")
THREE_SEEDS = ("full_step", "student_as_teacher", "warm_start", "nested_dropout")


@pytest.mark.parametrize("name", list_studies())
def test_our_own_studies_are_long_enough_and_measured_on_enough(name: str) -> None:
    opened = open_study(name)
    study = opened.study
    assert study.num_images >= 1000
    assert study.seeds == list(range(3 if name in THREE_SEEDS else 5))
    for arm, recipe in opened.recipes.items():
        least = {"warm_start": 200, "nested_dropout": 350}.get(name, 400)
        assert recipe.schedule.num_steps >= (200 if arm in ("none_200", "all_moving_200") else least)
        (partition,) = recipe.partitions
        assert partition.batch_size == 64 or partition.token_budget is not None
    compared = {pair.arm for pair in opened.comparisons()}
    assert len(compared) >= (1 if name in TWO_ARMS else 2)
    # Each arm is another recipe.
    texts = [repr(recipe.replace(name="any")) for recipe in opened.recipes.values()]
    assert len(set(texts)) == len(texts)


def test_the_study_of_the_full_step_is_the_demo_beside_the_full_demo() -> None:
    opened = open_study("full_step")
    assert list(opened.recipes) == ["demo", "whole_step"]
    assert {recipe.schedule.num_steps for recipe in opened.recipes.values()} == {1400}
    assert opened.recipes["whole_step"].spectral.is_used


def test_upsampling_is_judged_by_the_teacher_at_the_images_size() -> None:
    opened = open_study("upsampling")
    (judge,) = opened.reference.teachers
    assert (judge.run_mode, judge.input_size_px) == (None, None)
    learned = {name: [entry.input_size_px for entry in recipe.teachers] for name, recipe in opened.recipes.items()}
    assert learned == {"bilinear": [140], "tiles": [140], "featsharp": [140]}


def test_measures_are_known_by_teacher() -> None:
    for name in (
        "dense_error/a",
        "dense_error/worst",
        "summary_error/worst",
        "fixed_pattern",
        "consistency",
        "knn_sets",
    ):
        check_measure(name, ["a"])
    with pytest.raises(RecipeError, match="`primary` must be one of"):
        check_measure("dense_error/b", ["a"])


@pytest.mark.parametrize(
    ("measure", "way"),
    [("dense_error/worst", "lower"), ("shift_error", "lower"), ("knn_sets", "higher"), ("cosine/4 tokens", "higher")],
)
def test_measures_improve_one_way(measure: str, way: str) -> None:
    assert better_direction(measure) == f"{way} is better"
