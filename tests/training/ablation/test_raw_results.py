import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_studies import save_toy_results

from training.ablation.measures import CONSISTENCY
from training.ablation.raw_results import HELD_OUT, HeldOutSums, RunResult, StudyResults, load_raw, load_runs
from training.ablation.study import OpenedStudy
from training.recipe import RecipeError


def loaded(opened: OpenedStudy, bootstrap: torch.Tensor | None = None) -> StudyResults:
    held_out = load_raw(opened.folder / HELD_OUT, HeldOutSums)
    draws = torch.zeros(0, held_out.num_sources) if bootstrap is None else bootstrap
    return StudyResults(held_out, load_runs(opened.folder, held_out, opened.recipes), {}, draws)


def test_sums_become_measures(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 0.5, ("dropping", 0): 0.05, ("plain", 1): 0.6})
    results = loaded(opened, torch.tensor([[1, 1, 1], [0, 0, 3]], dtype=torch.float64))
    assert results.seeds("plain") == [0, 1]
    assert results.seeds("plain", "dropping") == [0]
    assert results.value("plain", 0, "dense_error/semantic") == pytest.approx(0.5 * 4.01 / 4)
    # The worst is the one teacher in one run, the other in another.
    assert results.value("plain", 0, "dense_error/worst") == pytest.approx(0.5 * 4.01 / 4)
    assert results.value("dropping", 0, "dense_error/worst") == pytest.approx(0.1)
    assert results.value("plain", 0, "knn") == 0.5
    drawn = results.resampled("plain", 0, "dense_error/worst")
    assert drawn is not None
    assert drawn.tolist() == pytest.approx([0.5 * 4.01 / 4, 0.505])
    assert results.resampled("plain", 0, "knn") is None
    assert results.measures() == [
        "dense_error/semantic",
        "dense_error/segmenter",
        "dense_error/worst",
        "fixed_pattern",
        "shift_error",
        "consistency",
        "knn",
        "miou",
    ]


def test_numbers_are_rounded_and_recipes_are_not(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 1 / 3})
    result = load_raw(opened.folder / "plain.seed-0.json", RunResult)
    assert result.sums["dense_error/semantic"][0] == 0.33333
    assert result.recipe["optimizer"]["learning_rate"] == opened.recipe("plain", 0).optimizer.learning_rate
    assert (opened.folder / "plain.seed-0.json").stat().st_size < 8000


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_does_not_belong_is_refused(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 0.5})
    path = opened.folder / "plain.seed-0.json"
    good = path.read_text()

    def refused(match: str) -> None:
        with pytest.raises(RecipeError, match=match):
            loaded(opened)
        path.write_text(good)

    recipe = json.loads(good)["recipe"]
    edit(path, recipe=recipe | {"schedule": recipe["schedule"] | {"num_steps": 7}})
    refused(r"is of another recipe \(schedule.num_steps: 7 -> 2\)")
    edit(path, held_out="others")
    refused("was measured on other images")
    edit(path, folders={"runs/sharp/upsampler": "one"})
    save_toy_results(opened, {("plain", 1): 0.5})
    edit(opened.folder / "plain.seed-1.json", folders={"runs/sharp/upsampler": "another"})
    refused("seed-1.json' and .*seed-0.json' learned from different weights in 'runs/sharp/upsampler'")
    (opened.folder / "plain.seed-1.json").unlink()
    edit(path, seed=3)
    refused("is of 'plain', seed 3. Give it back its name")
    edit(path, extra=1)
    refused("is no raw result")
    path.write_text(good[:100])
    refused("is no raw result")


def test_settings_that_are_newer_than_a_result_had_their_defaults(opened: OpenedStudy) -> None:
    save_toy_results(opened, {("plain", 0): 0.5})
    path = opened.folder / "plain.seed-0.json"
    recipe = json.loads(path.read_text())["recipe"]
    del recipe["balancing"]
    edit(path, recipe=recipe)
    assert list(loaded(opened).runs) == [("plain", 0)]


def held_out_sums(sums: list[float], **changes: object) -> HeldOutSums:
    weights = {CONSISTENCY: [1.0, 4.0, 40.0], "dense_error/semantic": sums}
    return replace(HeldOutSums("bits", 45, 96, [96, 128], weights), **changes)


def test_images_are_known_by_their_sums_whatever_the_machine() -> None:
    here = held_out_sums([10.0, 400.0, 4000.0])
    # A picture of one image is rounded by more, relative to itself.
    assert here.is_of_the_images_of(held_out_sums([10.3, 401.0, 3990.0], fingerprint="other bits"))
    assert not here.is_of_the_images_of(held_out_sums([10.0, 400.0, 4100.0]))
    assert not here.is_of_the_images_of(held_out_sums([100.0, 400.0, 4000.0]))
    assert not here.is_of_the_images_of(held_out_sums([400.0, 10.0, 4000.0]))
    moved = here.weights | {CONSISTENCY: [2.0, 3.0, 40.0]}
    assert not here.is_of_the_images_of(replace(here, weights=moved))
    assert not here.is_of_the_images_of(replace(here, num_images=46))
