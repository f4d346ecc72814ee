import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import side_by_side
from toy_studies import STUDY, save_toy_results, write_study

from core.errors import UserError
from core.interruption import Interrupted, TrainingDivergedError
from training.recipe import Recipe, RecipeError
from training.student.build import build_student
from training.studies import runs
from training.studies.held_out import HeldOut
from training.studies.raw_results import RunResult, load_results
from training.studies.study import OpenedStudy, open_study


@pytest.fixture
def distilled(held_out: HeldOut, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the runs that are made; each gives a random student of its seed."""
    done: list[Path] = []

    def run(recipe: Recipe, folder: Path) -> Path:
        done.append(folder)
        build_student(recipe, held_out.evaluation.teachers).save_pretrained(folder / "final")
        (folder / "checkpoints").mkdir()
        return folder / "final"

    def measure(self: HeldOut, model: object, recipe: Recipe) -> tuple[dict[str, list[float]], dict[str, float]]:
        return {"consistency": [1.0, 1.0, 1.0, 1.0]}, {"knn_sets": recipe.seed / 2}

    monkeypatch.setattr(runs, "run_recipe", run)
    monkeypatch.setattr(HeldOut, "load", lambda opened: held_out)
    monkeypatch.setattr(HeldOut, "measure", measure)
    return done


def results_of(opened: OpenedStudy) -> dict[tuple[str, int], RunResult]:
    results = load_results(opened)
    assert results is not None
    return dict(results.results)


def without_run(path: Path, arm: str, seed: int) -> None:
    """Delete the line of a run, as one does to run it again."""
    first, *runs_of_file = path.read_text().splitlines(keepends=True)
    start = f'{{"arm":"{arm}","seed":{seed},'
    path.write_text("".join([first, *(line for line in runs_of_file if not line.startswith(start))]))


def test_all_arms_of_a_seed_come_before_the_next_seed(opened: OpenedStudy, distilled: list[Path]) -> None:
    runs.run_study(opened, Path("out"), 1)
    order = [("plain", 0), ("dropping", 0), ("plain", 1), ("dropping", 1)]
    assert distilled == [Path("out") / arm / f"seed-{seed}" for arm, seed in order]
    assert not (distilled[0] / "checkpoints").exists()
    assert list(results_of(opened)) == order


def test_a_teacher_from_a_folder_that_is_not_there_is_refused_before_the_first_run(
    opened: OpenedStudy, distilled: list[Path]
) -> None:
    (semantic, segmenter), recipe = opened.recipes["dropping"].teachers, opened.recipes["dropping"]
    absent = semantic.replace(kind="radio", source="runs/demo/final")
    recipes = {**opened.recipes, "dropping": recipe.replace(teachers=[absent, segmenter])}
    message = r"^`teachers.semantic.source` of arm 'dropping' must be a folder that is there, got 'runs/demo/final'"
    with pytest.raises(RecipeError, match=message):
        runs.run_study(opened._replace(recipes=recipes), Path("out"), 1)
    assert distilled == []


def test_an_upsampler_that_is_not_there_is_refused_before_the_first_run(
    opened: OpenedStudy, distilled: list[Path]
) -> None:
    (semantic, segmenter), recipe = opened.recipes["dropping"].teachers, opened.recipes["dropping"]
    sharp = semantic.replace(run_mode="fixed", upsample="featsharp", upsampler="runs/sharp/upsampler")
    recipes = {**opened.recipes, "dropping": recipe.replace(teachers=[sharp, segmenter])}
    message = r"^`teachers.semantic` of arm 'dropping': `upsampler` must be a folder with config.json"
    with pytest.raises(RecipeError, match=message):
        runs.run_study(opened._replace(recipes=recipes), Path("out"), 1)
    assert distilled == []


def test_a_run_that_diverges_does_not_end_the_study(
    opened: OpenedStudy, distilled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = runs.run_recipe

    def diverge(recipe: Recipe, folder: Path) -> Path:
        if recipe.balancing.method == "teacher_dropping" and recipe.seed == 0:
            raise TrainingDivergedError("Step 7: not finite.")
        return whole(recipe, folder)

    monkeypatch.setattr(runs, "run_recipe", diverge)
    runs.run_study(opened, Path("out"), 1)
    failed = results_of(opened)["dropping", 0]
    assert (failed.failure, failed.sums, failed.numbers) == ("Step 7: not finite.", {}, {})
    assert results_of(opened)["dropping", 1].failure == ""
    assert runs.missing_runs(opened) == []


def test_a_run_that_the_system_kills_is_told_in_a_line(run_both) -> None:
    with pytest.raises(UserError, match=r"^A run was killed by the system"):
        run_both("killed")


def test_a_run_with_a_raw_result_is_not_made_again(opened: OpenedStudy, distilled: list[Path]) -> None:
    runs.run_study(opened, Path("out"), 1)
    without_run(opened.raw_results, "dropping", 1)
    distilled.clear()
    runs.run_study(opened, Path("elsewhere"), 1)  # raw results are enough
    assert distilled == [Path("elsewhere/dropping/seed-1")]
    runs.run_study(runs.with_seeds(opened, [1, 2]), Path("elsewhere"), 1)
    assert distilled[1:] == [Path("elsewhere/plain/seed-2"), Path("elsewhere/dropping/seed-2")]


def test_weights_in_folders_are_known_by_their_bytes(opened: OpenedStudy, tmp_path: Path) -> None:
    recipe = opened.recipe("plain", 0)
    assert runs.hash_folders(recipe) == {}
    first, *others = recipe.teachers
    sharp = recipe.replace(teachers=[first.replace(source=str(tmp_path)), *others])
    hashes = set()
    for content in (b"one", b"another"):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert list(runs.hash_folders(sharp)) == [str(tmp_path)]
        hashes.add(runs.hash_folders(sharp)[str(tmp_path)])
    assert len(hashes) == 2


def test_weights_in_folders_that_have_changed_are_refused_before_the_first_run(
    opened: OpenedStudy, distilled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "hash_folders", lambda recipe: {"runs/sharp": "one"})
    runs.run_study(runs.with_seeds(opened, [0]), Path("out"), 1)
    assert results_of(opened)["plain", 0].folders == {"runs/sharp": "one"}
    distilled.clear()
    monkeypatch.setattr(runs, "hash_folders", lambda recipe: {"runs/sharp": "another"})
    with pytest.raises(RecipeError, match=r"^'runs/sharp' must have the weights that results in .* learned from"):
        runs.run_study(opened, Path("out"), 1)
    assert distilled == []


def test_what_was_measured_on_other_images_is_not_mixed_in(opened: OpenedStudy, distilled: list[Path]) -> None:
    save_toy_results(opened, {("plain", 0): 0.5})
    with pytest.raises(RecipeError, match="Held-out images must be those of"):
        runs.run_study(opened, Path("out"), 1)
    assert distilled == []


def test_a_study_goes_on_where_pixels_are_rounded_otherwise(
    opened: OpenedStudy, held_out: HeldOut, distilled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoders and resizes of two machines differ by single levels, and with them the fingerprints."""
    runs.run_study(opened, Path("out"), 1)
    path, here = opened.raw_results, held_out.references()

    def rounded(factor: float) -> None:
        sums = {name: [value * factor for value in sums] for name, sums in here.weights.items() if "error" in name}
        elsewhere = replace(here, fingerprint="elsewhere", weights={**here.weights, **sums})
        monkeypatch.setattr(HeldOut, "references", lambda self: elsewhere)

    without_run(path, "dropping", 1)
    first = path.read_text().splitlines()[0]
    rounded(1.004)
    runs.run_study(opened, Path("again"), 1)
    assert distilled[-1] == Path("again/dropping/seed-1")
    assert path.read_text().splitlines()[0] == first  # of the machine that came first
    without_run(path, "dropping", 1)
    rounded(1.04)
    with pytest.raises(RecipeError, match="Held-out images must be those of"):
        runs.run_study(opened, Path("again"), 1)


SIDE_BY_SIDE = STUDY.replace("plain", "one").replace("seeds: [0, 1]", "seeds: [0, 1, 2]")


@pytest.fixture
def run_both(recipe_file: str, held_out: HeldOut, monkeypatch: pytest.MonkeyPatch):
    """Runs a study whose second arm has a name, in two processes."""
    monkeypatch.setattr(HeldOut, "load", lambda opened: held_out)
    monkeypatch.setattr(runs, "_prepare", side_by_side.prepare)
    monkeypatch.setattr(runs, "_run", side_by_side.run)

    def start(second: str) -> Path:
        output = Path(recipe_file).parent / "out"
        study = open_study(write_study(recipe_file, SIDE_BY_SIDE.replace("name: dropping", f"name: {second}")))
        runs.run_study(study, output, 2)
        return output

    return start


def test_runs_side_by_side(run_both) -> None:
    names = {path.name for path in run_both("two").iterdir()}
    assert names == {f"{arm}-{seed}" for arm in ("one", "two") for seed in range(3)}


def test_a_run_that_fails_ends_all(run_both) -> None:
    with pytest.raises(ValueError, match="It broke"):
        run_both("broken")


def test_a_stop_reaches_the_runs(run_both, recipe_file: str) -> None:
    output = Path(recipe_file).parent / "out"

    def stop() -> None:
        while not (output / "started").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Interrupted, match="Stopped: the same command goes on"):
        run_both("slow")
    thread.join()
    assert {path.name for path in output.iterdir()} - {"one-0", "one-1"} == {"started", "stopped"}  # no run begins


def test_a_primary_measure_of_a_summary_that_no_teacher_has(opened: OpenedStudy, distilled: list[Path]) -> None:
    def asked(primary: str) -> OpenedStudy:
        return opened._replace(study=opened.study.replace(primary=primary))

    with pytest.raises(RecipeError, match=r"'summary_error/segmenter' is of a teacher without a summary.*semantic"):
        runs.run_study(asked("summary_error/segmenter"), Path("out"), 1)
    assert not distilled
    runs.run_study(asked("summary_error/semantic"), Path("out"), 1)
    assert distilled
