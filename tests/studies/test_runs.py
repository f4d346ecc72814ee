import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import side_by_side
from toy_studies import STUDY, write_study

from modeling_radio.core.errors import UserError
from modeling_radio.core.interruption import Interrupted, TrainingDivergedError
from modeling_radio.studies import runs
from modeling_radio.studies.held_out import HeldOut
from modeling_radio.studies.study import open_study
from modeling_radio.training.recipes.recipe import RecipeError
from modeling_radio.training.student.build import build_student


@pytest.fixture
def distilled(held_out, monkeypatch):
    """The folders of the runs that are made; each gives a random student of its seed."""
    done = []

    def run(recipe, folder, device):
        done.append(folder)
        build_student(recipe, held_out.evaluation.teachers).save_pretrained(folder / "final")
        (folder / "checkpoints").mkdir()
        return folder / "final"

    def measure(self, model, recipe):
        return {"consistency": [1.0, 1.0, 1.0, 1.0]}, {"knn_sets": recipe.seed / 2}

    monkeypatch.setattr(runs, "run_recipe", run)
    monkeypatch.setattr(HeldOut, "load", lambda opened: held_out)
    monkeypatch.setattr(HeldOut, "measure", measure)
    return done


def delete_run(path, arm, seed):
    """Delete the line of a run, as one does to run it again."""
    first, *lines = path.read_text().splitlines(keepends=True)
    path.write_text(
        "".join([first, *(each for each in lines if not each.startswith(f'{{"arm":"{arm}","seed":{seed},'))])
    )


def test_all_arms_of_a_seed_come_before_the_next_seed_and_none_runs_twice(opened, distilled, load):
    runs.run_study(opened, Path("out"), 1)
    order = [("plain", 0), ("adaptive", 0), ("plain", 1), ("adaptive", 1)]
    assert distilled == [Path("out") / arm / f"seed-{seed}" for arm, seed in order]
    assert not (distilled[0] / "checkpoints").exists()
    assert list(load(opened).results) == order
    delete_run(opened.raw_results, "adaptive", 1)
    distilled.clear()
    runs.run_study(opened, Path("elsewhere"), 1)  # raw results are enough
    assert distilled == [Path("elsewhere/adaptive/seed-1")]
    runs.run_study(opened.with_seeds([1, 2]), Path("elsewhere"), 1)
    assert distilled[1:] == [Path("elsewhere/plain/seed-2"), Path("elsewhere/adaptive/seed-2")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "radio", "source": "runs/demo/final"}, r"^`teachers.semantic.source` of arm 'adaptive'"),
        (
            {"run_mode": "fixed", "upsample": "featsharp", "upsampler": "runs/sharp"},
            r"^`teachers.semantic` of arm 'adaptive': `upsampler`",
        ),
    ],
)
def test_folders_that_do_not_exist_are_refused_before_the_first_run(opened, distilled, changes, message):
    recipe = opened.recipes["adaptive"]
    semantic, segmenter = recipe.teachers
    wrong = recipe.replace(teachers=[semantic.replace(**changes), segmenter])
    with pytest.raises(RecipeError, match=message):
        runs.run_study(opened._replace(recipes={**opened.recipes, "adaptive": wrong}), Path("out"), 1)
    assert distilled == []


def test_a_run_that_diverges_does_not_end_the_study(opened, distilled, load, monkeypatch):
    whole = runs.run_recipe

    def diverge(recipe, folder, device):
        if recipe.balancing.method == "adaptive" and recipe.seed == 0:
            raise TrainingDivergedError("Step 7: not finite.")
        return whole(recipe, folder, device)

    monkeypatch.setattr(runs, "run_recipe", diverge)
    runs.run_study(opened, Path("out"), 1)
    failed = load(opened).results["adaptive", 0]
    assert (failed.failure, failed.sums, failed.numbers) == ("Step 7: not finite.", {}, {})
    assert load(opened).results["adaptive", 1].failure == ""
    assert runs.missing_runs(opened) == []


def test_weights_in_folders_that_have_changed_are_refused_before_the_first_run(
    opened, distilled, load, tmp_path, monkeypatch
):
    recipe = opened.recipe("plain", 0)
    assert runs.hash_folders(recipe) == {}
    first, *others = recipe.teachers
    of_folder = recipe.replace(teachers=[first.replace(source=str(tmp_path)), *others])
    hashes = []
    for content in (b"one", b"another"):
        (tmp_path / "model.safetensors").write_bytes(content)
        hashes.append(runs.hash_folders(of_folder))
    assert [list(each) for each in hashes] == [[str(tmp_path)]] * 2
    assert hashes[0] != hashes[1]
    monkeypatch.setattr(runs, "hash_folders", lambda recipe: hashes[0])
    runs.run_study(opened.with_seeds([0]), Path("out"), 1)
    assert load(opened).results["plain", 0].folders == hashes[0]
    distilled.clear()
    monkeypatch.setattr(runs, "hash_folders", lambda recipe: hashes[1])
    with pytest.raises(RecipeError, match=str(tmp_path)):
        runs.run_study(opened, Path("out"), 1)
    assert distilled == []


def test_a_primary_measure_of_a_summary_that_no_teacher_has(opened, distilled):
    def run(primary):
        runs.run_study(opened._replace(study=opened.study.replace(primary=primary)), Path("out"), 1)

    with pytest.raises(RecipeError, match=r"`primary` 'summary_error/segmenter'.*summary_error/semantic"):
        run("summary_error/segmenter")
    assert not distilled
    run("summary_error/semantic")
    assert distilled


@pytest.fixture
def run_both(recipe_file, held_out, monkeypatch, request):
    """Runs a study whose second arm has a name, in two processes: new ones in the tour, quick ones elsewhere."""
    if request.node.get_closest_marker("tour") is None:
        forked = multiprocessing.get_context("fork")
        monkeypatch.setattr(multiprocessing, "get_context", lambda method: forked)
    monkeypatch.setattr(HeldOut, "load", lambda opened: held_out)
    monkeypatch.setattr(runs, "_prepare", side_by_side.prepare)
    monkeypatch.setattr(runs, "_run", side_by_side.run)
    text = STUDY.replace("plain", "one").replace("seeds: [0, 1]", "seeds: [0, 1, 2]")

    def start(second):
        output = Path(recipe_file).parent / "out"
        study = open_study(write_study(recipe_file, text.replace("name: adaptive", f"name: {second}")))
        runs.run_study(study, output, 2)
        return output

    return start


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.tour)])
def test_runs_side_by_side(run_both, start):
    names = {path.name for path in run_both("two").iterdir()}
    assert names == {f"{arm}-{seed}" for arm in ("one", "two") for seed in range(3)}


@pytest.mark.parametrize(
    ("arm", "error", "message"), [("broken", ValueError, "It broke"), ("killed", UserError, "^A run was killed")]
)
def test_a_run_that_fails_or_is_killed_ends_all(run_both, arm, error, message):
    with pytest.raises(error, match=message):
        run_both(arm)


def test_a_stop_reaches_the_runs(run_both, recipe_file):
    output = Path(recipe_file).parent / "out"

    def stop():
        while not (output / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        run_both("slow")
    thread.join()
    assert {path.name for path in output.iterdir()} - {"one-0", "one-1"} == {"started", "stopped"}  # no run begins
